"""Compute sqrt: the square root of a binary number, rounded down (Delétang et al. 2023, context-sensitive)."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.registry import register
from ..strings import StringEnv, Strings
from .binary import carried, drawn_bits

BASE = 2**30


@register("env", "compute-sqrt")
class ComputeSqrtEnv(StringEnv):
    """A binary number above zero, the highest bit first; the answer is its root, with half as many bits: 0111 is 10."""

    symbols = ("0", "1")
    classes = ("0", "1")

    def strings(self, length: int, batch_size: int, generator: torch.Generator) -> Strings:
        """See :meth:`StringEnv.strings`."""
        bits = drawn_bits(torch.ones(length, batch_size, dtype=torch.int64, device=self.device), generator)
        return Strings(bits, square_root(bits))


def square_root(bits: Tensor) -> Tensor:
    """The roots of binary numbers ``[L, B]``, rounded down, as binary numbers ``[⌈L / 2⌉, B]``, the highest bit first.

    Bit by bit: each pair of the number's bits joins what is left of it; where 4r + 1 goes into that, r being the root
    so far, the next bit is 1. Both numbers are kept as digits of a large base, ``[D, B]``.
    """
    pairs = torch.cat([torch.zeros_like(bits[: len(bits) % 2]), bits]).unflatten(0, (-1, 2))
    left = bits.new_zeros(len(pairs) // 29 + 1, bits.shape[1])
    root = torch.zeros_like(left)
    found = []
    for high, low in pairs:
        left = 4 * left
        left[0] += 2 * high + low
        taken = 4 * root
        taken[0] += 1
        left, _ = carried(left, BASE)
        rest, negative = carried(left - taken, BASE)
        fits = negative == 0
        left = torch.where(fits, rest, left)
        root = 2 * root
        root[0] += fits
        root, _ = carried(root, BASE)
        found.append(fits.long())
    return torch.stack(found)
