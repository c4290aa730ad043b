"""Odds first: every second symbol of a string, then the others (Delétang et al. 2023, context-sensitive)."""

from __future__ import annotations

import torch

from ...core.registry import register
from ..strings import Strings
from .duplicate_string import RandomStringEnv


@register("env", "odds-first")
class OddsFirstEnv(RandomStringEnv):
    """A string; the answer is what stands at odd places, then the rest: places count from 0, as in the suite's code."""

    def strings(self, length: int, batch_size: int, generator: torch.Generator) -> Strings:
        """See :meth:`StringEnv.strings`."""
        string = self.uniform(self.vocabulary_size, length, batch_size, generator=generator)
        return Strings(string, torch.cat([string[1::2], string[::2]]))
