"""Brackets: which one is open (Dyck languages, as in Suzgun et al. 2019 and Hewitt et al. 2020)?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..core.env import Batch
from ..core.registry import register
from ..core.token_env import TokenEnv
from .curriculum import Range
from .sequence import SequenceEnv, Sizes
from .thinking import with_thinking

SHAPES = ("()", "[]", "{}", "⟨⟩")


@register("env", "brackets")
class BracketsEnv(TokenEnv, SequenceEnv):
    """Brackets of several kinds, well nested; at each step the kind of the innermost one that is open is due.

    This is the one that may be closed next; 0 where none is open. Where both may be, a bracket is opened or closed with
    the same chance, and every kind is opened with the same. A sequence may end while some are open. Inputs are the
    ``kinds`` opening brackets, as many closing ones and, if there are ``think_steps``, a token for these.
    """

    kinds: int = Field(default=2, ge=1, le=1000, description="kinds of brackets")
    max_depth: int | None = Field(default=None, ge=1, description="most brackets open at a time; null sets no limit")
    answers: Literal["each", "last"] = Field(default="each", description="ask at each step, or at the last one alone")
    min_length: int = Field(default=1, ge=1, description="fewest brackets of a training sequence")
    max_length: int = Field(default=40, ge=1, description="most brackets of a training sequence")
    test_lengths: Sizes = Field(
        default=[64, 128, 256], description="numbers of brackets to be tested on besides the training range"
    )

    @staticmethod
    def ranges(options: Any) -> dict[str, Range]:
        """Brackets of a sequence."""
        return {"length": (options.min_length, options.max_length)}

    def setup(self) -> None:
        """Sizes of inputs and answers."""
        self.input_size, self.output_size = 2 * self.kinds + (self.think_steps > 0), self.kinds + 1

    def input_names(self) -> Sequence[str]:
        """Opening and closing brackets, and the token for thinking."""
        names = [self._name(kind, side) for side in (0, 1) for kind in range(self.kinds)]
        return [*names, "think"] if self.think_steps else names

    def output_names(self) -> Sequence[str]:
        """None, and the opening brackets."""
        return ["none", *(self._name(kind, 0) for kind in range(self.kinds))]

    def _name(self, kind: int, side: int) -> str:
        """Of an opening bracket (side 0) or a closing one."""
        return SHAPES[kind][side] if self.kinds <= len(SHAPES) else f"{kind + 1}{'()'[side]}"

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """A batch at the current level; see :meth:`Env.sample`."""
        length = self.draw(batch_size, generator)["length"]
        longest = int(length.max())
        shape = (longest, batch_size)
        opened = torch.randint(2, shape, generator=generator, device=self.device).bool()
        kinds = torch.randint(self.kinds, shape, generator=generator, device=self.device)
        deepest = self.max_depth or longest
        depth = torch.zeros(1, batch_size, dtype=torch.long, device=self.device)
        # Row d of the stack is the kind at depth d, from 1; row 0, at which nothing is open, says so.
        stack = torch.zeros(min(deepest, longest) + 1, batch_size, dtype=torch.long, device=self.device)
        brackets, innermost = [], []
        for kind, opens in zip(kinds.split(1), opened.split(1), strict=True):
            opens = (opens | (depth == 0)) & (depth < deepest)
            last = stack.gather(0, depth)
            brackets.append(torch.where(opens, kind, self.kinds + last - 1))
            depth = depth + torch.where(opens, 1, -1)
            stack = stack.scatter(0, depth, torch.where(opens, kind + 1, stack.gather(0, depth)))
            innermost.append(stack.gather(0, depth))
        step = self.steps(longest)
        there = step < length
        asked: Tensor = step == length - 1 if self.answers == "last" else there
        inputs, targets = torch.cat(brackets) * there, torch.cat(innermost) * asked
        return with_thinking(
            Batch(inputs, targets, asked.to(torch.get_default_dtype())), self.think_steps, self.input_size - 1
        )

    def beyond(self) -> list[dict[str, Range]]:
        """``test_lengths``."""
        return [{"length": (length, length)} for length in self.test_lengths]
