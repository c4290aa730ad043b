"""Reverse string (Delétang et al. 2023, deterministic context-free)."""

from __future__ import annotations

import torch

from ...core.registry import register
from ..strings import Strings
from .duplicate_string import RandomStringEnv


@register("env", "reverse-string")
class ReverseStringEnv(RandomStringEnv):
    """A string; the answer is the string from its end to its beginning."""

    def strings(self, length: int, batch_size: int, generator: torch.Generator) -> Strings:
        """See :meth:`StringEnv.strings`."""
        string = self.uniform(self.vocabulary_size, length, batch_size, generator=generator)
        return Strings(string, string.flip(0))
