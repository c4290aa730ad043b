"""Circuits that are a controller alone: the references of every table."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import papertape
from papertape import GRU, LSTM, RecurrentCircuit
from papertape.core.controllers import DirectController
from papertape.core.state import leaves


@pytest.mark.parametrize(
    ("circuit", "reference"),
    [
        (LSTM(3, 2, hidden_size=5, num_layers=2), nn.LSTM(3, 5, 2)),
        (GRU(3, 2, hidden_size=5), nn.GRU(3, 5)),
        (RecurrentCircuit(3, 2, controller={"type": "rnn", "hidden_size": 5}), nn.RNN(3, 5)),
        (
            RecurrentCircuit(3, 2, controller={"type": "rnn", "hidden_size": 5, "nonlinearity": "relu"}, clip=None),
            nn.RNN(3, 5, nonlinearity="relu"),
        ),
    ],
    ids=["lstm", "gru", "rnn", "relu"],
)
def test_they_are_those_of_torch_with_an_output_layer(circuit: Any, reference: Any) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in range(circuit.controller.num_layers):
            for ours, theirs in (("inputs", "ih"), ("recurrents", "hh")):
                own = getattr(circuit.controller, ours)[layer]
                getattr(reference, f"weight_{theirs}_l{layer}").copy_(own.weight)
                getattr(reference, f"bias_{theirs}_l{layer}").copy_(own.bias)
    inputs = torch.randn(6, 4, 3)
    outputs, state = circuit(inputs)
    hidden, last = reference(inputs)
    torch.testing.assert_close(outputs, circuit.output(hidden))
    last = last[0] if isinstance(last, tuple) else last
    torch.testing.assert_close(state.hidden, last.transpose(0, 1))


def test_steps_halves_lengths_and_populations() -> None:
    torch.manual_seed(0)
    circuit = LSTM(3, 2, hidden_size=5, dtype=torch.float64)
    inputs = torch.randn(6, 2, 3, dtype=torch.float64)
    outputs, last = circuit(inputs)
    state, steps = None, []
    for x in inputs:
        y, state = circuit.step(x, state)
        steps.append(y)
    torch.testing.assert_close(outputs, torch.stack(steps))
    for one, other in zip(leaves(last), leaves(state), strict=True):
        torch.testing.assert_close(one, other)
    first, middle = circuit(inputs[:2])
    torch.testing.assert_close(torch.cat([first, circuit(inputs[2:], middle)[0]]), outputs)
    short, _ = circuit(inputs, lengths=[6, 3])
    torch.testing.assert_close(short[:3], outputs[:3])
    assert not short[3:, 1].any()
    stacks = {name: torch.stack([part.detach(), 2 * part.detach()]) for name, part in circuit.named_parameters()}
    torch.testing.assert_close(circuit.run_population(stacks, inputs)[:, 0], outputs.detach())


def test_wrong_controllers_are_refused() -> None:
    with pytest.raises(ValueError, match="controller: its input_size is 4; expected 3, the circuit's input_size"):
        RecurrentCircuit(3, 2, controller=DirectController(4))
    with pytest.raises(TypeError, match="controller"):
        LSTM(3, 2, controller="gru")
    with pytest.raises(ValueError, match="dropout: got 0.5; it is between layers, allowed with num_layers 1: 0"):
        GRU(3, 2, dropout=0.5)


def test_lower_precision_keeps_the_types_of_outputs_and_states() -> None:
    circuit = RecurrentCircuit(3, 2, controller={"type": "rnn", "hidden_size": 5})
    expected, _ = circuit(torch.ones(4, 2, 3))
    circuit.autocast = torch.bfloat16
    outputs, state = circuit(torch.ones(4, 2, 3))
    assert outputs.dtype == state.hidden.dtype == torch.float32
    torch.testing.assert_close(outputs, expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("how", ["hook", "forward", "subclass"])
@pytest.mark.parametrize("build", ["recurrent", "memory", "transformer"])
def test_a_controller_with_a_way_through_whole_sequences_that_is_changed(how: str, build: str) -> None:
    torch.manual_seed(0)
    kinds: dict[str, Any] = {
        "recurrent": papertape.RecurrentCircuit,
        "memory": partial(papertape.MemoryCircuit, accessor="delta", read_feedback=False),
        "transformer": papertape.Transformer,
    }
    circuit = kinds[build](3, 2, controller={"type": "convolution"})
    controller = circuit.layers[0].controller if build == "transformer" else circuit.controller
    inputs = torch.randn(5, 2, 3)
    before, plain = controller.forward, circuit(inputs)[0]

    def changed(x: Tensor, state: Any) -> Any:
        hidden, after = before(x, state)
        return hidden * 2, after

    if how == "hook":
        controller.register_forward_hook(lambda module, given, made: (made[0] * 2, made[1]))
    elif how == "forward":
        controller.forward = changed
    else:
        controller.__class__ = type("Own", (type(controller),), {"forward": lambda self, *given: changed(*given)})
    whole, state = circuit(inputs)[0], None
    for x, expected in zip(inputs, whole, strict=True):
        outputs, state = circuit.step(x, state)
        torch.testing.assert_close(outputs, expected)
    assert not torch.allclose(whole, plain, atol=1e-3)
    torch.testing.assert_close(circuit(inputs, at=torch.tensor([[4, 1]]))[0][0, 0], whole[4, 0])
    torch.testing.assert_close(circuit(inputs, trace=True)[0], whole)
