"""NEAT in a world: a network of any topology balances a pole."""

from __future__ import annotations

import pytest

from tapehead.agents.evaluation import evaluate
from tapehead.utils import factory, options


@pytest.mark.slow
def test_balances_a_pole_for_500_steps():
    pytest.importorskip("gymnasium")
    values = options.load_file("neat-cartpole")
    parts = factory.build(factory.parse({**values, "seed": 1, "device": "cpu", "plots": "off"}))
    parts.agent.fit()
    assert parts.agent.step < 30
    assert evaluate(parts.env, parts.circuit, sequences=20, batch_size=20, seed=77)["steps"] == 500
