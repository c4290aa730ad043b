"""Duplicate string (Delétang et al. 2023, context-sensitive)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from ...core.registry import register
from ..strings import StringEnv, Strings


class RandomStringEnv(StringEnv):
    """Strings of symbols that are drawn evenly, which the answer is made of as well."""

    vocabulary_size: int = Field(default=2, ge=2, description="symbols that a string may have")

    @property
    def symbols(self) -> Sequence[str]:
        """Numbers."""
        return [str(symbol) for symbol in range(self.vocabulary_size)]

    @property
    def classes(self) -> Sequence[str]:
        """Numbers."""
        return self.symbols


@register("env", "duplicate-string")
class DuplicateStringEnv(RandomStringEnv):
    """A string; the answer is the string, twice."""

    def strings(self, length: int, batch_size: int, generator: torch.Generator) -> Strings:
        """See :meth:`StringEnv.strings`."""
        string = self.uniform(self.vocabulary_size, length, batch_size, generator=generator)
        return Strings(string, torch.cat([string, string]))
