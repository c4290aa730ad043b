"""Fitness: one number per member and sequence, from the same env that backprop uses."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.func import vmap

from ..core.env import Batch, Env
from ..core.options import Options


class LossFitness(Options):
    """The env's training loss, negative."""

    kept = frozenset()

    type: Literal["loss"] = "loss"


class AccuracyFitness(Options):
    """Share of the bits (or classes) that are right."""

    kept = frozenset()

    type: Literal["accuracy"] = "accuracy"
    exponent: float = Field(1.0, gt=0)
    """Above 1, what counts is the mean over sequences of this power of their shares: one that is nearly right is worth
    more than two that are half right by luck."""


class RewardFitness(Options):
    """A reward for each right answer and another for each wrong one; an answer is all bits of a position."""

    kept = frozenset()

    type: Literal["reward"] = "reward"
    right: float = 10.0
    wrong: float = -1.5
    prediction: Literal["likeliest", "sampled", "expected"] = "likeliest"
    """What counts as the answer: the likeliest one, one drawn from the output's distribution, or all of them, each with
    its probability (the mean of ``sampled``)."""


AnyFitness = Annotated[LossFitness | AccuracyFitness | RewardFitness, Field(discriminator="type")]
"""The ``fitness:`` block of the evolution agent."""


def fitness(
    options: LossFitness | AccuracyFitness | RewardFitness,
    env: Env,
    outputs: Tensor,
    batch: Batch,
    generator: torch.Generator,
) -> Tensor:
    """What each sequence adds to the fitness of each member; a member's fitness is the sum over its sequences.

    Args:
        options: which fitness.
        env: judges the answers.
        outputs: logits of all members, ``[T, P, B, O]``.
        batch: what every member has answered.
        generator: draws the answers where they are sampled.

    Returns:
        ``[P, B]`` in float64: negative losses and shares of right bits sum up to those of the batch, rewards are added
        up. Not a number where an answer is none: a comparison with it would call half of its bits right.
    """
    if options.type == "loss":
        losses: Tensor = vmap(env.losses, in_dims=(1, None), out_dims=1)(outputs, batch)
        return -losses.sum(0, dtype=torch.float64) / env.normaliser(batch)
    lost = outputs.isnan().any(-1).any(0)
    return _scores(options, env, outputs, batch, generator).masked_fill(lost, torch.nan)


def _scores(
    options: AccuracyFitness | RewardFitness, env: Env, outputs: Tensor, batch: Batch, generator: torch.Generator
) -> Tensor:
    if options.type == "accuracy":
        right: Tensor = vmap(env.right, in_dims=(1, None), out_dims=1)(outputs, batch)
        shares, counted = right.sum(0, dtype=torch.float64), batch.mask.sum(0, dtype=torch.float64)
        if options.exponent == 1:
            return shares / counted.sum().clamp(min=1)
        return (shares / counted.clamp(min=1)) ** options.exponent / batch.mask.shape[1]
    if options.prediction == "likeliest":
        # A position is right when none of its bits is wrong.
        probability = (vmap(env.right, in_dims=(1, None), out_dims=1)(outputs, batch) >= 1).to(outputs.dtype)
    else:
        probability = torch.exp(-vmap(env.losses, in_dims=(1, None), out_dims=1)(outputs, batch))
        if options.prediction == "sampled":
            draws = torch.rand(probability.shape, generator=generator, device=outputs.device, dtype=outputs.dtype)
            probability = (draws < probability).to(outputs.dtype)
    rewards = options.wrong + (options.right - options.wrong) * probability
    return (rewards * batch.mask.unsqueeze(1)).sum(0, dtype=torch.float64)
