"""Cycle navigation: where a walk on a circle ends (Delétang et al. 2023, regular)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from ...core.registry import register
from ..strings import StringEnv, Strings


@register("env", "cycle-navigation")
class CycleNavigationEnv(StringEnv):
    """Steps to the left, to the right, or none, from place 0 of a circle; the answer is the place at the end."""

    cycle_length: int = Field(default=5, ge=2, description="places of the circle")

    symbols = ("left", "stay", "right")

    @property
    def classes(self) -> Sequence[str]:
        """The places."""
        return [str(place) for place in range(self.cycle_length)]

    def strings(self, length: int, batch_size: int, generator: torch.Generator) -> Strings:
        """See :meth:`StringEnv.strings`."""
        moves = self.uniform(3, length, batch_size, generator=generator)
        return Strings(moves, (moves - 1).sum(0, keepdim=True) % self.cycle_length)
