"""The backends that the tests of circuits run with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from papertape import DNC, NTM

EVERYWHERE = ["eager", "auto"]
"""The reference, and what users get."""

TRITON = pytest.param("triton", marks=pytest.mark.slow)
"""Kernels for GPUs, in Triton's interpreter."""


def has_triton_kernels(circuit: type) -> bool:
    """Whether the Triton backend runs such circuits; it refuses sparse ones and tapes."""
    return circuit in (NTM, DNC)


def each_circuit_and_backend(
    circuits: Mapping[str, tuple[type, dict[str, Any]]],
    names: Iterable[str] | None = None,
    triton: Iterable[str] | None = None,
) -> pytest.MarkDecorator:
    """Parametrises ``name`` and ``backend``: all circuits, or those named, with every backend that runs them.

    Args:
        circuits: class and options by name.
        names: all if None.
        triton: which of them Triton's interpreter is quick enough for; all that it runs if None.
    """
    names = list(circuits if names is None else names)
    interpreted = [name for name in names if has_triton_kernels(circuits[name][0])] if triton is None else triton
    pairs: list[Any] = [(name, backend) for name in names for backend in EVERYWHERE]
    pairs += [pytest.param(name, *TRITON.values, marks=TRITON.marks) for name in interpreted]
    return pytest.mark.parametrize(("name", "backend"), pairs)


def shape(backend: str, steps: int, batch: int) -> tuple[int, int]:
    """Steps and batch of a test: fewer in the interpreter, where an operation on a row takes tens of microseconds."""
    return (min(steps, 3), min(batch, 2)) if backend == "triton" else (steps, batch)
