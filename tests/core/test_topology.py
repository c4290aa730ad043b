"""Networks of any topology against a plain loop over their nodes, alone and as a population."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from papertape.core.topology import TopologyNetwork, TopologyState, longest_path, split_weights, used_nodes

ACTIVATIONS = {
    "tanh": math.tanh,
    "relu": lambda x: max(x, 0.0),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "steep-sigmoid": lambda x: 1 / (1 + math.exp(-4.9 * x)),
}


def random_network(
    seed: int, share: float, activation: str = "tanh", inputs: int = 3, nodes: int = 5, outputs: int = 2
):
    torch.manual_seed(seed)
    network = TopologyNetwork(inputs, outputs, nodes, activation=activation).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * (torch.rand_like(parameter) < share))
    return network


def by_hand(network: TopologyNetwork, x: list[float], last: list[float]) -> tuple[list[float], list[float]]:
    """One step of one network, connection after connection."""
    rows = [*network.hidden_weight.tolist(), *network.output_weight.tolist()]
    function, now, sums = ACTIVATIONS[network.activation], [], []
    for target, row in enumerate(rows):
        total = row[0] + sum(weight * value for weight, value in zip(row[1:], x, strict=False))
        for source, weight in enumerate(row[1 + len(x) :]):
            forward = source < network.max_nodes and (target >= network.max_nodes or source < target)
            total += weight * (now[source] if forward else last[source])
        sums.append(total)
        now.append(function(total))
    return sums[network.max_nodes :], now


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6), share=st.sampled_from([0.0, 0.2, 0.5, 1.0]), activation=st.sampled_from([*ACTIVATIONS])
)
def test_steps_equal_a_loop_over_nodes(seed, share, activation):
    network = random_network(seed, share, activation)
    inputs = torch.randn(4, 2, 3, dtype=torch.float64)
    state = network.initial_state(2)
    last = [[0.0] * 7, [0.0] * 7]
    for x in inputs:
        outputs, state = network(x, state)
        for row in range(2):
            expected, last[row] = by_hand(network, x[row].tolist(), last[row])
            assert outputs[row].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)
            assert state.values[row].tolist() == pytest.approx(last[row], rel=1e-9, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.sampled_from([0.1, 0.3, 1.0]))
def test_a_population_equals_its_members(seed, share):
    members = [random_network(seed + member, share / (member + 1)) for member in range(3)]
    inputs = torch.randn(3, 2, 3, dtype=torch.float64)
    hidden, output = (
        torch.stack([getattr(member, f"{part}_weight").detach() for member in members]) for part in ("hidden", "output")
    )
    found = members[0].run_population(hidden, output, inputs)
    for index, member in enumerate(members):
        state = member.initial_state(2)
        for step, x in enumerate(inputs):
            outputs, state = member(x, state)
            torch.testing.assert_close(found[step, index], outputs)


def test_starts_with_every_input_connected_to_every_output():
    network = TopologyNetwork(3, 2, 4)
    assert not network.hidden_weight.any()
    assert network.output_weight[:, :4].all() and not network.output_weight[:, 4:].any()
    x = torch.randn(5, 3)
    outputs, _ = network(x, network.initial_state(5))
    torch.testing.assert_close(outputs, x @ network.output_weight[:, 1:4].T + network.output_weight[:, 0])


def test_what_is_not_connected_has_no_gradient():
    network = random_network(1, 0.5)
    outputs, state = network(
        torch.randn(2, 3, dtype=torch.float64), TopologyState(torch.randn(2, 7, dtype=torch.float64))
    )
    (outputs.sum() + state.values.sum()).backward()
    for parameter in network.parameters():
        assert not parameter.grad[parameter == 0].any()
    assert network.output_weight.grad[network.output_weight != 0].all()


def test_gradients_of_what_is_connected_agree_with_finite_differences():
    network = random_network(2, 1.0, inputs=2, nodes=3, outputs=1)
    x, last = torch.randn(2, 2, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64, requires_grad=True)

    def step(hidden, output, last):
        parameters = {"hidden_weight": hidden, "output_weight": output}
        outputs, state = torch.func.functional_call(network, parameters, (x, TopologyState(last)))
        return outputs, state.values

    assert torch.autograd.gradcheck(step, (network.hidden_weight, network.output_weight, last))


def test_longest_path_and_used_nodes():
    hidden, output = torch.zeros(2, 5, 1 + 1 + 5 + 1), torch.zeros(2, 1, 8)
    forward = split_weights(hidden, output).forward
    assert longest_path(forward) == 0 and used_nodes(hidden, output) == 0
    hidden[0, 1, 2], hidden[0, 3, 3] = 1.0, 1.0  # 0 -> 1 -> 3
    hidden[1, 2, 2], hidden[1, 1, 5] = 1.0, 1.0  # 0 -> 2, and 3 back to 1
    assert longest_path(split_weights(hidden, output).forward) == 2
    assert used_nodes(hidden, output) == 4
    output[1, 0, 6] = 1.0
    assert used_nodes(hidden, output) == 5
