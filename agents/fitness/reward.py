"""Fitness by rewards."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.func import vmap

from ...core.env import Batch, Env
from ...core.registry import register
from .base import Fitness


@register("fitness", "reward")
class RewardFitness(Fitness):
    """A reward for each right answer and another for each wrong one; an answer is all bits of a position."""

    right: float = Field(default=10.0, description="reward for a right answer")
    wrong: float = Field(default=-1.5, description="reward for a wrong answer")
    prediction: Literal["likeliest", "sampled", "expected"] = Field(
        default="likeliest",
        description="what counts as the answer: the likeliest one, one drawn from the output's distribution, or all of "
        "them, each with its probability (the mean of sampled)",
    )

    @property
    def drawn(self) -> bool:
        """See :attr:`Fitness.drawn`."""
        return self.prediction == "sampled"

    def check(self, env: Env) -> None:
        """See :meth:`Fitness.check`."""
        if self.prediction == "likeliest":
            return
        batch = env.sample(1, torch.Generator(env.device).manual_seed(0))
        try:
            env.surprises(env.silence(batch), batch)
        except ValueError as error:
            raise ValueError(
                f"agent.fitness.prediction: got {self.prediction!r}; {error}: allowed is 'likeliest'"
            ) from error

    def __call__(self, env: Env, outputs: Tensor, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """``[P, B]``; see :class:`Fitness`."""
        if self.prediction == "likeliest":
            # A position is right when none of its bits is wrong.
            probability = (vmap(env.right, in_dims=(1, None), out_dims=1)(outputs, batch) >= 1).to(outputs.dtype)
        else:
            probability = torch.exp(-vmap(env.surprises, in_dims=(1, None), out_dims=1)(outputs, batch))
            if self.drawn:
                draws = torch.rand(probability.shape, generator=generator, device=outputs.device, dtype=outputs.dtype)
                probability = (draws < probability).to(outputs.dtype)
        rewards = self.wrong + (self.right - self.wrong) * probability
        return (rewards * batch.mask.unsqueeze(1)).sum(0, dtype=torch.float64)
