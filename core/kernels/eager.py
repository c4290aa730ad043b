"""The reference backend: one step after another, as the equations are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..state import CircuitState

if TYPE_CHECKING:
    from .circuit_view import CircuitView


def unavailable(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> str | None:
    """None: it runs everything."""
    return None


def run(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState]:
    """Features ``[T, B, F]`` and the last state."""
    return run_steps(circuit, inputs, state._replace(accessor=circuit.accessor.begin(state.accessor, len(inputs))))


def run_steps(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState]:
    """The same from a state whose accessor has begun."""
    features = []
    for x in inputs.unbind(0):
        feature, state, _ = circuit.transition(x, state)
        features.append(feature)
    return torch.stack(features), state._replace(accessor=circuit.accessor.end(state.accessor))
