"""Binary multiplication (Delétang et al. 2023, context-sensitive)."""

from __future__ import annotations

import torch

from ...core.registry import register
from ..strings import StringEnv, Strings
from .binary import bit_length, carried, ended, short_number, two_numbers


@register("env", "binary-multiplication")
class BinaryMultiplicationEnv(StringEnv):
    """Two binary numbers, the lowest bit first; the answer is their product, and an end: 001*01101 is 0001101, an end.

    What comes after the end counts neither in the loss nor in the accuracy; the suite trains on it as well. Strings of
    less than three bits are a single number; the answer is then one bit fewer, zero, and the end.
    """

    symbols = ("0", "1", "*")
    classes = ("0", "1", "end")

    def strings(self, length: int, batch_size: int, generator: torch.Generator) -> Strings:
        """See :meth:`StringEnv.strings`."""
        if length <= 2:
            question = short_number(length, batch_size, generator)
            return ended(question, torch.zeros_like(question), torch.full_like(question[0], length - 1))
        question, first, second = two_numbers(length, batch_size, generator)
        digits = torch.zeros_like(first)
        for place, bit in enumerate(first):
            digits[place:] += bit * second[: length - place]
        product, _ = carried(digits)
        return ended(question, product, bit_length(product))
