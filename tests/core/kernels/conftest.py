"""Where Triton's kernels are tested, with the sanitizer that lies beside."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def triton_device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The CPU, in Triton's interpreter with the checks of sanitizer.py, and a GPU where there is one."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    from papertape.core.kernels.triton import launch

    if request.param == "cuda" and launch.interpreted():
        pytest.skip("no CUDA device, or TRITON_INTERPRET is 1")
    if request.param == "cuda":
        yield torch.device("cuda")
        return
    request.getfixturevalue("triton_interpreter")
    from sanitizer import sanitized

    with sanitized():
        yield torch.device("cpu")
