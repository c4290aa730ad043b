"""Evolve any module: here one of torch.nn with a rule that has no gradient.

An agent takes any module that maps inputs [T, B, I] to outputs [T, B, O], time first; one that keeps a state gives it
back besides its outputs and is given it with the next inputs. All members of the population answer at once.

    python examples/evolve_a_module.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from papertape.agents import EvolutionAgent
from papertape.envs import XorEnv


class Spikes(nn.Module):
    """A layer of units that are on or off, which no gradient goes through, and what they drive."""

    def __init__(self, input_size: int, hidden_size: int, output_size: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(input_size, hidden_size)
        self.output = nn.Linear(hidden_size, output_size)

    def forward(self, inputs: Tensor) -> Tensor:
        """``[T, B, I]`` -> logits ``[T, B, O]``."""
        answers: Tensor = self.output((self.hidden(inputs) > 0).to(inputs.dtype))
        return answers


def main(generations: int = 300) -> Spikes:
    """A module that has evolved to answer exclusive or."""
    torch.manual_seed(0)
    env = XorEnv()
    module = Spikes(env.input_size, 8, env.output_size)
    agent = EvolutionAgent(
        env,
        module,
        strategy={"type": "snes", "population": 50, "sigma": 0.5},
        generations=generations,
        evaluate_every=20,
        target_error=0.0,
        seed=1,
    )
    agent.fit()
    return module  # with the best weights that were found


if __name__ == "__main__":
    rows = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    print(main()(rows.unsqueeze(0)).flatten() > 0)
