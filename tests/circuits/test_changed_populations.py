"""A population answers as its members do alone, whatever a class of one's own, a hook or a parametrisation changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import papertape
from papertape.circuits.feedforward import FeedForwardCircuit
from papertape.circuits.neat import NeatCircuit
from papertape.circuits.normalised import NormalisedCircuit
from papertape.circuits.tape import Tape
from papertape.core.circuit import Circuit
from papertape.core.members import dense

MEMBERS, STEPS, BATCH, INPUTS, OUTPUTS = 3, 5, 2, 4, 2
KINDS: dict[str, tuple[type[Circuit], dict[str, Any]]] = {
    "feedforward": (FeedForwardCircuit, {"hidden_sizes": [6]}),
    "lstm": (papertape.LSTM, {"hidden_size": 6}),
    "neat": (NeatCircuit, {}),
    "tape": (Tape, {}),
    "ntm": (papertape.NTM, {"hidden_size": 6, "memory_size": 8, "word_size": 3}),
    "dnc": (papertape.DNC, {"hidden_size": 6, "memory_size": 8, "word_size": 3}),
    "normalised": (NormalisedCircuit, {"circuit": {"type": "feedforward", "hidden_sizes": [6]}}),
}
each_kind = pytest.mark.parametrize("name", KINDS)


def twice(given: Any) -> Any:
    """Outputs times two, whatever else was given with them."""
    return (given[0] * 2, *given[1:]) if isinstance(given, tuple) else given * 2


def made(name: str, **methods: Callable[..., Any]) -> Circuit:
    """A circuit of that kind, or of a class of one's own that is derived from it."""
    kind, options = KINDS[name]
    torch.manual_seed(0)
    return type(kind.__name__, (kind,), methods)(INPUTS, OUTPUTS, **options)


def assert_members_answer_as_they_do_alone(circuit: Circuit, plain: Circuit) -> None:
    """Each member against the circuit with its weights; which are not what the kind itself answers."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.rand(STEPS, BATCH, INPUTS, generator=generator)
    given = inputs.transpose(0, 1) if circuit.batch_first else inputs
    stacks = {
        name: parameter.detach() + 0.3 * torch.rand(MEMBERS, *parameter.shape, generator=generator)
        for name, parameter in circuit.named_parameters()
    }
    alone = []
    with torch.no_grad():
        found = circuit.run_population(stacks, inputs)
        for member in range(MEMBERS):
            torch.nn.utils.vector_to_parameters(
                torch.cat([dense(stack)[member].flatten() for stack in stacks.values()]), circuit.parameters()
            )
            outputs = circuit(given)[0]
            alone.append(outputs.transpose(0, 1) if circuit.batch_first else outputs)
    torch.testing.assert_close(found, torch.stack(alone, 1), rtol=1e-4, atol=1e-5)
    if circuit is not plain and [*plain.state_dict()] == [*circuit.state_dict()]:
        plain.load_state_dict(circuit.state_dict())
        with torch.no_grad():
            assert not torch.allclose(plain(inputs)[0], alone[-1], atol=1e-3)


def inherited(name: str, method: str) -> Callable[..., Any]:
    written: Callable[..., Any] = getattr(KINDS[name][0], method)
    return written


@each_kind
def test_as_it_is(name: str) -> None:
    circuit = made(name)
    assert_members_answer_as_they_do_alone(circuit, circuit)


@each_kind
@pytest.mark.parametrize("method", ["run", "forward"])
def test_a_method_of_a_class_of_ones_own(name: str, method: str) -> None:
    before = inherited(name, method)
    circuit = made(name, **{method: lambda *given, **options: twice(before(*given, **options))})
    assert_members_answer_as_they_do_alone(circuit, made(name))


@pytest.mark.parametrize("name", ["tape", "ntm", "dnc"])
@pytest.mark.parametrize("method", ["answer", "transition"])
@pytest.mark.parametrize("on_object", [False, True])
def test_parts_of_a_step(name: str, method: str, on_object: bool) -> None:
    before = inherited(name, method)
    if on_object:
        circuit = made(name)
        setattr(circuit, method, lambda *given: twice(before(circuit, *given)))
    else:
        circuit = made(name, **{method: lambda *given: twice(before(*given))})
    assert_members_answer_as_they_do_alone(circuit, made(name))


@pytest.mark.parametrize("method", ["_passed_on", "_activate", "_standardise"])
def test_parts_of_a_layer(method: str) -> None:
    before = inherited("feedforward", method)
    circuit = made("feedforward", **{method: lambda *given: twice(before(*given))})
    assert_members_answer_as_they_do_alone(circuit, made("feedforward"))


@each_kind
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_hook_on_the_circuit(name: str, batch_first: bool) -> None:
    circuit = made(name)
    circuit.batch_first = batch_first
    circuit.register_forward_hook(lambda module, given, answered: twice(answered))
    assert_members_answer_as_they_do_alone(circuit, made(name))


LAYERS = [(name, layer) for name in KINDS for layer, part in made(name).named_modules() if isinstance(part, nn.Linear)]


@pytest.mark.parametrize(("name", "layer"), LAYERS)
def test_a_hook_on_a_layer(name: str, layer: str) -> None:
    circuit = made(name)
    circuit.get_submodule(layer).register_forward_hook(lambda module, given, answered: answered * 2 + 1)
    assert_members_answer_as_they_do_alone(circuit, made(name))


@pytest.mark.parametrize(("name", "layer"), LAYERS)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_a_parametrised_layer(name: str, layer: str) -> None:
    circuit = made(name)
    parametrizations.weight_norm(circuit.get_submodule(layer))
    assert_members_answer_as_they_do_alone(circuit, made(name))


BIASED = [(name, layer) for name, layer in LAYERS if name != "lstm"]


@pytest.mark.parametrize(("name", "layer"), BIASED)
def test_a_layer_without_biases(name: str, layer: str) -> None:
    circuit = made(name)
    circuit.get_submodule(layer).bias = None
    assert_members_answer_as_they_do_alone(circuit, made(name))


@pytest.mark.parametrize("change", ["hook", "forward"])
def test_what_is_changed_within_a_normalised_circuit(change: str) -> None:
    circuit = made("normalised")
    if change == "hook":
        circuit.circuit.register_forward_hook(lambda module, given, answered: twice(answered))
    else:
        before = circuit.circuit.forward
        circuit.circuit.forward = lambda *given, **options: twice(before(*given, **options))
    assert_members_answer_as_they_do_alone(circuit, made("normalised"))
    inputs = torch.rand(STEPS, BATCH, INPUTS)
    torch.testing.assert_close(circuit(inputs, trace=True)[0], circuit(inputs)[0])


@pytest.mark.parametrize("name", ["feedforward", "tape", "ntm"])
def test_another_last_layer(name: str) -> None:
    circuit = made(name)
    own = nn.Sequential(circuit.layers[-1] if name == "feedforward" else circuit.output, nn.Tanh())
    if name == "feedforward":
        circuit.layers[-1] = own
    else:
        circuit.output = own
    assert_members_answer_as_they_do_alone(circuit, made(name))


@pytest.mark.parametrize("name", ["feedforward", "lstm", "ntm", "dnc"])
def test_steps_that_are_picked_and_traces_know_a_run_of_ones_own(name: str) -> None:
    before = inherited(name, "run")
    circuit = made(name, run=lambda *given: twice(before(*given)))
    inputs = torch.rand(STEPS, BATCH, INPUTS)
    at = torch.tensor([[0, 1], [4, 2]])
    whole = circuit(inputs)[0]
    torch.testing.assert_close(circuit(inputs, at=at)[0], whole.gather(0, at.unsqueeze(-1).expand(-1, -1, OUTPUTS)))
    torch.testing.assert_close(circuit(inputs, trace=True)[0], whole)
