"""What all tests share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """The tensors of tests are small: a second thread would only wait."""
    torch.set_num_threads(1)
