"""Bucket sort (Delétang et al. 2023, context-sensitive)."""

from __future__ import annotations

import torch

from ...core.registry import register
from ..strings import Strings
from .duplicate_string import RandomStringEnv


@register("env", "bucket-sort")
class BucketSortEnv(RandomStringEnv):
    """A string of few symbols; the answer is the string, sorted: 10204112 becomes 00111224."""

    vocabulary_size: int = 5

    def strings(self, length: int, batch_size: int, generator: torch.Generator) -> Strings:
        """See :meth:`StringEnv.strings`."""
        string = self.uniform(self.vocabulary_size, length, batch_size, generator=generator)
        return Strings(string, string.sort(0).values)
