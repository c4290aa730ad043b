"""The example of a fitness of one's own: against a loop, and by options."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from papertape.agents import EvolutionAgent
from papertape.agents.fitness import earned, made
from papertape.circuits import FeedForwardCircuit
from papertape.core.registry import import_modules, lookup
from papertape.envs import CopyEnv

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _imported(outsiders: None) -> None:
    import_modules([f"{ROOT}/examples/own_fitness.py"])


def test_against_a_loop() -> None:
    env = CopyEnv(width=2, max_length=4, lengths="sequence")
    batch = env.sample(5, torch.Generator().manual_seed(0))
    outputs = torch.randn(len(batch.inputs), 3, 5, 2, generator=torch.Generator().manual_seed(1)) + 1
    outputs += 3 * (batch.targets.unsqueeze(1) - 0.5)
    found = lookup("fitness", "streak")(env, outputs, batch, power=2.0)
    for member in range(3):
        for row in range(5):
            streak, counted = 0, 0
            broken = False
            for t in range(len(outputs)):
                if batch.mask[t, row]:
                    counted += 1
                    right = ((outputs[t, member, row] > 0) == (batch.targets[t, row] > 0.5)).all()
                    broken = broken or not right
                    streak += not broken
            assert float(found[member, row]) == pytest.approx((streak / counted) ** 2 / 5)
    assert found.unique().numel() > 2


def test_it_is_chosen_by_its_options_as_any_other() -> None:
    env = CopyEnv(width=2, max_length=1, test_lengths=[])
    circuit = FeedForwardCircuit(env.input_size, env.output_size, hidden_sizes=[4])
    agent = EvolutionAgent(env, circuit, fitness={"type": "streak", "power": 3.0}, strategy="snes")
    batch = env.sample(4, torch.Generator().manual_seed(0))
    outputs = torch.randn(len(batch.inputs), 2, 4, 2)
    chosen = made(agent.options.fitness)
    expected = lookup("fitness", "streak")(env, outputs, batch, power=3.0)
    assert torch.equal(earned(chosen, env, outputs, batch), expected.double())
    agent.train_step()
    with pytest.raises(ValueError, match=r"fitness.strength: unknown option"):
        EvolutionAgent(env, circuit, fitness={"type": "streak", "strength": 3.0})
