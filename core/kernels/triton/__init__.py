"""The Triton backend, for GPUs: a whole sequence in one kernel where it fits; else kernels per step, in a CUDA graph.

Triton is an optional dependency, which comes with torch where torch is built for CUDA: nothing here imports it before
it is needed. Without a GPU, kernels run in Triton's interpreter (TRITON_INTERPRET=1), slowly and only when asked for.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ... import install
from ...state import CircuitState
from .. import guard, trial
from ..formulas import other_constants
from ..transforms import transforms_functions

if TYPE_CHECKING:
    from ..circuit_view import CircuitView

LARGEST: guard.Options = {
    "word_size": guard.up_to(1024),
    "num_reads": guard.up_to(16),
    "num_writes": guard.up_to(16),
}
"""What the kernels hold in registers or unroll."""

ACCESSORS: dict[str, guard.Options] = {
    "static": {**guard.STATIC, **LARGEST, "shift_range": guard.up_to(32)},
    "dynamic": {**guard.DYNAMIC, **LARGEST},
}
"""What the kernels understand."""

TRIAL_STEPS = 11
"""More than between two memories that a kernel keeps."""

LARGEST_TRIAL = 512
"""Slots of a memory up to which a trial has the circuit's own sizes: eager steps keep links of all steps in float64."""

OLDEST_CAPABILITY = (7, 0)
"""NVIDIA GPUs that Triton compiles for: Volta and newer."""


def unavailable(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> str | None:
    """Why the Triton backend cannot run these inputs, or None."""
    reason = (
        _unavailable_device(inputs.device, asked_for=circuit.backend == "triton")
        or guard.unavailable_here(inputs.device)
        or other_constants()
        or ("it has no rule for torch.func transforms" if transforms_functions() else None)
        or _known(circuit).unavailable(circuit, inputs, state)
        or _unfit_modules(circuit, inputs, state)
        or _unavailable_triton(inputs.device)
    )
    if reason is not None or circuit.backend != "auto":
        return reason
    from . import sequences, steps

    whole = sequences.unavailable(circuit, state) is None
    way, tried = ("triton sequence", sequences.run) if whole else ("triton steps", steps.run)
    accessor: Any = circuit.accessor
    steps_of_trial = TRIAL_STEPS if accessor.memory_size <= LARGEST_TRIAL else None
    return trial.mistrusted(way, identity, tried, circuit, _known(circuit), inputs, steps_of_trial)


def _known(circuit: CircuitView) -> guard.Known:
    return guard.known("triton", circuit, ACCESSORS, None)


@functools.cache
def identity() -> str:
    """Short hash of the kernels' sources."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _unavailable_device(device: torch.device, *, asked_for: bool) -> str | None:
    if device.type not in ("cpu", "cuda"):
        return f"it runs on GPUs that torch calls cuda; inputs are on {device}"
    if device.type == "cpu":
        if os.environ.get("TRITON_INTERPRET") != "1":
            return (
                "it runs on GPUs, and inputs are on the CPU (TRITON_INTERPRET=1 interprets its kernels there, slowly)"
            )
        return None if asked_for else "interpreted kernels are slow: they run only when asked for"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < OLDEST_CAPABILITY:
        return f"Triton needs compute capability 7.0; {torch.cuda.get_device_name(device)} is older"
    return None


def _unfit_modules(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> str | None:
    """Why what the controller carries, or the parameters, cannot be read, or None; a controller may carry anything."""
    named = dict(state.controller._asdict()) if hasattr(state.controller, "_asdict") else {}
    for part in ("controller", "accessor"):
        named |= {f"{part}.{name}": tensor for name, tensor in getattr(circuit, part).named_parameters()}
    named = {name: tensor for name, tensor in named.items() if isinstance(tensor, Tensor) and tensor.numel()}
    return guard.unfit(named.values(), [(name, tuple(tensor.shape)) for name, tensor in named.items()], inputs)


@functools.lru_cache
def _unavailable_triton(device: torch.device) -> str | None:
    """Why Triton does not work here: it may be missing, or lack the C compiler that it builds its launcher with."""
    if importlib.util.find_spec("triton") is None:
        return f"Triton is not installed (on Linux, {install.here(install.TRITON)})"
    try:
        from .content import content_weights
        from .launch import interpreted

        if device.type == "cpu" and not interpreted():
            return "TRITON_INTERPRET was set after Triton was imported"
        if device.type != "cpu" and interpreted():
            return "TRITON_INTERPRET is set: it would interpret its kernels on the CPU"
        if interpreted() and _version("triton") < (3, 7) and _version("numpy") >= (2, 4):
            return "Triton before 3.7 interprets kernels with NumPy before 2.4 only (pip install 'numpy<2.4')"
        ones = torch.ones(1, 1, 1, device=device)
        content_weights(ones, ones, ones[0])
    except Exception as error:
        return f"Triton does not work on {device}: {type(error).__name__}: {error}"
    return None


def _version(package: str) -> tuple[int, ...]:
    """Its first two numbers."""
    return tuple(map(int, importlib.metadata.version(package).split(".")[:2]))


def run(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState]:
    """Features ``[T, B, F]`` and the last state."""
    from .. import graphs
    from . import sequences, steps

    if sequences.unavailable(circuit, state) is None:
        return sequences.run(circuit, inputs, state)
    if not inputs.is_cuda:
        return steps.run(circuit, inputs, state)
    return graphs.run_recorded(steps.run, circuit, inputs, state)


def population_unavailable(circuit: CircuitView, parameters: Mapping[str, Tensor], inputs: Tensor) -> str | None:
    """Why the Triton backend cannot run a population, or None."""
    built: Any = circuit
    state = built.initial_state(inputs.shape[1])
    reason = unavailable(circuit, inputs, state)
    if reason is not None:
        return reason
    from . import sequences

    own = {name: parameter for name, parameter in built.named_parameters() if parameter.numel()}
    return (
        guard.unfit_population(circuit, own, parameters, inputs)
        or sequences.unavailable(circuit, state)
        or trial.mistrusted_population(
            "triton", identity, sequences.run_population, circuit, _known(circuit), inputs, TRIAL_STEPS
        )
    )


def run_population(circuit: CircuitView, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """The answers of P members with parameters ``[P, *S]`` to the same inputs ``[T, B, I]``: ``[T, P, B, O]``."""
    from . import sequences

    return sequences.run_population(circuit, parameters, inputs)
