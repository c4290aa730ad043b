"""Parity check: whether a binary string has an even number of ones (Delétang et al. 2023, regular)."""

from __future__ import annotations

import torch

from ...core.registry import register
from ..strings import StringEnv, Strings


@register("env", "parity-check")
class ParityCheckEnv(StringEnv):
    """Bits; the answer is 0 where the number of ones is even: 01111."""

    symbols = ("0", "1")
    classes = ("even", "odd")

    def strings(self, length: int, batch_size: int, generator: torch.Generator) -> Strings:
        """See :meth:`StringEnv.strings`."""
        bits = self.uniform(2, length, batch_size, generator=generator)
        return Strings(bits, bits.sum(0, keepdim=True) % 2)
