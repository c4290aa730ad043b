"""Kernels run no modules: where users have put code of their own into one, something else runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.modules import module as of_all_modules

from papertape import DNC, NTM
from papertape.circuits import MemoryCircuit
from papertape.core.kernels import native, triton

STEPS, BATCH, INPUTS, OUTPUTS = 3, 2, 4, 2


def make(circuit: type[MemoryCircuit] = NTM) -> MemoryCircuit:
    torch.manual_seed(0)
    return circuit(INPUTS, OUTPUTS, hidden_size=4, memory_size=5, word_size=3)


def refused(circuit: MemoryCircuit) -> bool:
    """Whether every kernel stands aside, for single circuits and for populations."""
    inputs, state = torch.zeros(STEPS, BATCH, INPUTS), circuit.initial_state(BATCH)
    parameters = {name: torch.stack([part, part]) for name, part in circuit.named_parameters()}
    return (
        native.unavailable(circuit, inputs, state) is not None
        and triton.unavailable(circuit, inputs, state) is not None
        and native.population_unavailable(circuit, parameters, inputs) is not None
        and triton.population_unavailable(circuit, parameters, inputs) is not None
    )


@pytest.mark.filterwarnings("ignore:Full backward hook")  # where a module's inputs have no gradient
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_on_all_modules(kind: str) -> None:
    circuit, seen = make(), set()
    register = getattr(of_all_modules, f"register_module_{kind}_hook")
    handle = register(lambda module, *_: seen.add(module) and None)
    try:
        assert refused(circuit)
        inputs = torch.zeros(STEPS, BATCH, INPUTS, requires_grad=True)
        circuit(inputs)[0].sum().backward()
    finally:
        handle.remove()
    assert {circuit.controller, circuit.accessor, circuit.accessor.interface.linear, circuit.output} <= seen


@pytest.mark.parametrize("part", ["controller", "controller.inputs.0", "accessor", "accessor.interface"])
@pytest.mark.parametrize("circuit", [NTM, DNC])
def test_a_forward_that_was_replaced(circuit: type[MemoryCircuit], part: str) -> None:
    built, calls = make(circuit), []
    module = built.get_submodule(part)
    own = module.forward

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return own(*arguments)

    module.forward = counted
    built(torch.zeros(STEPS, BATCH, INPUTS))
    assert len(calls) == STEPS


def replaced_on_the_class() -> MemoryCircuit:
    class Forgetful(NTM):
        def transition(self, x: Tensor, state: Any) -> Any:
            return super().transition(0 * x, state)

    return make(Forgetful)


def replaced_on_the_instance() -> MemoryCircuit:
    circuit = make()
    own = circuit.transition
    circuit.transition = lambda x, state: own(0 * x, state)
    return circuit


@pytest.mark.parametrize("build", [replaced_on_the_class, replaced_on_the_instance])
def test_a_transition_that_was_replaced(build: Callable[[], MemoryCircuit]) -> None:
    circuit = build()
    assert refused(circuit)
    inputs = torch.rand(STEPS, BATCH, INPUTS)
    assert torch.equal(circuit(inputs)[0], circuit(torch.zeros_like(inputs))[0])
