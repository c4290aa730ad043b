"""A state belongs to whoever has it: one that is changed in place changes nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from backends import EVERYWHERE
from torch import Tensor

from papertape import MemoryCircuit, RecurrentCircuit, StackRNN
from papertape.core.circuit import Circuit
from papertape.core.registry import entries
from papertape.core.state import leaves

INPUTS, OUTPUTS, BATCH, STEPS = 3, 2, 2, 4


def ours(kind: str) -> dict[str, Any]:
    """Those of this package, by name; other tests register more."""
    return {name: found for name, found in entries(kind).items() if found.__module__.startswith("papertape.")}


def circuits() -> Iterator[Any]:
    """Every circuit, every memory with and without its words fed back, and every controller."""
    for name, circuit in ours("circuit").items():
        yield pytest.param(circuit, {}, id=name)
    for name in ours("accessor"):
        yield pytest.param(MemoryCircuit, {"accessor": name}, id=f"memory {name}")
        yield pytest.param(MemoryCircuit, {"accessor": name, "read_feedback": False}, id=f"memory {name} not fed back")
    for name in ours("controller"):
        yield pytest.param(RecurrentCircuit, {"controller": name}, id=f"recurrent {name}")


def storages(tensors: list[Tensor]) -> Counter[int]:
    return Counter(tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel())


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("backend", EVERYWHERE)
@pytest.mark.parametrize(("kind", "options"), list(circuits()))
def test_no_part_of_a_state_shares_memory(
    kind: type[Circuit], options: dict[str, Any], backend: str, grad: bool
) -> None:
    circuit = kind(INPUTS, OUTPUTS, backend=backend, **options)
    inputs, state = torch.rand(STEPS, BATCH, INPUTS), circuit.initial_state(BATCH)
    others = [inputs, *circuit.state_dict().values()]
    assert set(storages(leaves(state)).values()) <= {1}
    with torch.set_grad_enabled(grad):
        for run in (circuit, lambda x, state: circuit(x[:1], state), lambda x, state: circuit.step(x[0], state)):
            outputs, after = run(inputs, state)
            held = storages(leaves(after))
            assert set(held.values()) <= {1}
            assert held.keys().isdisjoint(storages([outputs, *others, *leaves(state)]))
            state = after


@pytest.mark.parametrize("backend", EVERYWHERE)
def test_a_memory_emptied_in_place_leaves_what_was_read(backend: str) -> None:
    circuit = StackRNN(INPUTS, OUTPUTS, backend=backend)
    with torch.no_grad():
        _, state = circuit(torch.rand(STEPS, BATCH, INPUTS))
        read = state.reads.clone()
        state.accessor.memory.zero_()
    assert read.any() and torch.equal(state.reads, read)
