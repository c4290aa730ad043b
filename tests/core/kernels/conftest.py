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
    if request.param == "cpu":
        request.getfixturevalue("triton_interpreter")
    return torch.device(request.param)
