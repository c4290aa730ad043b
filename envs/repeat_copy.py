"""Repeat-copy: repeat a sequence of random words as often as told (Graves et al. 2014, section 4.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from typing_extensions import Self

from ..core.env import Batch
from ..core.registry import register
from ..core.trace_field import Channels
from .curriculum import Range
from .sequence import SequenceEnv, Sizes, place


@register("env", "repeat-copy")
class RepeatCopyEnv(SequenceEnv):
    """A start flag, L words, the number of repeats R, then silence: the words R times, then an end mark.

    Laid out as in DeepMind's code for the DNC. T = L(R + 1) + 3 steps. Inputs have width + 2 channels (the last two are
    the start flag and the number of repeats as ``repeat_scale`` says), targets width + 1 (the last is the end mark).
    """

    width: int = Field(default=8, ge=1, description="bits of a word")
    min_length: int = Field(default=1, ge=1, description="fewest words of a training sequence")
    max_length: int = Field(default=10, ge=1, description="most words of a training sequence")
    min_repeats: int = Field(default=1, ge=1, description="fewest repeats in training")
    max_repeats: int = Field(default=10, ge=1, description="most repeats in training")
    repeat_scale: float | None = Field(
        default=10.0,
        gt=0,
        description="the number of repeats is given divided by this, by 10 as in DeepMind's code for the DNC; null "
        "gives it with mean 0 and variance 1 over the training range, as in the NTM paper; one in the middle of the "
        "range is then a 0",
    )
    test_sizes: list[Annotated[Sizes, Field(min_length=2, max_length=2)]] | None = Field(
        default=None,
        description="pairs [words, repeats] to be tested on besides the training range; none given: twice the longest, "
        "twice the most repeats (20 words 10 times and 10 words 20 times, as in the paper, by default)",
    )

    @staticmethod
    def ranges(options: Any) -> dict[str, Range]:
        """Words of a sequence and how often they are to be given back."""
        return {
            "length": (options.min_length, options.max_length),
            "repeats": (options.min_repeats, options.max_repeats),
        }

    def setup(self) -> None:
        """Sizes of inputs and targets."""
        self.input_size, self.output_size = self.width + 2, self.width + 1
        self.repeats_mean, self.repeats_scale = 0.0, self.repeat_scale or 1.0
        """The number of repeats is given less the mean, divided by the scale."""
        if self.repeat_scale is None:
            # Each of so many whole numbers in a row is drawn as often as any other.
            counts = self.max_repeats - self.min_repeats + 1
            self.repeats_mean = (self.min_repeats + self.max_repeats) / 2
            self.repeats_scale = math.sqrt((counts**2 - 1) / 12) or 1.0

    def input_channels(self) -> Sequence[Channels]:
        """Words and how often they are to be repeated."""
        return [Channels("words", self.width), Channels("start", 1, ("start",)), Channels("repeats", 1, ("repeats",))]

    def output_channels(self) -> Sequence[Channels]:
        """Words and the mark behind the last."""
        return [Channels("words", self.width), Channels("mark", 1, ("end",))]

    def variant(self, **ranges: Range) -> Self:
        """See :meth:`SequenceEnv.variant`; the number of repeats is given as in training."""
        variant = super().variant(**ranges)
        variant.repeats_mean, variant.repeats_scale = self.repeats_mean, self.repeats_scale
        return variant

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """A batch at the current level; see :meth:`Env.sample`."""
        width = self.width
        length, repeats = self.draw(batch_size, generator).values()
        longest, end = int(length.max()), length * (repeats + 1) + 2
        words = self.bits(longest, batch_size, width, generator=generator)
        step = self.steps(int(end.max()) + 1)
        answer = (step >= length + 2) & (step <= end)
        inputs = words.new_zeros(step.shape[0], batch_size, self.input_size)
        inputs[:, :, :width] = place(words, (step - 1).expand_as(answer), (step >= 1) & (step <= length))
        inputs[0, :, width] = 1
        inputs[:, :, width + 1] = (step == length + 1) * ((repeats - self.repeats_mean) / self.repeats_scale)
        targets = words.new_zeros(step.shape[0], batch_size, self.output_size)
        targets[:, :, :width] = place(words, (step - length - 2) % length, answer & (step < end))
        targets[:, :, width] = (step == end).to(words.dtype)
        return Batch(inputs, targets, answer.to(words.dtype))

    @property
    def kept_words(self) -> int:
        """All of them."""
        return self.max_length

    def beyond(self) -> list[dict[str, Range]]:
        """``test_sizes``."""
        sizes = self.test_sizes
        if sizes is None:
            sizes = [[2 * self.max_length, self.max_repeats], [self.max_length, 2 * self.max_repeats]]
        return [{"length": (length, length), "repeats": (repeats, repeats)} for length, repeats in sizes]
