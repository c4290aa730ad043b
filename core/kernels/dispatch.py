"""Chooses what runs a sequence: one backend per circuit, device and shape.

A backend is a module with two functions: ``unavailable(circuit, inputs, state)`` says why it cannot run (None when it
can) and ``run(circuit, inputs, state)`` maps inputs ``[T, B, I]`` and a state to features ``[T, B, F]`` and the last
state. Features are the hidden vector and the words read, ``F = hidden_size + R * W``.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from ..members import Stack, dense, map_members
from ..options import check_choice
from ..state import CircuitState
from . import eager, graphs, native, triton
from .formulas import Skipped
from .graphs import BackendError as BackendError
from .trial import Mistrusted

if TYPE_CHECKING:
    from .circuit_view import CircuitView

Backend = Literal["auto", "native", "triton", "graphs", "eager"]

BACKENDS = get_args(Backend)

_MODULES: dict[str, ModuleType] = {
    "native": native,
    "triton": triton,
    "graphs": graphs,
    "eager": eager,
}
_AUTO_ORDER = ("native", "triton", "graphs", "eager")
_POPULATION_ORDER = ("native", "triton", "graphs")

logger = logging.getLogger(__name__)


def check_backend(backend: str) -> None:
    """Raise ValueError naming the allowed backends."""
    check_choice("backend", backend, BACKENDS)


def choose(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> str:
    """Name of the backend that will run these inputs.

    Raises:
        BackendError: the circuit asks for a backend that cannot run here; says why.
    """
    check_backend(circuit.backend)
    if circuit.backend != "auto":
        reason = _MODULES[circuit.backend].unavailable(circuit, inputs, state)
        if reason is not None:
            raise BackendError(f"backend: {circuit.backend!r} cannot run this circuit: {reason}")
        return circuit.backend
    for name in _AUTO_ORDER:
        if _MODULES[name].unavailable(circuit, inputs, state) is None:
            return name
    return "eager"


def run(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState]:
    """Features ``[T, B, F]`` of a sequence and the last state, from the chosen backend."""
    name = choose(circuit, inputs, state)
    if circuit.chosen_backend != name and not torch.compiler.is_compiling():
        fastest = _fastest(inputs)
        _note(circuit, name, fastest, _MODULES[fastest].unavailable(circuit, inputs, state))
    features, state = _MODULES[name].run(circuit, inputs, state)
    return features, state


def step(
    circuit: CircuitView, x: Tensor, state: CircuitState, *, checked: bool
) -> tuple[Tensor, CircuitState, Tensor | None] | None:
    """Features ``[B, F]`` of one step, the next state and outputs by the native backend, where it can and may, or None.

    A step of a sparse memory is a sequence of one step, where no gradient can be due.

    Args:
        circuit: what is run; with another backend than ``auto`` and ``native``, or with :attr:`autocast`, it may not.
        x: ``[B, I]``.
        state: from the last step.
        checked: whether both are known to be what the circuit takes; see :func:`~.native.step`.
    """
    if torch.compiler.is_compiling() or circuit.backend not in ("auto", "native"):
        return None
    if circuit.accessor.kind in native.LOOKUPS:
        inputs = x.unsqueeze(0)
        if not checked or torch.is_grad_enabled() or native.unavailable(circuit, inputs, state) is not None:
            return None
        features, state = native.run(circuit, inputs, state)
        return features[0], state, None
    made = native.step(circuit, x, state, checked)
    if made is not None and circuit.chosen_backend != "native":
        _note(circuit, "native", "native", None)
    return made


def choose_population(circuit: CircuitView, parameters: Mapping[str, Tensor], inputs: Tensor) -> str:
    """Name of the backend that will run a population with these stacked parameters, ``[P, *S]`` by name.

    Raises:
        BackendError: the circuit asks for a backend that runs populations, but not this one; says why.
    """
    check_backend(circuit.backend)
    for name in _POPULATION_ORDER:
        if circuit.backend != name and (circuit.backend != "auto" or name not in _AUTO_ORDER):
            continue
        reason = _MODULES[name].population_unavailable(circuit, parameters, inputs)
        if reason is None:
            return name
        if circuit.backend == name:
            raise BackendError(f"backend: {name!r} cannot run a population of this circuit: {reason}")
    return "eager"


def run_population(circuit: CircuitView, stacks: Mapping[str, Stack], inputs: Tensor) -> Tensor:
    """The answers of P members, each with its own parameters, to the same inputs from their initial states.

    By the first of the native, the Triton and the graphs backend that can, if the circuit asks for it or for ``auto``;
    else eagerly, mapped over the members. Not differentiable.

    Args:
        circuit: what each member is; its own parameters are left alone.
        stacks: of P members for each named parameter.
        inputs: ``[T, B, I]``.

    Returns:
        ``[T, P, B, O]``

    Raises:
        BackendError: the circuit asks for one of these backends, which cannot run this population; says why.
    """
    with torch.no_grad():
        parameters = {name: dense(stack) for name, stack in stacks.items()}
        name = choose_population(circuit, parameters, inputs)
        if circuit.chosen_backend != name:
            fastest = _fastest(inputs)
            _note(circuit, name, fastest, _MODULES[fastest].population_unavailable(circuit, parameters, inputs))
        if name == "eager":
            return map_members(circuit, parameters, inputs)
        answers: Tensor = _MODULES[name].run_population(circuit, parameters, inputs)
        return answers


def _fastest(inputs: Tensor) -> str:
    """The backend that is made for the device of the inputs."""
    return "triton" if inputs.is_cuda else "native"


def _note(circuit: CircuitView, name: str, fastest: str, reason: str | None) -> None:
    """Log a change of the backend; where ``auto`` takes a slower one, with why the fastest cannot run."""
    circuit.chosen_backend = name
    if circuit.backend != "auto" or reason is None:
        logger.info("backend: %s", name)
        return
    if isinstance(reason, (Skipped, Mistrusted)):
        why = f"{fastest}: {reason}; such circuits run on the slower {name} backend"
    elif reason == native.library.load():
        why = f"{reason}; until then circuits run on the slower {name} backend"
    else:
        logger.info("backend: %s (%s: %s)", name, fastest, reason)
        return
    logger.info("backend: %s", name)
    _warn_of_slowness(why)


@functools.cache
def _warn_of_slowness(message: str) -> None:
    """Once for each: library users see warnings, but not what is logged below them."""
    logger.warning("%s", message)
