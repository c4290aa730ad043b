"""Induction heads: what came after the mark when it was there before (Gu & Dao 2023, section 4.1.2)?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field

from ..core.env import Batch
from ..core.registry import register
from ..core.token_env import TokenEnv
from .curriculum import Range
from .sequence import SequenceEnv
from .thinking import with_thinking


@register("env", "induction-heads")
class InductionHeadsEnv(TokenEnv, SequenceEnv):
    """Random words with a mark at any place among them and at the end, where the word after the first mark is due.

    A sequence of length L has L steps with both marks. Inputs are ``words`` different words, the mark and, if there are
    ``think_steps``, a token for these. Answers are the different words.
    """

    words: int = Field(default=15, ge=2, description="different words; with the mark they make a vocabulary of 16")
    min_length: int = Field(default=256, ge=3, description="shortest length in training")
    max_length: int = Field(default=256, ge=3, description="longest length in training")
    test_lengths: list[Annotated[int, Field(ge=3)]] = Field(
        default=[64, 128, 512, 1024, 2048, 4096], description="lengths to be tested on besides the training range"
    )

    @staticmethod
    def ranges(options: Any) -> dict[str, Range]:
        """Steps of a sequence."""
        return {"length": (options.min_length, options.max_length)}

    def setup(self) -> None:
        """Sizes of inputs and answers."""
        self.input_size, self.output_size = len(self.input_names()), self.words

    def input_names(self) -> Sequence[str]:
        """Words and mark."""
        return [*self.output_names(), "mark", *["think"] * (self.think_steps > 0)]

    def output_names(self) -> Sequence[str]:
        """The words, from 1."""
        return [str(word) for word in range(1, self.words + 1)]

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """A batch at the current level; see :meth:`Env.sample`."""
        length = self.draw(batch_size, generator)["length"]
        longest = int(length.max())
        words = torch.randint(self.words, (longest, batch_size), generator=generator, device=self.device)
        share = torch.rand(batch_size, generator=generator, device=self.device, dtype=torch.float64)
        first = (share * (length - 2)).long()  # with room for the word after it and for the last mark
        step = self.steps(longest)
        last = step == length - 1
        inputs = torch.where((step == first) | last, self.words, torch.where(step < length, words, 0))
        due = words.gather(0, (first + 1).unsqueeze(0))
        batch = Batch(inputs, torch.where(last, due, 0), last.to(torch.get_default_dtype()))
        return with_thinking(batch, self.think_steps, self.input_size - 1)

    @property
    def kept_words(self) -> int:
        """The one after the mark."""
        return 1

    def beyond(self) -> list[dict[str, Range]]:
        """``test_lengths``."""
        return [{"length": (length, length)} for length in self.test_lengths]
