"""Fitness shaping: what a strategy looks at is the order of the members, not how far they are apart."""

from __future__ import annotations

import torch
from torch import Tensor


def centred_ranks(fitness: Tensor) -> Tensor:
    """Ranks scaled to [-0.5, 0.5]; members of equal fitness share their mean rank (Salimans et al. 2017, section 2.1).

    Args:
        fitness: ``[P]``, higher is better.

    Returns:
        ``[P]`` in float64, summing to 0.
    """
    ascending = torch.sort(fitness).values
    below = torch.searchsorted(ascending, fitness)
    not_above = torch.searchsorted(ascending, fitness, right=True)
    ranks = (below + not_above - 1).double() / 2
    return ranks / (len(fitness) - 1) - 0.5
