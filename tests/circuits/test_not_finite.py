"""What is no number stays where it is: one row of a batch, one member of a population."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import papertape
from papertape.agents.population import Population
from papertape.core.circuit import Circuit
from papertape.core.state import leaves, rebuild

STEPS, BATCH, INPUTS, OUTPUTS = 5, 3, 3, 2
CONTROLLERS = ("lstm", "gru", "feedforward", "neat")
MEMORIES = {"ntm": papertape.NTM, "dnc": papertape.DNC, "sam": papertape.SAM, "sdnc": papertape.SDNC}
INFINITE = [pytest.param(value, marks=pytest.mark.slow) for value in (math.inf, -math.inf)]
VALUES = pytest.mark.parametrize("value", [math.nan, *INFINITE])


def build(name: str, backend: str = "auto") -> Circuit:
    """A circuit by its name, ``ntm-lstm``; sparse ones with more slots than a step touches."""
    torch.manual_seed(0)
    kind, _, controller = name.partition("-")
    if kind == "feedforward":
        return papertape.FeedForwardCircuit(INPUTS, OUTPUTS)
    if kind == "neat":
        return papertape.NeatCircuit(INPUTS, OUTPUTS)
    sizes: dict[str, Any] = {"memory_size": 9, "word_size": 4, "backend": backend}
    if controller != "direct":
        sizes["hidden_size"] = 6
    if kind == "tape":
        return papertape.Tape(INPUTS, OUTPUTS, controller=controller, **sizes)
    return MEMORIES[kind](INPUTS, OUTPUTS, controller=controller, **sizes)


RECURRENT = [f"{kind}-{controller}" for kind in MEMORIES for controller in CONTROLLERS]
TAPES = [f"tape-{controller}" for controller in (*CONTROLLERS, "direct")]
ALL = [*RECURRENT, *TAPES, "feedforward", "neat"]
each_circuit = pytest.mark.parametrize("name", ALL)
backends = pytest.mark.parametrize("backend", ["eager", "auto"])


def others(part: Tensor) -> Tensor:
    """All rows but the second, of what has the batch in front."""
    return part[[0, 2]]


@VALUES
@backends
@each_circuit
def test_a_row_stays_alone(name: str, backend: str, value: float) -> None:
    circuit = build(name, backend)
    inputs, state = torch.rand(STEPS, BATCH, INPUTS), circuit.initial_state(BATCH)
    expected, last = circuit(inputs, state)
    spoilt = inputs.clone()
    spoilt[1, 1, 0] = value
    spoilt.requires_grad_(circuit.differentiable)
    outputs, after = circuit(spoilt, state)
    if math.isnan(value):
        assert outputs[1, 1].isnan().all()
    torch.testing.assert_close(others(outputs.transpose(0, 1)), others(expected.transpose(0, 1)))
    for part, reference in zip(leaves(after), leaves(last), strict=True):
        torch.testing.assert_close(others(part), others(reference))
    if circuit.differentiable:
        (gradient,) = torch.autograd.grad(others(outputs.transpose(0, 1)).sum(), spoilt)
        assert gradient[:, [0, 2]].isfinite().all()


@VALUES
@backends
@each_circuit
def test_a_row_of_the_state_stays_alone(name: str, backend: str, value: float) -> None:
    circuit = build(name, backend)
    inputs = torch.rand(STEPS, BATCH, INPUTS)
    _, state = circuit(inputs, circuit.initial_state(BATCH))
    parts = [part.detach() for part in leaves(state)]
    expected, _ = circuit(inputs, rebuild(state, parts))
    for index, part in enumerate(parts):
        if not part.is_floating_point() or not part.numel():
            continue
        spoilt = part.clone()
        spoilt[1].view(-1)[0] = value
        outputs, _ = circuit(inputs, rebuild(state, [*parts[:index], spoilt, *parts[index + 1 :]]))
        torch.testing.assert_close(others(outputs.transpose(0, 1)), others(expected.transpose(0, 1)))


@backends
@pytest.mark.parametrize("name", RECURRENT)
def test_the_gradient_of_a_row_stays_alone(name: str, backend: str) -> None:
    circuit = build(name, backend)
    inputs = torch.rand(STEPS, BATCH, INPUTS, requires_grad=True)
    outputs, _ = circuit(inputs)
    weights = torch.rand(outputs.shape)
    (expected,) = torch.autograd.grad(outputs, inputs, weights, retain_graph=True)
    weights[2, 1] = math.nan
    (gradient,) = torch.autograd.grad(outputs, inputs, weights)
    assert gradient[:3, 1].isnan().any()
    torch.testing.assert_close(others(gradient.transpose(0, 1)), others(expected.transpose(0, 1)))


@VALUES
@each_circuit
def test_a_member_stays_alone(name: str, value: float) -> None:
    circuit = build(name)
    generator = torch.Generator().manual_seed(1)

    def members(parameter: Tensor) -> Tensor:
        return parameter.detach() + 0.1 * torch.randn((4, *parameter.shape), generator=generator)

    stacks = {key: members(parameter) for key, parameter in circuit.named_parameters()}
    inputs = torch.rand(STEPS, BATCH, INPUTS)
    population = Population(circuit)
    expected = population.outputs(stacks, inputs)
    for key, stack in stacks.items():
        spoilt = stack.clone()
        spoilt[1].view(-1)[0] = value
        outputs = population.outputs(stacks | {key: spoilt}, inputs)
        torch.testing.assert_close(outputs[:, [0, 2, 3]], expected[:, [0, 2, 3]])


@pytest.mark.parametrize("name", ["sam-lstm", "sdnc-lstm"])
@pytest.mark.parametrize("slots", [9, 40_000])
def test_slots_are_slots_whatever_they_are_chosen_by(name: str, slots: int) -> None:
    circuit = build(name)
    inputs = torch.full((STEPS, BATCH, INPUTS), math.nan)
    state = circuit.initial_state(BATCH, memory_size=slots)
    for backend in ("eager", "auto"):
        circuit.backend = backend
        _, last = circuit(inputs, state)
        chosen = last.accessor.read_slots
        assert ((chosen >= 0) & (chosen < slots)).all()
        assert all(len(set(head.tolist())) == len(head) for head in chosen.flatten(0, 1))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy says in the interpreter what it met
def test_triton(triton_interpreter: None) -> None:
    for name in ("ntm-lstm", "dnc-lstm"):
        circuit = build(name, "triton")
        inputs = torch.rand(2, BATCH, INPUTS)
        expected, _ = circuit(inputs)
        inputs[0, 1, 0] = math.nan
        outputs, _ = circuit(inputs)
        assert outputs[:, 1].isnan().all()
        torch.testing.assert_close(others(outputs.transpose(0, 1)), others(expected.transpose(0, 1)))


WHOLE: dict[str, Callable[[str], Circuit]] = {
    "transformer": lambda _: papertape.Transformer(INPUTS, OUTPUTS, model_size=8),
    "transformer, short": lambda _: papertape.Transformer(
        INPUTS, OUTPUTS, model_size=8, accessor={"type": "attention", "memory_size": 3}
    ),
    "transformer, delta": lambda _: papertape.Transformer(
        INPUTS, OUTPUTS, model_size=8, controller="convolution", accessor="delta"
    ),
    "attention": lambda backend: whole(backend, type="attention", memory_size=3),
    "delta": lambda backend: whole(backend, type="delta", chunk_size=4),
    "delta, rules": lambda backend: whole(backend, type="delta", chunk_size=2, num_rules=3, decay=True),
}


def whole(backend: str, **accessor: Any) -> Circuit:
    """A circuit of a memory that sees a whole sequence at once."""
    return papertape.MemoryCircuit(INPUTS, OUTPUTS, accessor=accessor, read_feedback=False, backend=backend)


@VALUES
@backends
@pytest.mark.parametrize("name", WHOLE)
def test_earlier_steps_are_as_if_nothing_came_after(name: str, backend: str, value: float) -> None:
    torch.manual_seed(0)
    circuit = WHOLE[name](backend)
    inputs = torch.randn(9, BATCH, INPUTS)
    inputs[5, 1, 0] = value
    outputs, last = circuit(inputs)
    steps, state = [], circuit.initial_state(BATCH)
    for x in inputs:
        y, state = circuit.step(x, state)
        steps.append(y)
    assert outputs[:5].isfinite().all() and (math.isinf(value) or outputs[5, 1].isnan().all())
    torch.testing.assert_close(outputs, torch.stack(steps), equal_nan=True)
    for part, reference in zip(leaves(last), leaves(state), strict=True):
        torch.testing.assert_close(part, reference, equal_nan=True)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_word_that_is_not_finite_in_part_spoils_that_part(value: float) -> None:
    circuit = whole("eager", type="attention", memory_size=4, num_heads=2, value_size=3, key_size=2)
    accessor: Any = circuit.accessor
    hidden, state = torch.randn(6, BATCH, accessor.hidden_size), accessor.initial_state(BATCH)
    with torch.no_grad():
        accessor.interface.parts(accessor.interface.linear.bias)["values"][4] = value  # of the second head
    reads, _ = accessor.run(hidden, state)
    for words, x in zip(reads, hidden, strict=True):
        found, state, _ = accessor(x, state)
        torch.testing.assert_close(words.isfinite(), found.isfinite())
        assert words.isfinite().sum() == words.numel() - BATCH
