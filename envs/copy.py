"""Copy: repeat a sequence of random words after a delay (Graves et al. 2014, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field

from ..core.env import Batch
from ..core.registry import register
from ..core.trace_field import Channels
from .curriculum import Range
from .sequence import SequenceEnv, Sizes, place


@register("env", "copy")
class CopyEnv(SequenceEnv):
    """A start flag, L words, an end flag, then silence, during which the words are to be given back in order.

    T = 2L + 2 steps. Inputs have width + 2 channels (the last two are the start and the end flag), targets width.
    """

    width: int = Field(default=8, ge=1, description="bits of a word")
    min_length: int = Field(default=1, ge=1, description="fewest words of a training sequence")
    max_length: int = Field(default=20, ge=1, description="most words of a training sequence")
    test_lengths: Sizes = Field(
        default=[20, 40, 80, 120], description="numbers of words to be tested on besides the training range"
    )

    @staticmethod
    def ranges(options: Any) -> dict[str, Range]:
        """Words of a sequence."""
        return {"length": (options.min_length, options.max_length)}

    def setup(self) -> None:
        """Sizes of inputs and targets."""
        self.input_size, self.output_size = self.width + 2, self.width

    def input_channels(self) -> Sequence[Channels]:
        """Words and flags."""
        return [Channels("words", self.width), Channels("flags", 2, ("start", "end"))]

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """A batch at the current level; see :meth:`Env.sample`."""
        width = self.width
        length = self.draw(batch_size, generator)["length"]
        longest = int(length.max())
        words = self.bits(longest, batch_size, width, generator=generator)
        step = self.steps(2 * longest + 2)
        answer = (step >= length + 2) & (step < 2 * length + 2)
        inputs = words.new_zeros(step.shape[0], batch_size, self.input_size)
        inputs[:, :, :width] = place(words, (step - 1).expand_as(answer), (step >= 1) & (step <= length))
        inputs[0, :, width] = 1
        inputs[:, :, width + 1] = (step == length + 1).to(words.dtype)
        return Batch(inputs, place(words, step - length - 2, answer), answer.to(words.dtype))

    @property
    def kept_words(self) -> int:
        """All of them."""
        return self.max_length

    def beyond(self) -> list[dict[str, Range]]:
        """``test_lengths``."""
        return [{"length": (length, length)} for length in self.test_lengths]
