"""The reference backend: one step after another, as the equations are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..state import CircuitState, leaves
from .transforms import transform, transforms_functions

if TYPE_CHECKING:
    from .circuit_view import CircuitView


def unavailable(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> str | None:
    """None: it runs everything."""
    return None


def run(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState]:
    """Features ``[T, B, F]`` and the last state."""
    accessor = state.accessor
    if recorded(circuit, inputs, state) is None:
        accessor = circuit.accessor.begin(accessor, len(inputs))
    return run_steps(circuit, inputs, state._replace(accessor=accessor))


def recorded(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> str | None:
    """Why nothing may be changed in place at the moment, nor depend on values, or None; see :func:`transform`."""
    parameters = (tensor for part in (circuit.controller, circuit.accessor) for tensor in part.parameters())
    tensors = [inputs, *leaves(state), *parameters]
    for tensor in tensors:
        if type(tensor) not in (Tensor, nn.Parameter):  # whose operations in place may give another object
            return f"it needs plain tensors, not a {type(tensor).__name__}"
    reason = transform(tensors)
    return "torch.func is at work" if reason is None and transforms_functions() else reason


def run_steps(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState]:
    """The same from a state whose accessor has begun."""
    features, state = circuit.transitions(inputs, state)
    return features, state._replace(accessor=circuit.accessor.end(state.accessor))
