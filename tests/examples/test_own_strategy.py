"""The example of a strategy of one's own: alone, in an agent, resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from papertape.agents import EvolutionAgent
from papertape.agents.strategies import minimise
from papertape.circuits import FeedForwardCircuit
from papertape.core.registry import import_modules
from papertape.envs import XorEnv

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _imported(outsiders: None) -> None:
    import_modules([f"{ROOT}/examples/own_strategy.py"])


def test_it_stands_alone() -> None:
    found = minimise(lambda x: (x - 1).square().sum(), [0.0] * 4, strategy="one-plus-lambda", evaluations=3000)
    assert found.value < 1e-8
    with pytest.raises(ValueError, match=r"strategy: sigma: got 0|strategy.sigma|greater than 0"):
        minimise(lambda x: x.sum(), [0.0], strategy={"type": "one-plus-lambda", "sigma": 0.0})


def made(seed: int = 0) -> EvolutionAgent:
    torch.manual_seed(1)
    env = XorEnv()
    circuit = FeedForwardCircuit(env.input_size, env.output_size, hidden_sizes=[4])
    strategy: dict[str, Any] = {"type": "one-plus-lambda", "sigma": 0.5}
    return EvolutionAgent(
        env, circuit, strategy=strategy, generations=200, evaluate_every=10, target_error=0.0, seed=seed
    )


def test_it_evolves_a_circuit_and_is_resumed() -> None:
    agent = made()
    agent.fit()
    assert agent.target_reached
    unbroken, first, second = made(), made(), made(seed=0)
    for _ in range(8):
        unbroken.train_step()
    for _ in range(4):
        first.train_step()
    second.load_state_dict(first.state_dict())
    for _ in range(4):
        second.train_step()
    assert torch.equal(second.strategy.ask(), unbroken.strategy.ask())
    assert second.strategy.step == unbroken.strategy.step
