"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Triton's kernels are interpreted where there is no GPU, which must be known before anything imports Triton.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """The tensors of tests are small: a second thread would only wait."""
    torch.set_num_threads(1)


class _RootIsNoTests:
    """Keeps pytest from importing the root, a package, a second time under the name of its folder."""

    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == Path(__file__).parents[1] else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_RootIsNoTests())
