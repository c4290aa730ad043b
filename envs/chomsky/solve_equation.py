"""Solve equation: which digit an x stands for (Delétang et al. 2023, deterministic context-free)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from ...core.registry import register
from ..strings import StringEnv, Strings
from .expressions import SIGNS, expressions


@register("env", "solve-equation")
class SolveEquationEnv(StringEnv):
    """An expression with brackets of + and -, one digit of which is x, and its value: (3-(x+1))=4; the answer is x.

    Strings of less than three tokens hold no equation: they are zeros, and so is the answer.
    """

    modulus: int = Field(default=5, ge=2, le=10, description="of the arithmetic; digits are below it")

    @property
    def symbols(self) -> Sequence[str]:
        """Digits, brackets, operators, x and =."""
        return [*self.classes, *SIGNS[:-1], "x", "="]

    @property
    def classes(self) -> Sequence[str]:
        """The digits."""
        return [str(digit) for digit in range(self.modulus)]

    def strings(self, length: int, batch_size: int, generator: torch.Generator) -> Strings:
        """See :meth:`StringEnv.strings`."""
        if length < 3:
            zeros = torch.zeros(length, batch_size, dtype=torch.int64, device=self.device)
            return Strings(zeros, zeros[:1])
        size = length - 2
        tokens, values = expressions(size, batch_size, self.modulus, multiplication=False, generator=generator)
        # The first digit from a place that is drawn on, round the end if need be.
        place = self.steps(size)
        ahead = (place - self.uniform(size, batch_size, generator=generator)) % size
        unknown = torch.where(tokens < self.modulus, ahead, size).argmin(0, keepdim=True)
        unknown_sign, equals = len(self.symbols) - 2, len(self.symbols) - 1
        solution = tokens.gather(0, unknown)
        expression = torch.where(place == unknown, unknown_sign, tokens)
        return Strings(torch.cat([expression, torch.full_like(solution, equals), values.unsqueeze(0)]), solution)
