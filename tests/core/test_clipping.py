"""Outputs beyond their range are clipped, and find back into it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from papertape import LSTM, NTM, RecurrentCircuit
from papertape.core.clipping import clipped


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=20), st.floats(0.5, 30))
def test_outputs_are_clamped(values, clip):
    outputs = torch.tensor(values)
    assert torch.equal(clipped(outputs, clip), outputs.clamp(-clip, clip))
    assert clipped(outputs, None) is outputs


def test_gradient_in_the_range_is_that_of_the_clamp():
    outputs = torch.linspace(-1.9, 1.9, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: clipped(x, 2.0), (outputs,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: clipped(x, 2.0).sin(), (outputs,))


@pytest.mark.parametrize(
    ("output", "gradient", "passed"),
    [(3.0, 0.5, 0.5), (3.0, -0.5, 0.0), (-3.0, -0.5, -0.5), (-3.0, 0.5, 0.0), (2.0, -0.5, -0.5), (-2.0, 0.5, 0.5)],
)
def test_beyond_the_range_a_gradient_leads_back_and_never_on(output, gradient, passed):
    outputs = torch.tensor([output], requires_grad=True)
    clipped(outputs, 2.0).backward(torch.tensor([gradient]))
    assert outputs.grad.tolist() == [passed]


def test_members_and_tangents_are_as_of_one():
    outputs = torch.tensor([[3.0, 1.0], [-3.0, -1.0]], requires_grad=True)
    gradient = torch.func.vmap(torch.func.grad(lambda x: clipped(x, 2.0).square().sum()))(outputs)
    assert torch.equal(gradient, torch.tensor([[4.0, 2.0], [-4.0, -2.0]]))
    with forward_ad.dual_level():
        made = clipped(forward_ad.make_dual(outputs.detach(), torch.ones(2, 2)), 2.0)
        assert torch.equal(forward_ad.unpack_dual(made).tangent, torch.tensor([[0.0, 1.0], [0.0, 1.0]]))


@pytest.mark.parametrize(
    "circuit",
    [
        lambda: LSTM(3, 4, hidden_size=5, clip=2),
        lambda: RecurrentCircuit(3, 4, controller={"type": "rnn", "nonlinearity": "relu", "hidden_size": 5}, clip=2),
        lambda: NTM(3, 4, hidden_size=5, memory_size=4, word_size=3, clip=2),
        lambda: NTM(3, 4, hidden_size=5, memory_size=4, word_size=3, clip=2, backend="eager"),
    ],
    ids=["lstm", "rnn", "ntm", "ntm eager"],
)
def test_a_circuit_whose_classes_have_all_left_the_range_still_learns(circuit):
    torch.manual_seed(0)
    made, inputs = circuit(), torch.rand(6, 8, 3)
    targets = torch.randint(4, (6, 8))
    with torch.no_grad():
        made.output.bias.fill_(9.0)
    optimiser = torch.optim.Adam(made.output.parameters(), lr=0.3)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = functional.cross_entropy(made(inputs)[0].flatten(0, 1), targets.flatten())
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(torch.tensor(4.0).log().item())  # a guess among equals
    assert losses[-1] < losses[0] - 0.05


def test_what_is_in_the_range_costs_no_function_of_autograd():
    outputs = torch.tensor([-2.0, 2.0], requires_grad=True) * 1
    assert clipped(outputs, 2.0) is outputs
    assert clipped(outputs, 1.9) is not outputs


def test_nothing_and_what_is_no_number_are_clamped_as_by_torch():
    assert clipped(torch.empty(0, 3, requires_grad=True), 2.0).shape == (0, 3)
    outputs = torch.tensor([float("nan"), 3.0], requires_grad=True)
    assert torch.equal(clipped(outputs, 2.0).isnan(), torch.tensor([True, False]))
    assert clipped(outputs, 2.0)[1] == 2.0


def test_recorded_it_does_not_look_at_values():
    recorded = make_fx(lambda x: clipped(x, 2.0))(torch.tensor([1.0]))
    assert torch.equal(recorded(torch.tensor([3.0])), torch.tensor([2.0]))
