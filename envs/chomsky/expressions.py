"""Arithmetic expressions with brackets of a given length, drawn and reduced for a whole batch at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SIGNS = ("+", "-", "(", ")", "*")
"""What follows the digits among the tokens."""


class _Level(NamedTuple):
    """Expressions at one depth of brackets, of all strings together."""

    simple: Tensor
    """Which of them are a digit, ``[N]``."""
    digits: Tensor
    """Value of those."""
    operators: Tensor
    """Operator of the others, each of which has two expressions in the next level."""


def expressions(
    length: int, batch_size: int, modulus: int, *, multiplication: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw expressions as the suite does: ``d``, ``-d``, ``(d)``, ``(-d)``, or two of any length within brackets.

    Args:
        length: tokens of each, at least 1.
        batch_size: B.
        modulus: of the arithmetic; digits are below it.
        multiplication: whether that is an operator, too.
        generator: the only source of randomness.

    Returns:
        Tokens ``[L, B]``, digits first and then :data:`SIGNS`, and values ``[B]``.
    """
    device = generator.device
    plus, minus, opening, closing, times = range(modulus, modulus + len(SIGNS))
    tokens = torch.empty(length, batch_size, dtype=torch.int64, device=device)
    row = torch.arange(batch_size, device=device)
    start, size = torch.zeros_like(row), torch.full_like(row, length)
    levels = []
    while len(row):
        bracketed, simple = size >= 3, size <= 4
        tokens[start[bracketed], row[bracketed]] = opening
        tokens[(start + size - 1)[bracketed], row[bracketed]] = closing
        digits = torch.randint(modulus, (int(simple.sum()),), generator=generator, device=device)
        tokens[(start + size // 2)[simple], row[simple]] = digits
        negative = simple & (size % 2 == 0)
        tokens[(start + size // 2 - 1)[negative], row[negative]] = minus
        row, start, size = row[~simple], start[~simple], size[~simple]
        share = torch.rand(len(row), generator=generator, device=device, dtype=torch.float64)
        left = 1 + (share * (size - 4)).long()
        operators = torch.randint(3 if multiplication else 2, (len(row),), generator=generator, device=device)
        tokens[start + 1 + left, row] = torch.tensor([plus, minus, times], device=device)[operators]
        levels.append(_Level(simple, torch.where(negative[simple], -digits, digits), operators))
        row = row.repeat_interleave(2)
        start, size = (
            torch.stack(pair, 1).flatten() for pair in ((start + 1, start + 2 + left), (left, size - left - 3))
        )
    values = torch.empty(0, dtype=torch.int64, device=device)
    for simple, digits, operators in reversed(levels):
        left, right = values[::2], values[1::2]
        results = torch.stack([left + right, left - right, left * right]).gather(0, operators.unsqueeze(0))[0]
        values = torch.empty(len(simple), dtype=torch.int64, device=device)
        values[simple], values[~simple] = digits % modulus, results % modulus
    return tokens, values
