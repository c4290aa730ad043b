"""The circuit that is a network of any topology, and NTMs driven by such a controller."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from papertape import NTM
from papertape.circuits import NeatCircuit
from papertape.core.controllers import NeatController


def recurrent_circuit() -> NeatCircuit:
    torch.manual_seed(0)
    circuit = NeatCircuit(2, 1, max_nodes=3)
    with torch.no_grad():
        circuit.network.hidden_weight[0] = torch.tensor([0.0, 1.0, 0.5, 0.7, 0.0, 0.0, -0.3])
        circuit.network.output_weight[0, 3] = 1.5
    return circuit


def test_a_sequence_in_parts_is_the_whole():
    circuit, inputs = recurrent_circuit(), torch.randn(6, 3, 2)
    whole, last = circuit(inputs)
    first, state = circuit(inputs[:2])
    second, state = circuit(inputs[2:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(state.values, last.values)
    assert not torch.allclose(circuit(inputs[2:])[0], second), "recurrent connections carry something"


def test_answers_are_logits():
    circuit = recurrent_circuit()
    with torch.no_grad():
        circuit.network.output_weight[0, 0] = 9.0
    assert circuit(torch.zeros(1, 1, 2))[0].item() > 8


def test_learns_by_backprop_and_keeps_its_topology():
    circuit, inputs = recurrent_circuit(), torch.randn(5, 8, 2)
    connected = [parameter != 0 for parameter in circuit.parameters()]
    optimiser = torch.optim.Adam(circuit.parameters(), lr=0.05, weight_decay=0.01)
    losses = []
    for _ in range(60):
        loss = (circuit(inputs)[0].squeeze(2) - inputs.sum(2).roll(1, 0) * 0.5).square()[1:].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    for parameter, mask in zip(circuit.parameters(), connected, strict=True):
        assert torch.equal(parameter != 0, mask)


def test_a_controller_is_given_by_its_options():
    options = NeatController.Options(hidden_size=5, max_nodes=3, activation="relu")
    circuit = NTM(4, 2, controller=options, memory_size=6, word_size=3)
    assert circuit.controller.network.max_nodes == 3
    assert circuit.controller.network.activation == "relu"
    assert circuit.controller.hidden_size == 5
    assert circuit(torch.zeros(3, 2, 4))[0].shape == (3, 2, 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_nodes": 0}, "max_nodes: got 0"),
        ({"activation": "step"}, "activation: got 'step'; allowed: 'tanh', 'relu', 'sigmoid' or 'steep-sigmoid'"),
        ({"backend": "native"}, "backend: got 'native'; allowed: auto, eager"),
        ({"input_size": 0}, "input_size: got 0"),
    ],
)
def test_wrong_arguments_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        NeatCircuit(**{"input_size": 2, "output_size": 1, **wrong})


@pytest.mark.parametrize("wrong", [{"max_nodes": 0}, {"activation": "step"}, {"hidden_sizes": [3]}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ValidationError) as caught:
        NeatCircuit.Options(**wrong)
    assert caught.value.errors()[0]["loc"][0] in wrong
    with pytest.raises(ValidationError):
        NeatController.Options(num_layers=2)
