"""Selective copying: give back the few words among much noise (Gu & Dao 2023, section 4.1.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field

from ..core.env import Batch
from ..core.registry import register
from ..core.token_env import TokenEnv
from .curriculum import Range
from .sequence import SequenceEnv, Sizes


@register("env", "selective-copying")
class SelectiveCopyingEnv(TokenEnv, SequenceEnv):
    """Words at random places among noise, all of which is one token; then the words are due in order.

    A sequence of length L with K words has L + K steps. Inputs are the noise (0), the words (1 to ``words`` different
    ones), a token for thinking if there are ``think_steps``, and the mark that asks for the next word. Answers are the
    different words.
    """

    copied: int = Field(default=16, ge=1, description="K, words to be given back")
    words: int = Field(
        default=14, ge=1, description="different words; with noise and mark they make a vocabulary of 16"
    )
    min_length: int = Field(default=4096, ge=1, description="shortest length in training, words and noise")
    max_length: int = Field(default=4096, ge=1, description="longest length in training, words and noise")
    test_lengths: Sizes = Field(default=[], description="lengths to be tested on besides the training range")

    @staticmethod
    def ranges(options: Any) -> dict[str, Range]:
        """Words and noise of a sequence."""
        return {"length": (options.min_length, options.max_length)}

    @classmethod
    def check_options(cls, options: Any) -> None:
        """Refuse sequences that are too short for their words."""
        super().check_options(options)
        for name, length in [("min_length", options.min_length)] + [
            (f"test_lengths.{number}", length) for number, length in enumerate(options.test_lengths)
        ]:
            if length < options.copied:
                raise ValueError(f"{name}: got {length}; allowed is at least copied, which is {options.copied}")

    def setup(self) -> None:
        """Sizes of inputs and answers."""
        self.input_size, self.output_size = len(self.input_names()), self.words

    def input_names(self) -> Sequence[str]:
        """Noise, words and marks."""
        return ["noise", *self.output_names(), *["think"] * (self.think_steps > 0), "mark"]

    def output_names(self) -> Sequence[str]:
        """The words, from 1."""
        return [str(word) for word in range(1, self.words + 1)]

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """A batch at the current level; see :meth:`Env.sample`."""
        copied, think = self.copied, self.think_steps
        length = self.draw(batch_size, generator)["length"]
        longest = int(length.max())
        words = torch.randint(1, self.words + 1, (copied, batch_size), generator=generator, device=self.device)
        chances = torch.rand(longest, batch_size, generator=generator, device=self.device)
        chances.masked_fill_(self.steps(longest) >= length, -1.0)
        places = chances.topk(copied, dim=0).indices.sort(0).values
        step = self.steps(longest + think + copied)
        inputs = torch.zeros(len(step), batch_size, dtype=torch.long, device=self.device).scatter_(0, places, words)
        answer = (step >= length + think) & (step < length + think + copied)
        thinking = (step >= length) & (step < length + think)
        inputs = torch.where(answer, self.input_size - 1, torch.where(thinking, self.input_size - 2, inputs))
        due = words.gather(0, (step - length - think).clamp(0, copied - 1)) - 1
        return Batch(inputs, torch.where(answer, due, 0), answer.to(torch.get_default_dtype()))

    @property
    def kept_words(self) -> int:
        """Those that are to be given back."""
        return self.copied

    def beyond(self) -> list[dict[str, Range]]:
        """``test_lengths``."""
        return [{"length": (length, length)} for length in self.test_lengths]
