"""The empty agent checks an env."""

from __future__ import annotations

import pytest
import torch

import papertape
from papertape.agents import EmptyAgent
from papertape.core.env import Batch
from papertape.envs import CopyEnv


class WrongMask(CopyEnv):
    """An env with a mistake, which larger batches bring out."""

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        batch = super().sample(batch_size, generator)
        return batch if batch_size < 16 else batch._replace(mask=torch.ones(3, batch_size))


def test_drives_an_env_without_learning() -> None:
    agent = EmptyAgent(CopyEnv(width=3, max_length=4, test_lengths=[6]), papertape.NTM(5, 3), steps=3)
    before = {name: value.clone() for name, value in agent.circuit.state_dict().items()}
    assert set(agent.fit()) == {"loss", "bits_wrong"}
    assert agent.step == 3
    assert all(torch.equal(value, before[name]) for name, value in agent.circuit.state_dict().items())
    assert any(name.startswith("test/length 6/") for name in agent.test())


def test_names_what_is_wrong_with_an_env() -> None:
    agent = EmptyAgent(WrongMask(width=3, min_length=4, max_length=4), papertape.NTM(5, 3))
    with pytest.raises(TypeError, match=r"inputs of 16 sequences: .* of shape \[10, 16, 5\]; expected .* \[3, 16, 5\]"):
        agent.fit()
