"""NEAT from options alone: a controller that drives an NTM, and a network that balances a pole."""

from __future__ import annotations

import pytest

from papertape.agents.evaluation import evaluate
from papertape.utils import factory, options


@pytest.mark.slow
def test_balances_a_pole_for_500_steps():
    pytest.importorskip("gymnasium")
    values = options.load_file("neat-cartpole")
    parts = factory.build(factory.parse({**values, "seed": 1, "device": "cpu", "plots": "off"}))
    parts.agent.fit()
    assert parts.agent.step < 30
    assert evaluate(parts.env, parts.circuit, sequences=20, batch_size=20, seed=77)["steps"] == 500


def test_a_controller_of_any_topology_drives_an_ntm():
    controller = {"type": "neat", "hidden_size": 5, "max_nodes": 3, "activation": "relu"}
    strategy = {"type": "neat", "population": 12, "add_node": 0.5, "recurrent": 0.5}
    values = {
        "env": {"type": "copy", "width": 1, "max_length": 2, "test_lengths": [3]},
        "circuit": {"type": "ntm", "controller": controller, "memory_size": 4, "word_size": 2},
        "agent": {"type": "evolution", "strategy": strategy, "generations": 4, "evaluate_every": 4, "batch_size": 2},
    }
    parts = factory.build(factory.parse({**values, "device": "cpu", "plots": "off"}))
    network = parts.circuit.controller.network
    assert (network.max_nodes, network.output_size, network.activation) == (3, 5, "relu")
    heads = parts.circuit.accessor.interface.linear.weight.detach().clone()
    parts.agent.fit()
    assert parts.agent.strategy.metrics()["nodes"] > 0
    assert not (heads == parts.circuit.accessor.interface.linear.weight).any(), "heads evolve beside it"
