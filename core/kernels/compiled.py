"""The step compiled by torch.compile, called once per time step; compiling takes tens of seconds, once."""

from __future__ import annotations

import logging
import shutil
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..circuit import CircuitState, map_state

if TYPE_CHECKING:
    from .circuit_view import CircuitView

logger = logging.getLogger(__name__)


def unavailable(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> str | None:
    """Why torch.compile cannot run here, or None."""
    if "transition" in vars(circuit):
        return f"it compiles the transition of {type(circuit).__name__}, and would skip the one put into this circuit"
    if inputs.device.type == "cpu" and not any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl")):
        return "torch.compile needs a C++ compiler on the CPU, and none was found on the PATH"
    if inputs.device.type == "cpu" and " " in torch.__file__:
        return f"torch.compile passes paths with spaces wrongly to the C++ compiler, and torch is in {torch.__file__}"
    return None


def run(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState]:
    """Features ``[T, B, F]`` and the last state."""
    first_use = circuit.compiled_transition is None
    if first_use:
        logger.info(
            "compiling the step of %s for batches of %d; once, tens of seconds", type(circuit).__name__, inputs.shape[1]
        )
        # The class's function, not the bound method: a deep copy of the circuit must run its own weights.
        circuit.compiled_transition = torch.compile(type(circuit).transition, fullgraph=True, dynamic=False)
    if torch.is_grad_enabled():
        # As from the second step on, so that the step is not compiled twice.
        state = map_state(_as_later, state)
    start = time.monotonic()
    features = []
    for step, x in enumerate(inputs.unbind(0)):
        feature, state, _ = circuit.compiled_transition(circuit, x, state)
        features.append(feature)
        if first_use and step == 0:
            logger.info("compiled in %.1f s", time.monotonic() - start)
    return torch.stack(features), state


def _as_later(leaf: Tensor) -> Tensor:
    """The leaf as the step itself would have made it: with a gradient, if it can have one."""
    return leaf if leaf.requires_grad or not leaf.is_floating_point() else leaf.detach().requires_grad_()
