"""Repeat-copy: repeat a sequence of random words as often as told (Graves et al. 2014, section 4.2)."""

from __future__ import annotations

import math
from typing import Annotated, Literal, cast

import torch
from pydantic import Field

from ..core.env import Batch
from .curriculum import Range
from .sequence import SequenceEnv, SequenceOptions, Sizes, place


class RepeatCopyOptions(SequenceOptions):
    """Options of :class:`RepeatCopyEnv`."""

    type: Literal["repeat-copy"] = "repeat-copy"
    width: int = Field(8, ge=1)
    """Bits of a word."""
    min_length: int = Field(1, ge=1)
    """Fewest words of a training sequence."""
    max_length: int = Field(10, ge=1)
    """Most words of a training sequence."""
    min_repeats: int = Field(1, ge=1)
    """Fewest repeats in training."""
    max_repeats: int = Field(10, ge=1)
    """Most repeats in training."""
    repeat_scale: float | None = Field(10.0, gt=0)
    """The number of repeats is given divided by this, by 10 as in DeepMind's code for the DNC. Null gives it with mean
    0 and variance 1 over the training range, as in the NTM paper; one in the middle of the range is then a 0."""
    test_sizes: list[Annotated[Sizes, Field(min_length=2, max_length=2)]] | None = None
    """Pairs [words, repeats] to be tested on besides the training range; none given: twice the longest, twice the most
    repeats (20 words 10 times and 10 words 20 times, as in the paper, by default)."""

    def ranges(self) -> dict[str, Range]:
        """Words of a sequence and how often they are to be given back."""
        return {"length": (self.min_length, self.max_length), "repeats": (self.min_repeats, self.max_repeats)}


class RepeatCopyEnv(SequenceEnv):
    """A start flag, L words, the number of repeats R, then silence: the words R times, then an end mark.

    Laid out as in DeepMind's code for the DNC. T = L(R + 1) + 3 steps. Inputs have width + 2 channels (the last two are
    the start flag and the number of repeats as ``repeat_scale`` says), targets width + 1 (the last is the end mark).
    """

    Options = RepeatCopyOptions
    options: RepeatCopyOptions

    def __init__(self, options: RepeatCopyOptions, device: torch.device | str = "cpu") -> None:
        """See :class:`SequenceEnv`."""
        super().__init__(options, device)
        self.input_size = options.width + 2
        self.output_size = options.width + 1
        self.repeat_mean, self.repeat_scale = 0.0, options.repeat_scale or 1.0
        if options.repeat_scale is None:
            # Each of so many whole numbers in a row is drawn as often as any other.
            counts = options.max_repeats - options.min_repeats + 1
            self.repeat_mean = (options.min_repeats + options.max_repeats) / 2
            self.repeat_scale = math.sqrt((counts**2 - 1) / 12) or 1.0

    def variant(self, **ranges: Range) -> RepeatCopyEnv:
        """See :meth:`SequenceEnv.variant`; the number of repeats is given as in training."""
        variant = cast(RepeatCopyEnv, super().variant(**ranges))
        variant.repeat_mean, variant.repeat_scale = self.repeat_mean, self.repeat_scale
        return variant

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """A batch at the current level; see :meth:`Env.sample`."""
        width = self.options.width
        length, repeats = self.draw(batch_size, generator).values()
        longest, end = int(length.max()), length * (repeats + 1) + 2
        words = self.bits(longest, batch_size, width, generator=generator)
        step = self.steps(int(end.max()) + 1)
        answer = (step >= length + 2) & (step <= end)
        inputs = words.new_zeros(step.shape[0], batch_size, self.input_size)
        inputs[:, :, :width] = place(words, (step - 1).expand_as(answer), (step >= 1) & (step <= length))
        inputs[0, :, width] = 1
        inputs[:, :, width + 1] = (step == length + 1) * ((repeats - self.repeat_mean) / self.repeat_scale)
        targets = words.new_zeros(step.shape[0], batch_size, self.output_size)
        targets[:, :, :width] = place(words, (step - length - 2) % length, answer & (step < end))
        targets[:, :, width] = (step == end).to(words.dtype)
        return Batch(inputs, targets, answer.to(words.dtype))

    def beyond(self) -> list[dict[str, Range]]:
        """``test_sizes``."""
        most = self.options
        sizes = most.test_sizes
        if sizes is None:
            sizes = [[2 * most.max_length, most.max_repeats], [most.max_length, 2 * most.max_repeats]]
        return [{"length": (length, length), "repeats": (repeats, repeats)} for length, repeats in sizes]
