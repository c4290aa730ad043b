"""Modular arithmetic: the value of a sum of products (Delétang et al. 2023, regular)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from ...core.registry import register
from ..strings import StringEnv, Strings


@register("env", "modular-arithmetic")
class ModularArithmeticEnv(StringEnv):
    """Digits with +, - or * between them; the answer is the value modulo 5, products first: 1+2*3 is 2.

    A string has an odd number of tokens; where an even length is asked for, it is one shorter.
    """

    modulus: int = Field(default=5, ge=2, le=10, description="of the arithmetic; digits are below it")

    @property
    def symbols(self) -> Sequence[str]:
        """Digits and operators."""
        return [*self.classes, "+", "-", "*"]

    @property
    def classes(self) -> Sequence[str]:
        """The digits."""
        return [str(digit) for digit in range(self.modulus)]

    def strings(self, length: int, batch_size: int, generator: torch.Generator) -> Strings:
        """See :meth:`StringEnv.strings`."""
        count = (length + 1) // 2
        digits = self.uniform(self.modulus, count, batch_size, generator=generator)
        operators = self.modulus + self.uniform(3, count - 1, batch_size, generator=generator)
        question = digits.new_empty(2 * count - 1, batch_size)
        question[::2], question[1::2] = digits, operators
        minus, times = self.modulus + 1, self.modulus + 2
        total, term = torch.zeros_like(digits[0]), digits[0]
        for operator, digit in zip(operators, digits[1:], strict=True):
            goes_on = operator == times
            total = torch.where(goes_on, total, total + term)
            term = torch.where(goes_on, term * digit % self.modulus, torch.where(operator == minus, -digit, digit))
        return Strings(question, ((total + term) % self.modulus).unsqueeze(0))
