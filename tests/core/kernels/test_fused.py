"""Plain recurrent circuits run by torch's own functions exactly where those compute the same."""

from __future__ import annotations

import pytest
import torch

from papertape import RecurrentCircuit
from papertape.core.controllers.lstm import LSTMController
from papertape.core.kernels import fused

CONTROLLERS = [
    {"type": "lstm"},
    {"type": "gru"},
    {"type": "rnn"},
    {"type": "rnn", "nonlinearity": "relu"},
]


def twins(controller, **options):
    """A circuit, and the same on the eager backend."""
    controller = {"hidden_size": 7, "num_layers": 2, **controller}
    torch.manual_seed(0)
    made = [
        RecurrentCircuit(5, 3, controller=controller, dtype=torch.float64, backend=backend, **options)
        for backend in ("auto", "eager")
    ]
    with torch.no_grad():
        for parameter in made[0].parameters():
            parameter.mul_(2)
    made[1].load_state_dict(made[0].state_dict())
    return made


def reason(circuit, inputs, state=None):
    return fused.unavailable(circuit.controller, inputs, state or circuit.initial_state(inputs.shape[1]))


def results(circuit, inputs, state=None):
    """Outputs, last state, and the gradients of a weighted sum of both by parameters and inputs."""
    inputs = inputs.clone().requires_grad_()
    outputs, after = circuit(inputs, state)
    weights = torch.arange(1.0, outputs.numel() + 1, dtype=torch.float64).view_as(outputs).cos()
    loss = (outputs * weights).sum() + sum(part.square().sum() for part in after)
    return [outputs, *after, *torch.autograd.grad(loss, [inputs, *circuit.parameters()])]


@pytest.mark.parametrize("controller", CONTROLLERS, ids=str)
@pytest.mark.parametrize("clip", [None, 20.0, 2.0, 0.5])
def test_it_is_what_the_controller_computes(controller, clip):
    circuit, eager = twins(controller, clip=clip)
    inputs = 3 * torch.randn(40, 4, 5, dtype=torch.float64)
    for got, wanted in zip(results(circuit, inputs), results(eager, inputs), strict=True):
        assert torch.allclose(got, wanted, rtol=1e-9, atol=1e-9)


def test_a_cell_that_comes_to_clip_is_clipped():
    circuit, eager = twins({"type": "lstm", "num_layers": 1}, clip=2.5)
    with torch.no_grad():
        for made in (circuit, eager):
            made.controller.inputs[0].bias.fill_(3.0)  # all gates open: every cell grows by nearly 1 a step
    inputs = torch.randn(12, 4, 5, dtype=torch.float64)
    assert reason(circuit, inputs) is None
    wanted = results(eager, inputs)
    assert bool((wanted[2] == 2.5).any())
    for got, right in zip(results(circuit, inputs), wanted, strict=True):
        assert torch.allclose(got, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("controller", CONTROLLERS[:3], ids=str)
def test_it_goes_on_from_any_state(controller):
    circuit, eager = twins(controller)
    inputs, state = torch.randn(30, 4, 5, dtype=torch.float64), circuit.initial_state(4)
    state = type(state)(*(30 * torch.rand_like(part) - 15 for part in state))
    for got, wanted in zip(results(circuit, inputs, state), results(eager, inputs, state), strict=True):
        assert torch.allclose(got, wanted, rtol=1e-9, atol=1e-9)


def test_a_row_that_is_no_number_stays_alone():
    circuit, eager = twins({"type": "lstm"})
    inputs = torch.randn(30, 3, 5, dtype=torch.float64)
    inputs[4, 1] = torch.nan
    with torch.no_grad():
        (got, _), (wanted, _) = circuit(inputs), eager(inputs)
    assert torch.allclose(got, wanted, equal_nan=True)
    assert got[:, [0, 2]].isfinite().all() and got[4:, 1].isnan().all()


def test_it_steps_aside_for_what_it_does_not_know(monkeypatch):
    inputs = torch.randn(6, 2, 5, dtype=torch.float64)
    for controller, options in [
        ({"type": "rnn", "nonlinearity": "relu"}, {"clip": 20}),
        ({"type": "gru"}, {"clip": 0.9}),
        ({"type": "lstm", "dropout": 0.5}, {}),
        ({"type": "leaky", "num_layers": 1}, {}),
    ]:
        circuit, _ = twins(controller, **options)
        assert reason(circuit, inputs)
    circuit, _ = twins({"type": "lstm"})
    assert reason(circuit, inputs) is None and reason(circuit, inputs.float()) and reason(circuit, inputs[:0])
    with torch.autocast("cpu"):
        assert reason(circuit, inputs)
    hook = circuit.controller.recurrents[0].register_forward_hook(lambda *_: None)
    assert reason(circuit, inputs)
    hook.remove()
    monkeypatch.setattr(LSTMController, "forward", lambda self, x, state: (x, state))
    assert reason(circuit, inputs)


def test_it_can_be_differentiated_twice():
    circuit, _ = twins({"type": "lstm"})
    for dtype in (torch.float64, torch.float32):
        made = circuit.to(dtype)
        inputs = torch.randn(6, 2, 5, dtype=dtype, requires_grad=True)
        (gradient,) = torch.autograd.grad(made(inputs)[0].sum(), inputs, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), inputs)
        assert second.abs().sum() > 0
