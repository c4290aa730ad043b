"""The interface: one Linear from the controller's output to all parameters of the heads, by name.

B batch, W word size.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from .tied_bits import TiedBitsLinear

MASK_MIN = 0.1
"""Smallest weight that a lookup mask can give to a word element (improved DNC)."""


def oneplus(x: Tensor) -> Tensor:
    """1 + log(1 + exp(x)), at least 1 (DNC "interface parameters")."""
    return 1 + functional.softplus(x)


def lookup_mask(raw: Tensor | None, heads: int) -> Tensor | None:
    """Element weights ``[B, heads, W]`` in (0.1, 1) from their part of the interface vector, or None without one."""
    if raw is None:
        return None
    return MASK_MIN + (1 - MASK_MIN) * torch.sigmoid(raw.unflatten(-1, (heads, -1)))


class Interface(nn.Module):
    """The Linear that maps the controller's output to the interface vector, and the sizes of its parts, in order."""

    def __init__(self, hidden_size: int, sizes: Mapping[str, int]) -> None:
        """
        Args:
            hidden_size: size of the controller's output.
            sizes: name and length of each part of the interface vector, in order.
        """
        super().__init__()
        self.sizes = dict(sizes)
        self.size = sum(sizes.values())
        """Length of the interface vector."""
        self.linear: nn.Linear | TiedBitsLinear = nn.Linear(hidden_size, self.size)

    def forward(self, hidden: Tensor) -> Tensor:
        """The interface vector ``[B, size]`` from ``[B, hidden_size]``."""
        vector: Tensor = self.linear(hidden)
        return vector

    def parts(self, vector: Tensor) -> dict[str, Tensor]:
        """The raw parts of an interface vector ``[…, size]`` (or of all biases, ``[size]``) by name."""
        return dict(zip(self.sizes, vector.split(list(self.sizes.values()), dim=-1), strict=True))
