"""Fitness by loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import vmap

from ...core.env import Batch, Env
from ...core.registry import register
from .base import Fitness


@register("fitness", "loss")
class LossFitness(Fitness):
    """The env's training loss, negative."""

    def __call__(self, env: Env, outputs: Tensor, batch: Batch) -> Tensor:
        """``[P, B]``, the sum of which is that of the batch; see :class:`Fitness`."""
        losses: Tensor = vmap(env.losses, in_dims=(1, None), out_dims=1)(outputs, batch)
        return -losses.sum(0, dtype=torch.float64) / env.normaliser(batch)
