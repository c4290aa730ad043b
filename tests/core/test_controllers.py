"""Controllers against torch.nn with the same weights, their clipping and their states."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from papertape.core.controllers import (
    Controller,
    DirectController,
    FeedForwardController,
    GRUController,
    LSTMController,
    NeatController,
)
from papertape.core.registry import lookup
from papertape.core.state import map_state

CONTROLLERS: dict[str, type[Controller]] = {
    "lstm": LSTMController,
    "gru": GRUController,
    "feedforward": FeedForwardController,
    "neat": NeatController,
    "direct": DirectController,
}
each_controller = pytest.mark.parametrize("name", CONTROLLERS)


def made(name: str, **more: float) -> Controller:
    """A controller of 4 inputs and 6 units, in two layers where it can have them."""
    sizes = {"hidden_size": 6, "num_layers": 2}
    known = CONTROLLERS[name].Options.model_fields
    return CONTROLLERS[name](4, **{size: value for size, value in sizes.items() if size in known}, **more)


def copy_weights(controller: LSTMController | GRUController, reference: nn.RNNBase) -> None:
    with torch.no_grad():
        for layer, (inputs, recurrents) in enumerate(zip(controller.inputs, controller.recurrents, strict=True)):
            getattr(reference, f"weight_ih_l{layer}").copy_(inputs.weight)
            getattr(reference, f"bias_ih_l{layer}").copy_(inputs.bias)
            getattr(reference, f"weight_hh_l{layer}").copy_(recurrents.weight)
            getattr(reference, f"bias_hh_l{layer}").copy_(recurrents.bias)


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize(("cls", "reference"), [(LSTMController, nn.LSTM), (GRUController, nn.GRU)])
def test_gated_controllers_equal_torch_nn(cls, reference, num_layers):
    controller, peer = cls(4, hidden_size=6, num_layers=num_layers).double(), reference(4, 6, num_layers).double()
    copy_weights(controller, peer)
    inputs = torch.randn(9, 3, 4, dtype=torch.float64)
    expected, last = peer(inputs)
    state, outputs = controller.initial_state(3), []
    for x in inputs:
        hidden, state = controller(x, state)
        outputs.append(hidden)
    torch.testing.assert_close(torch.stack(outputs), expected)
    for part, value in zip(state, last if isinstance(last, tuple) else (last,), strict=True):
        torch.testing.assert_close(part, value.transpose(0, 1))


@pytest.mark.parametrize("num_layers", [1, 2])
def test_feedforward_is_tanh_layers_without_a_state(num_layers):
    controller = FeedForwardController(4, hidden_size=6, num_layers=num_layers)
    x = torch.randn(3, 4)
    hidden, state = controller(x, controller.initial_state(3))
    expected = x
    for layer in controller.inputs:
        expected = torch.tanh(layer(expected))
    torch.testing.assert_close(hidden, expected)
    assert state == () and controller.initial_state(3) == ()


@pytest.mark.parametrize(("cls", "reference"), [(LSTMController, nn.LSTM), (GRUController, nn.GRU)])
def test_gated_controllers_start_as_torch_nn(cls, reference):
    controller, peer = cls(4, hidden_size=100, num_layers=2), reference(4, 100, 2)
    assert sum(map(torch.Tensor.numel, controller.parameters())) == sum(map(torch.Tensor.numel, peer.parameters()))
    for parameter in controller.parameters():
        assert parameter.abs().max() <= 0.1
        assert parameter.abs().max() > 0.09


@each_controller
def test_initial_state_is_zero_and_takes_the_type_of_the_weights(name):
    controller = made(name).double()
    state = controller.initial_state(3)
    for part in state:
        assert (
            part.shape == ((3, 16 + 6) if name == "neat" else (3, 2, 6))
            and part.dtype == torch.float64
            and part.abs().max() == 0
        )
    assert len({part.data_ptr() for part in state}) == len(state), "writing to one part must not change another"


@each_controller
def test_clip_bounds_every_part_of_the_state(name):
    controller = made(name, clip=0.05)
    hidden, state = controller(100 * torch.randn(3, 4), controller.initial_state(3))
    parts = [part.abs().max() for part in (hidden, *state)]
    # An LSTM's hidden vector stays below its clipped cell; everything else reaches the bound.
    assert max(parts) == torch.tensor(0.05)
    controller.clip = None
    assert controller(100 * torch.randn(3, 4), controller.initial_state(3))[0].abs().max() > 0.05


def test_clip_at_20_bounds_a_cell_that_would_grow():
    controller = LSTMController(1, hidden_size=1)
    with torch.no_grad():
        for parameter in controller.parameters():
            parameter.fill_(50.0)
    state = controller.initial_state(1)
    for _ in range(30):
        _, state = controller(torch.ones(1, 1), state)
    assert state.cell.item() == 20
    unbound = LSTMController(1, hidden_size=1, clip=None)
    unbound.load_state_dict(controller.state_dict())
    state = unbound.initial_state(1)
    for _ in range(30):
        _, state = unbound(torch.ones(1, 1), state)
    assert state.cell.item() == pytest.approx(30)


@each_controller
def test_the_given_state_is_left_as_it_was(name):
    controller = made(name)
    state = map_state(lambda leaf: leaf + 0.5, controller.initial_state(3))
    before = map_state(torch.clone, state)
    controller(torch.randn(3, 4), state)
    assert all(torch.equal(now, then) for now, then in zip(state, before, strict=True))


@each_controller
@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"input_size": 0}, "input_size: got 0"),
        ({"hidden_size": -3}, "hidden_size: got -3"),
        ({"hidden_size": 2.0}, "hidden_size: got 2.0"),
        ({"num_layers": 0}, "num_layers: got 0"),
        ({"num_layers": True}, "num_layers: got True"),
        ({"dropout": 1.0}, "dropout: got 1.0; allowed: less than 1"),
        ({"clip": 0.0}, "clip: got 0.0"),
        ({"clip": float("nan")}, "clip: got nan"),
        ({"clip": "20"}, "clip: got '20'"),
    ],
)
def test_wrong_arguments_are_named(name, wrong, names):
    option = next(iter(wrong))
    if option in ("hidden_size", "num_layers", "dropout") and option not in CONTROLLERS[name].Options.model_fields:
        with pytest.raises(TypeError, match=f"{CONTROLLERS[name].__name__}: unknown argument '{option}'"):
            CONTROLLERS[name](**{"input_size": 4, **wrong})
        return
    with pytest.raises(ValueError, match=f"^{names}"):
        CONTROLLERS[name](**{"input_size": 4, **wrong})


@each_controller
def test_every_controller_is_registered_by_the_name_in_its_options(name):
    assert lookup("controller", name) is CONTROLLERS[name]
    assert CONTROLLERS[name].Options().type == name


def test_neat_is_its_network_and_has_no_layers():
    controller = NeatController(4, hidden_size=6, max_nodes=3, activation="relu")
    x = torch.randn(3, 4)
    hidden, state = controller(x, controller.initial_state(3))
    outputs, expected = controller.network(x, controller.initial_state(3))
    torch.testing.assert_close(hidden, outputs.relu())
    torch.testing.assert_close(state.values, expected.values)
    with pytest.raises(TypeError, match="NeatController: unknown argument 'num_layers'"):
        NeatController(4, hidden_size=6, num_layers=2)
    with pytest.raises(ValueError, match="activation: got 'step'"):
        NeatController(4, activation="step")
    with pytest.raises(ValueError, match="max_nodes: got 0"):
        NeatController(4, max_nodes=0)


def test_direct_hands_on_what_comes_in():
    controller, x = DirectController(4, clip=1.0), torch.tensor([[0.5, -3.0, 0.0, 1.0]])
    hidden, state = controller(x, controller.initial_state(1))
    assert hidden.tolist() == [[0.5, -1.0, 0.0, 1.0]]
    assert state == ()
    assert (controller.hidden_size, controller.num_layers) == (4, 0)
    assert not list(controller.parameters())
