"""Modular arithmetic with brackets (Delétang et al. 2023, deterministic context-free)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from ...core.registry import register
from ..strings import StringEnv, Strings
from .expressions import SIGNS, expressions


@register("env", "modular-arithmetic-brackets")
class ModularArithmeticBracketsEnv(StringEnv):
    """An expression such as ((1+(-3))*2); the answer is its value modulo 5."""

    modulus: int = Field(default=5, ge=2, le=10, description="of the arithmetic; digits are below it")
    multiplication: bool = Field(default=True, description="whether * is an operator, beside + and -")

    @property
    def symbols(self) -> Sequence[str]:
        """Digits, brackets and operators."""
        return [*self.classes, *(SIGNS if self.multiplication else SIGNS[:-1])]

    @property
    def classes(self) -> Sequence[str]:
        """The digits."""
        return [str(digit) for digit in range(self.modulus)]

    def strings(self, length: int, batch_size: int, generator: torch.Generator) -> Strings:
        """See :meth:`StringEnv.strings`."""
        tokens, values = expressions(
            length, batch_size, self.modulus, multiplication=self.multiplication, generator=generator
        )
        return Strings(tokens, values.unsqueeze(0))
