"""Chooses what runs a sequence: one backend per circuit, device and shape.

A backend is a module with two functions: ``unavailable(circuit, inputs, state)`` says why it cannot run (None when it
can) and ``run(circuit, inputs, state)`` maps inputs ``[T, B, I]`` and a state to features ``[T, B, F]`` and the last
state. Features are the hidden vector and the words read, ``F = hidden_size + R * W``.
"""

from __future__ import annotations

import logging
from types import ModuleType
from typing import TYPE_CHECKING, Literal, get_args

from torch import Tensor

from ..circuit import CircuitState, check_choice
from . import compiled, eager, native

if TYPE_CHECKING:
    from .circuit_view import CircuitView

Backend = Literal["auto", "native", "eager", "compiled"]

_MODULES: dict[str, ModuleType] = {"native": native, "eager": eager, "compiled": compiled}
_AUTO_ORDER = ("native", "eager")

logger = logging.getLogger(__name__)


def check_backend(backend: str) -> None:
    """Raise ValueError naming the allowed backends."""
    check_choice("backend", backend, get_args(Backend))


def choose(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> str:
    """Name of the backend that will run these inputs.

    Raises:
        RuntimeError: the circuit asks for a backend that cannot run here; says why.
    """
    if circuit.backend != "auto":
        reason = _MODULES[circuit.backend].unavailable(circuit, inputs, state)
        if reason is not None:
            raise RuntimeError(f"backend: {circuit.backend!r} cannot run this circuit: {reason}")
        return circuit.backend
    for name in _AUTO_ORDER:
        if _MODULES[name].unavailable(circuit, inputs, state) is None:
            return name
    return "eager"


def run(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState]:
    """Features ``[T, B, F]`` of a sequence and the last state, from the chosen backend."""
    name = choose(circuit, inputs, state)
    if circuit.chosen_backend != name:
        logger.info("backend: %s", name)
        circuit.chosen_backend = name
    features, state = _MODULES[name].run(circuit, inputs, state)
    return features, state
