"""What tasks of strings share: a string is the question and another the answer, of one length in a whole batch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from ..core.env import Batch, Env
from ..core.streams import Stream
from ..core.token_env import TokenEnv
from .curriculum import Range
from .sequence import SequenceEnv, Sizes


class Strings(NamedTuple):
    """Questions and their answers."""

    question: Tensor
    """Tokens, ``[Q, B]``."""
    answer: Tensor
    """Classes, ``[A, B]``."""
    counts: Tensor | None = None
    """Which of the answer counts, ``[A, B]``; None counts all."""


class StringEnv(TokenEnv, SequenceEnv):
    """A string of tokens, then one step for each class of the answer: no batch has any padding.

    All strings of a batch have one length, so the lengths of the batches that a circuit is judged on are spread evenly
    over the range. T is the length, the steps to think and the answer's length together.
    """

    lengths: Literal["batch"] = Field(default="batch", init=False)
    min_length: int = Field(default=1, ge=1, description="shortest string of training")
    max_length: int = Field(default=40, ge=1, description="longest string of training")
    max_validation_length: int = Field(
        default=100,
        ge=1,
        description="longest string of validation; the second set has the lengths from max_length + 1 to this",
    )
    max_test_length: int = Field(
        default=500,
        ge=1,
        description="longest string of the test; its last set has the lengths from max_length + 1 to this",
    )
    test_lengths: Sizes = Field(default=[100, 200, 500], description="lengths with a set of their own in the test")
    think_per_token: int = Field(
        default=0, ge=0, description="steps to think for each token of the question, besides think_steps"
    )

    @staticmethod
    def ranges(options: Any) -> dict[str, Range]:
        """Tokens of a question."""
        return {"length": (options.min_length, options.max_length)}

    @property
    @abstractmethod
    def symbols(self) -> Sequence[str]:
        """Name of each token that a question may have."""

    @property
    @abstractmethod
    def classes(self) -> Sequence[str]:
        """Name of each class that an answer may have."""

    @abstractmethod
    def strings(self, length: int, batch_size: int, generator: torch.Generator) -> Strings:
        """Draw questions of about this length, and answer them.

        Args:
            length: of the questions.
            batch_size: B.
            generator: the only source of randomness; on the env's device.
        """

    def setup(self) -> None:
        """Sizes of inputs and targets."""
        self.input_size, self.output_size = len(self.input_names()), len(self.classes)

    def input_names(self) -> Sequence[str]:
        """The symbols, and what stands for a step to think and for a step of the answer."""
        return [*self.symbols, *self.extra_names]

    def output_names(self) -> Sequence[str]:
        """The classes."""
        return self.classes

    def steps_to_think(self, length: int) -> int:
        """Steps between a question of so many tokens and its answer."""
        return self.think_steps + self.think_per_token * length

    def uniform(self, count: int, *shape: int, generator: torch.Generator) -> Tensor:
        """Whole numbers below ``count``, drawn evenly."""
        return torch.randint(count, shape, generator=generator, device=self.device)

    def of_length(self, length: int, batch_size: int, generator: torch.Generator) -> Batch:
        """A batch of strings of this length; see :meth:`strings`."""
        return self.asked(*self.strings(length, batch_size, generator))

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """A batch of one length at the current level; see :meth:`Env.sample`."""
        return self.of_length(int(self.draw(batch_size, generator)["length"][0]), batch_size, generator)

    def drawn(self, count: int, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Strings to be judged on: as many of each length where there are batches for all, else lengths spread evenly.

        See :meth:`Env.drawn`.
        """
        low, high = self.ranges(self)["length"]
        batches = -(-count // batch_size)
        for number in range(batches):
            length = low + (2 * number + 1) * (high - low + 1) // (2 * batches)
            yield self.of_length(length, count // batches + (number < count % batches), generator)

    def sets(self, stream: Stream) -> dict[str, Env]:
        """The training range; in the test strings of some lengths; last, those of all lengths beyond training."""
        longest, single = self.max_validation_length, []
        if stream == "test":
            longest, single = self.max_test_length, self.test_lengths
        lengths = [(self.min_length, self.max_length), *((length, length) for length in single)]
        if longest > self.max_length:
            lengths.append((self.max_length + 1, longest))
        return self.variants({"length": each} for each in lengths)
