"""Where Triton's kernels are tested."""

from __future__ import annotations

import importlib.util

import pytest
import torch


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def triton_device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, in Triton's interpreter, and a GPU where there is one."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    from tapehead.core.kernels.triton import launch

    if request.param == "cuda" and launch.interpreted():
        pytest.skip("no CUDA device, or TRITON_INTERPRET is 1")
    if request.param == "cpu" and not launch.interpreted():
        assert torch.cuda.is_available(), "Triton was imported before TRITON_INTERPRET was set"
        pytest.skip("kernels are compiled for the GPU; TRITON_INTERPRET=1 tests the interpreter")
    return torch.device(request.param)
