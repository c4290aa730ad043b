"""Tokens: whole numbers that stand for one of several symbols, as inputs or as answers."""

from __future__ import annotations

import torch
from torch import Tensor

from .kernels.transforms import in_memory


def is_whole(tensor: Tensor) -> bool:
    """Whether a tensor holds whole numbers, as tokens are."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def signed(whole: Tensor) -> Tensor:
    """Whole numbers in a type that torch can compare and index by: unsigned ones of more than a byte as int64."""
    return whole.long() if whole.dtype in (torch.uint16, torch.uint32, torch.uint64) else whole


def check_tokens(tokens: Tensor, size: int) -> None:
    """See that tokens are in range; while torch records or transforms operations nobody can look at their values.

    Args:
        tokens: of any shape.
        size: how many there are to choose from.

    Raises:
        ValueError: one is below 0 or not below ``size``.
    """
    if torch.compiler.is_compiling() or not in_memory(tokens) or tokens.is_meta:
        return
    if tokens.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    low, high = (int(end) for end in torch.aminmax(signed(tokens)))  # torch 2.6 knows no tolist within torch.func.grad
    if low < 0 or high >= size:
        raise ValueError(f"inputs: got the token {low if low < 0 else high}; allowed: 0 to {size - 1}")
