"""Graded reward: what an answer is worth by how wrong it is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ...core.env import Batch, Env

Grades = list[Annotated[list[float], Field(min_length=2, max_length=2)]]
"""Pairs of an error and what it is worth, by rising error."""

GRADES: Grades = [[0.05, 1.0], [0.15, 0.5], [0.3, 0.0], [0.5, -0.5], [1.0, -1.0]]
"""From +1 at 5 % of error or less to -1 at 100 % or more."""


def check_grades(grades: Grades) -> None:
    """Raise ValueError if errors do not rise, or worth does not fall."""
    if not grades:
        raise ValueError("grades: got none; allowed is at least one pair of an error and what it is worth")
    for (error, worth), (larger, less) in pairwise(grades):
        if larger <= error or less > worth:
            raise ValueError(f"grades: got {[larger, less]} after {[error, worth]}; errors rise, and worth does not")


def graded(errors: Tensor, grades: Sequence[Sequence[float]]) -> Tensor:
    """What errors are worth: linear between the grades, and beyond them as the first and the last.

    Args:
        errors: of any shape, 0 where all is right.
        grades: see :data:`Grades`.

    Returns:
        The same shape.
    """
    points = torch.tensor(grades, dtype=errors.dtype, device=errors.device)
    at, worth = points[:, 0].contiguous(), points[:, 1]
    if len(points) == 1:
        return worth.expand(errors.shape).clone()
    right = torch.searchsorted(at, errors.contiguous()).clamp(1, len(at) - 1)
    share = ((errors - at[right - 1]) / (at[right] - at[right - 1])).clamp(0, 1)
    return worth[right - 1] + share * (worth[right] - worth[right - 1])


def reward(env: Env, outputs: Tensor, batch: Batch, grades: Sequence[Sequence[float]]) -> float:
    """What the answers to a batch are worth, averaged over all positions that count.

    Args:
        env: says how wrong each is, by :meth:`~papertape.core.env.Env.errors`.
        outputs: logits, ``[T, B, O]``.
        batch: that was answered.
        grades: see :data:`Grades`.
    """
    counted = batch.mask > 0
    return float(graded(env.errors(outputs, batch)[counted], grades).mean()) if bool(counted.any()) else 0.0
