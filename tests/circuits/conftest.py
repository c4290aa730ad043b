"""What the tests of circuits share: the backends that they run with, and a way to the oracles."""

import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "core")]
# These tensors are tiny: a second thread only waits, and on a busy machine makes a step ten times slower.
torch.set_num_threads(1)

from backends import EVERYWHERE, TRITON  # noqa: E402


@pytest.fixture(params=[*EVERYWHERE, TRITON])
def backend(request: pytest.FixtureRequest) -> str:
    """The reference, what users get, and kernels for GPUs."""
    return request.param


@pytest.fixture(autouse=True)
def _interpreter_where_it_is_needed(request: pytest.FixtureRequest) -> None:
    """Tests on a CPU run Triton's kernels in its interpreter."""
    if hasattr(request.node, "callspec") and request.node.callspec.params.get("backend") == "triton":
        request.getfixturevalue("triton_interpreter")
