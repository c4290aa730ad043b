"""Binary addition (Delétang et al. 2023, context-sensitive)."""

from __future__ import annotations

import torch

from ...core.registry import register
from ..strings import StringEnv, Strings
from .binary import bit_length, carried, ended, short_number, two_numbers


@register("env", "binary-addition")
class BinaryAdditionEnv(StringEnv):
    """Two binary numbers, the lowest bit first; the answer is their sum, and an end: 001+01101 is 01011, and an end.

    What comes after the end counts neither in the loss nor in the accuracy; the suite trains on it as well. Strings of
    less than three bits are a single number, which is the answer.
    """

    symbols = ("0", "1", "+")
    classes = ("0", "1", "end")

    def strings(self, length: int, batch_size: int, generator: torch.Generator) -> Strings:
        """See :meth:`StringEnv.strings`."""
        if length <= 2:
            question = total = short_number(length, batch_size, generator)
        else:
            question, first, second = two_numbers(length, batch_size, generator)
            total, _ = carried(first + second)
        ends = bit_length(total).clamp(min=1)
        return ended(question, torch.cat([total, torch.zeros_like(total[:1])]), ends)
