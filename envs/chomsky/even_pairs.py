"""Even pairs: whether a binary string has an even number of unlike neighbours (Delétang et al. 2023, regular)."""

from __future__ import annotations

import torch

from ...core.registry import register
from ..strings import StringEnv, Strings


@register("env", "even-pairs")
class EvenPairsEnv(StringEnv):
    """Bits; the answer is 0 where 01 and 10 are found an even number of times in all: 001110 has one of each."""

    symbols = ("0", "1")
    classes = ("even", "odd")

    def strings(self, length: int, batch_size: int, generator: torch.Generator) -> Strings:
        """See :meth:`StringEnv.strings`."""
        bits = self.uniform(2, length, batch_size, generator=generator)
        return Strings(bits, (bits[1:] != bits[:-1]).sum(0, keepdim=True) % 2)
