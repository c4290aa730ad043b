"""A fitness of your own: what counts is how many bits are right before the first wrong one.

Any function of an env, outputs and a batch is a fitness. Registered, it is chosen by options, which are its keyword
arguments:

    python examples/own_fitness.py
    papertape train tape-copy --import examples/own_fitness.py agent.fitness.type=streak agent.fitness.power=2
"""

from __future__ import annotations

import torch
from torch import Tensor

import papertape
from papertape.agents import EvolutionAgent
from papertape.envs import CopyEnv


@papertape.register("fitness", "streak")
def streak(env: papertape.Env, outputs: Tensor, batch: papertape.Batch, *, power: float = 1.0) -> Tensor:
    """Share of the counted positions that are right before the first wrong one.

    Outputs are the logits of all members, ``[T, P, B, O]``; the fitness of each sequence is ``[P, B]``.
    """
    wrong = ((outputs > 0) != (batch.targets.unsqueeze(1) > 0.5)).any(-1) & (batch.mask.unsqueeze(1) > 0)
    before = (wrong.cumsum(0) == 0) & (batch.mask.unsqueeze(1) > 0)
    return (before.sum(0) / batch.mask.sum(0).clamp(min=1)) ** power / batch.mask.shape[1]


if __name__ == "__main__":
    torch.manual_seed(1)
    env = CopyEnv(width=1, max_length=1, test_lengths=[])
    circuit = papertape.NTM(env.input_size, env.output_size, hidden_size=8, memory_size=4, word_size=3)
    strategy = {"type": "snes", "population": 40, "sigma": 0.3}
    agent = EvolutionAgent(env, circuit, fitness=streak, strategy=strategy, generations=100, target_error=0.0, seed=1)
    print(agent.fit())
