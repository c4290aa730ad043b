"""The equations of sparse addressing, one pure function each (Rae et al. 2016, arXiv 1610.09027).

A sparse weighting is a pair: the slots that it touches and their weights; every other slot has weight 0. A slot may be
listed more than once, then its weights add up; -1 stands for no slot.

Shapes: B batch, N memory slots, M entries of a sparse weighting.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .addressing import NORM_EPSILON

BLOCK = 512
"""Where there are many more values than this, the largest are looked for in the blocks that hold the largest."""


def similarity(words: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cosine similarity as in :func:`~papertape.core.addressing.cosine_similarity`, equal for equal words.

    Each word is summed by itself: in a matrix product rounding depends on the word's place, and words that were written
    together are often equal.

    Args:
        words: ``[..., C, W]``.
        keys: ``[..., W]``.
        mask: weight of each element, ``[..., W]``, or None.

    Returns:
        ``[..., C]``; NaN counts as the smallest.
    """
    if mask is not None:
        words, keys = words * mask.unsqueeze(-2), keys * mask
    key_norms = torch.sqrt((keys * keys).sum(-1, keepdim=True) + NORM_EPSILON)
    norms = torch.sqrt((words * words).sum(-1) + NORM_EPSILON)
    cosine = (words * keys.unsqueeze(-2)).sum(-1) / (key_norms * norms + NORM_EPSILON)
    return cosine.nan_to_num(nan=-torch.inf)


def top_k(values: Tensor, count: int) -> Tensor:
    """Indices of the largest values, exactly; of equal values the first ones count as larger.

    So values that are appended to the list change nothing, unless they are larger than those chosen.

    Args:
        values: ``[..., N]``.
        count: how many, at most N.

    Returns:
        ``[..., count]``, in no order, except that those equal to the smallest chosen come last.
    """
    size = values.shape[-1]
    if size <= 8 * BLOCK * count or not values.is_floating_point():
        return _top_k(values, count)
    missing = -size % BLOCK
    padded = functional.pad(values, (0, missing), value=-torch.inf) if missing else values
    padded = padded.unflatten(-1, (-1, BLOCK))
    # The largest values lie in the blocks with the largest maxima; in order of index, so that the first still win.
    blocks = _top_k(padded.amax(-1), count).sort(dim=-1).values
    candidates = padded.gather(-2, blocks.unsqueeze(-1).expand(*blocks.shape, BLOCK)).flatten(-2)
    chosen = _top_k(candidates, count)
    return blocks.gather(-1, chosen // BLOCK) * BLOCK + chosen % BLOCK


def _top_k(values: Tensor, count: int) -> Tensor:
    size = values.shape[-1]
    smallest = values.topk(count, dim=-1).values[..., -1:]
    # torch.topk leaves open which of equal values it takes: rank them by place.
    place = torch.arange(size, 0, -1, device=values.device)
    rank = place * (values >= smallest) + size * (values > smallest)
    return rank.topk(count, dim=-1).indices


def least_recent(last_access: Tensor, count: int) -> Tensor:
    """The slots that were not accessed for the longest time, of equal ones the first.

    Args:
        last_access: step of the last access, ``[B, N]``.
        count: how many, at most N.

    Returns:
        ``[B, count]``, in ascending order of the slots.
    """
    if count == 1:
        return last_access.argmin(-1, keepdim=True)
    return top_k(-last_access, count).sort(dim=-1).values


def owners(slots: Tensor) -> Tensor:
    """Index of the first entry that names the same slot, ``[..., M]`` -> ``[..., M]``."""
    return (slots.unsqueeze(-1) == slots.unsqueeze(-2)).to(torch.uint8).argmax(-1)


def first_of_equals(slots: Tensor) -> Tensor:
    """Whether no entry before it names the same slot, ``[..., M]`` -> ``[..., M]``."""
    return owners(slots) == torch.arange(slots.shape[-1], device=slots.device)


def totals(slots: Tensor, weights: Tensor) -> Tensor:
    """The weight of each entry's slot over all entries that name it.

    Args:
        slots: ``[..., M]``.
        weights: ``[..., M]``.

    Returns:
        ``[..., M]``
    """
    owner = owners(slots)
    return torch.zeros_like(weights).scatter_add(-1, owner, weights).gather(-1, owner)


def largest(slots: Tensor, weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The heaviest entries of a sparse weighting; a weight of NaN counts as the lightest.

    Entries without a slot come last, whatever they weigh.

    Args:
        slots: ``[..., M]``, each slot once.
        weights: ``[..., M]``.
        count: entries to keep, at most M.

    Returns:
        Slots and weights, ``[..., count]``.
    """
    weighed = weights.detach().nan_to_num(nan=torch.finfo(weights.dtype).min)
    rank = torch.where(slots < 0, -torch.inf, weighed)
    chosen = top_k(rank, count)
    return slots.gather(-1, chosen), weights.gather(-1, chosen)


def merged(slots: Tensor, weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Add up the weights of entries of the same slot, then keep the heaviest.

    Args:
        slots: ``[..., M]``; at least ``count`` different ones.
        weights: ``[..., M]``.
        count: entries to keep.

    Returns:
        Slots, all different, and weights, ``[..., count]``.
    """
    return largest(torch.where(first_of_equals(slots), slots, -1), totals(slots, weights), count)


def dense(slots: Tensor, weights: Tensor, memory_size: int) -> Tensor:
    """The weighting over all slots.

    Args:
        slots: ``[..., M]``, without -1.
        weights: ``[..., M]``.
        memory_size: N.

    Returns:
        ``[..., N]``
    """
    return weights.new_zeros(*weights.shape[:-1], memory_size).scatter_add(-1, slots.expand_as(weights), weights)
