"""Chooses what runs a sequence: one backend per circuit, device and shape.

A backend is a module with two functions: ``unavailable(circuit, inputs, state)`` says why it cannot run (None when it
can) and ``run(circuit, inputs, state)`` maps inputs ``[T, B, I]`` and a state to features ``[T, B, F]`` and the last
state. Features are the hidden vector and the words read, ``F = hidden_size + R * W``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from ..circuit import CircuitState, check_choice
from ..stacked import Stack, dense, map_members
from . import compiled, eager, native, triton

if TYPE_CHECKING:
    from .circuit_view import CircuitView

Backend = Literal["auto", "native", "triton", "eager", "compiled"]

_MODULES: dict[str, ModuleType] = {
    "native": native,
    "triton": triton,
    "eager": eager,
    "compiled": compiled,
}
_AUTO_ORDER = ("native", "triton", "eager")
_POPULATION_ORDER = ("native", "triton")

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
    _note(circuit, name)
    features, state = _MODULES[name].run(circuit, inputs, state)
    return features, state


def run_population(circuit: CircuitView, stacks: Mapping[str, Stack], inputs: Tensor) -> Tensor:
    """The answers of P members, each with its own parameters, to the same inputs from their initial states.

    The native or the Triton backend where the circuit asks for it or leaves the choice and it can; else eager, mapped
    over the members. Not differentiable.

    Args:
        circuit: what each member is; its own parameters are left alone.
        stacks: of P members for each named parameter.
        inputs: ``[T, B, I]``.

    Returns:
        ``[T, P, B, O]``

    Raises:
        RuntimeError: the circuit asks for one of these backends, which cannot run this population; says why.
    """
    with torch.no_grad():
        parameters = {name: dense(stack) for name, stack in stacks.items()}
        for name in _POPULATION_ORDER:
            if circuit.backend not in ("auto", name):
                continue
            backend = _MODULES[name]
            reason = backend.population_unavailable(circuit, parameters, inputs)
            if reason is None:
                _note(circuit, name)
                answers: Tensor = backend.run_population(circuit, parameters, inputs)
                return answers
            if circuit.backend == name:
                raise RuntimeError(f"backend: {name!r} cannot run a population of this circuit: {reason}")
        _note(circuit, "eager")
        return map_members(circuit, parameters, inputs)


def _note(circuit: CircuitView, name: str) -> None:
    """Log a change of the backend once."""
    if circuit.chosen_backend != name:
        logger.info("backend: %s", name)
        circuit.chosen_backend = name
