"""What the tests of circuits share: the backends that they run with, and a way to the oracles."""

import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "core")]
# These tensors are tiny: a second thread only waits, and on a busy machine makes a step ten times slower.
torch.set_num_threads(1)


@pytest.fixture(params=["eager", "auto"])
def backend(request: pytest.FixtureRequest) -> str:
    """The reference, and what users get."""
    return request.param
