"""Fitness by accuracy."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.func import vmap

from ...core.env import Batch, Env
from ...core.registry import register
from .base import Fitness


@register("fitness", "accuracy")
class AccuracyFitness(Fitness):
    """Share of the bits (or classes) that are right."""

    exponent: float = Field(
        default=1.0,
        gt=0,
        description="above 1, what counts is the mean over sequences of this power of their shares: one that is nearly "
        "right is worth more than two that are half right by luck",
    )

    def __call__(self, env: Env, outputs: Tensor, batch: Batch) -> Tensor:
        """``[P, B]``, which sum up to the share of the batch; see :class:`Fitness`."""
        right: Tensor = vmap(env.right, in_dims=(1, None), out_dims=1)(outputs, batch)
        shares, counted = right.sum(0, dtype=torch.float64), batch.mask.sum(0, dtype=torch.float64)
        if self.exponent == 1:
            return shares / counted.sum().clamp(min=1)
        return (shares / counted.clamp(min=1)) ** self.exponent / batch.mask.shape[1]
