"""Checkpointing over chunks of time changes what is kept, not what comes out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from papertape import DNC, NTM, SAM, SDNC, map_state
from papertape.circuits import MemoryCircuit

STEPS, BATCH, INPUTS, OUTPUTS = 7, 3, 4, 2
CIRCUITS: dict[str, tuple[type[MemoryCircuit], dict[str, Any]]] = {
    "ntm": (NTM, {"num_writes": 2, "memory_init": "learned"}),
    "ntm feedforward": (NTM, {"controller": "feedforward"}),
    "dnc gru": (DNC, {"num_reads": 2, "controller": "gru", "num_layers": 2}),
    "sam": (SAM, {"num_reads": 2, "slots_per_read": 2}),
    "sdnc": (SDNC, {"num_reads": 2, "slots_per_read": 2, "links_per_slot": 2}),
}
each_circuit = pytest.mark.parametrize("name", CIRCUITS)
each_backend = pytest.mark.parametrize("backend", ["eager", "auto", pytest.param("triton", marks=pytest.mark.slow)])


def make(name: str, recompute_every: int | None, backend: str = "auto") -> MemoryCircuit:
    torch.manual_seed(2)
    cls, options = CIRCUITS[name]
    sizes = {"hidden_size": 6, "memory_size": 8, "word_size": 3, **options}
    return cls(INPUTS, OUTPUTS, recompute_every=recompute_every, backend=backend, **sizes).double()


def sequence(steps: int = STEPS) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(steps, BATCH, INPUTS, generator=generator, dtype=torch.float64, requires_grad=True)


def results(circuit: MemoryCircuit, inputs: Tensor) -> list[Tensor]:
    """Outputs and last memory of a sequence that goes on from a state with a past, and all gradients."""
    _, state = circuit(inputs[:2])
    outputs, state = circuit(inputs[2:], state)
    loss = (outputs * torch.linspace(-1, 1, OUTPUTS)).sum() + state.accessor.memory.square().sum() + state.reads.sum()
    return [outputs, state.accessor.memory, *torch.autograd.grad(loss, [inputs, *circuit.parameters()])]


@pytest.mark.parametrize("backend", ["eager", "auto"])
@pytest.mark.parametrize("every", [1, 2, 3, 99])
@each_circuit
def test_same_outputs_states_and_gradients(name, every, backend):
    for one, other in zip(
        results(make(name, every, backend), sequence()), results(make(name, None, backend), sequence()), strict=True
    ):
        torch.testing.assert_close(one, other)


@each_circuit
def test_each_chunk_runs_twice_in_training_and_once_otherwise(name):
    circuit, calls = make(name, 3, "eager"), []
    circuit.controller.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    outputs, _ = circuit(sequence())
    assert calls == [False] * STEPS
    outputs.sum().backward()
    assert calls == [False] * STEPS + [True] * STEPS
    with torch.no_grad():
        circuit(sequence())
    assert len(calls) == 3 * STEPS


@pytest.mark.parametrize("name", ["ntm", "dnc gru"])
def test_keeps_the_state_between_chunks_only(name):
    kept = []
    for every in (None, 5):
        storages: dict[int, Any] = {}

        def pack(tensor: Tensor, storages: dict[int, Any] = storages) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            make(name, every, "eager")(sequence(60))
        kept.append(sum(tensor.untyped_storage().nbytes() for tensor in storages.values()))
    assert kept[1] < kept[0] / 8


@each_circuit
def test_trace_and_state_are_those_without(name):
    plain, chunked = make(name, None), make(name, 2)
    one, other = (circuit(sequence(), trace=True)[2] for circuit in (plain, chunked))
    assert list(one) == list(other) and len(one) > 3
    assert all(torch.equal(one[name], other[name]) for name in one)
    states = [circuit(sequence())[1] for circuit in (plain, chunked)]
    map_state(lambda one, other: torch.testing.assert_close(one, other) or one, *states)


def test_frozen_parameters_and_backward_twice():
    circuit, plain = make("ntm", 2), make("ntm", None)
    for each in (circuit, plain):
        each.controller.requires_grad_(False)
    gradients = []
    for each in (circuit, plain):
        loss = each(sequence())[0].square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        gradients.append([parameter.grad for parameter in each.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)


def test_autocast_holds_when_a_chunk_runs_again():
    circuit, types = make("ntm", 2, "eager").float(), []
    layer = next(module for module in circuit.controller.modules() if isinstance(module, nn.Linear))
    layer.register_forward_hook(lambda _module, _arguments, result: types.append(result.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, _ = circuit(sequence().float())
    outputs.float().sum().backward()
    assert types == [torch.bfloat16] * (2 * STEPS)


@pytest.mark.parametrize("training", [True, False])
def test_a_mode_that_changed_before_the_backward_pass(training):
    gradients = []
    for every in (2, None):
        torch.manual_seed(0)
        circuit = NTM(INPUTS, OUTPUTS, hidden_size=6, num_layers=2, dropout=0.5, recompute_every=every).train(training)
        outputs, _ = circuit(sequence().float())
        circuit.train(not training)
        outputs.square().sum().backward()
        assert all(part.training == (not training) for part in circuit.modules())
        gradients.append([parameter.grad for parameter in circuit.parameters() if parameter.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1])


def doubled(circuit: MemoryCircuit) -> dict[str, Tensor]:
    return {name: (2 * parameter.detach()).requires_grad_() for name, parameter in circuit.named_parameters()}


@each_backend
@each_circuit
def test_gradients_reach_the_weights_of_a_functional_call(name, backend, request):
    if backend == "triton":
        if CIRCUITS[name][0] not in (NTM, DNC):
            pytest.skip("Triton has no such kernels")
        request.getfixturevalue("triton_interpreter")

    def gradients(every: int | None) -> tuple[Tensor, ...]:
        circuit = make(name, every, backend)
        weights = doubled(circuit)
        # One weight depends on another: what goes through it must not be counted twice.
        weights["output.bias"] = weights["accessor.interface.linear.bias"][:OUTPUTS] + weights["output.bias"]
        weights["controller.inputs.0.bias"] = 3 * weights["controller.inputs.0.weight"].sum(1)
        given = [weight for weight in weights.values() if weight.is_leaf]
        inputs = sequence(3 if backend == "triton" else STEPS)
        outputs, _ = torch.func.functional_call(circuit, weights, (inputs,))
        return torch.autograd.grad(outputs.square().sum(), given)

    for one, other in zip(gradients(2), gradients(None), strict=True):
        torch.testing.assert_close(one, other)


@each_circuit
def test_weights_that_changed_in_place_are_refused(name):
    circuit = make(name, 2)
    loss = circuit(sequence())[0].square().sum()
    with torch.no_grad():
        circuit.controller.inputs[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_parametrized_and_shared_weights_and_their_hooks(backend):
    gradients = []
    for every in (None, 2):
        circuit = make("dnc gru", every, backend)
        circuit.controller.recurrents[1].weight = circuit.controller.recurrents[0].weight
        circuit.controller.other_name = circuit.controller.inputs[1]
        torch.nn.utils.parametrizations.weight_norm(circuit.controller.inputs[0])
        circuit.accessor.interface.linear.bias.register_hook(lambda gradient: 10 * gradient)
        circuit(sequence())[0].square().sum().backward()
        assert isinstance(circuit.controller.other_name.bias, nn.Parameter)
        gradients.append({name: parameter.grad for name, parameter in circuit.named_parameters()})
    assert not gradients[1].keys() ^ gradients[0].keys() and "controller.recurrents.1.weight" not in gradients[0]
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradients[1][name], gradient)


def test_threads_that_share_a_circuit():
    circuit, inputs = make("ntm", 2), sequence(12).detach()
    before = dict(circuit.named_parameters())

    def gradients(_: int = 0) -> tuple[Tensor, ...]:
        return torch.autograd.grad(circuit(inputs)[0].square().sum(), list(before.values()))

    expected = gradients()
    with ThreadPoolExecutor(4) as pool:
        for made in pool.map(gradients, range(16)):
            torch.testing.assert_close(made, expected)
    after = dict(circuit.named_parameters())
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)


def test_weights_that_a_circuit_of_ones_own_adds():
    class Scaled(NTM):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.scale = nn.Parameter(torch.tensor(0.5))

        def transition(self, x: Tensor, state: Any) -> Any:
            return super().transition(self.scale * x, state)

    gradients = []
    for every in (None, 2):
        torch.manual_seed(0)
        circuit = Scaled(INPUTS, OUTPUTS, hidden_size=6, recompute_every=every, backend="eager").double()
        circuit(sequence())[0].square().sum().backward()
        gradients.append(circuit.scale.grad)
    torch.testing.assert_close(*gradients)


def test_under_transforms_nothing_is_cut():
    circuit = make("ntm", 2)
    parameters = dict(circuit.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(circuit, parameters, (sequence(),))[0].square().sum()

    expected = torch.autograd.grad(loss(parameters), list(parameters.values()), allow_unused=True)
    for one, other in zip(torch.func.grad(loss)(parameters).values(), expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True])
def test_wrong_numbers_of_steps_are_named(wrong):
    with pytest.raises(ValueError, match="recompute_every: got"):
        make("ntm", wrong)
