"""What the generated tasks share: ranges with a curriculum, fixed variants for testing, and placing words in time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import Self

from ..core.component import build
from ..core.contracts import is_outside, under
from ..core.env import Env
from ..core.streams import Stream
from .curriculum import AnyCurriculum, Curriculum, Range

Sizes = list[Annotated[int, Field(ge=1)]]
"""Sizes to be tested on, each at least 1."""


class SequenceEnv(Env):
    """A task whose sequences are generated, and whose difficulty is a set of named ranges.

    The range of each quantity is two options, ``min_length`` and ``max_length`` for a quantity ``length``.
    """

    lengths: Literal["batch", "sequence"] = Field(
        default="batch",
        description="whether lengths are drawn once for a whole batch, or for each sequence (the shorter are padded "
        "and masked)",
    )
    curriculum: AnyCurriculum = Field(default="fixed", description="how the ranges that are trained on grow")

    @staticmethod
    @abstractmethod
    def ranges(options: Any) -> dict[str, Range]:
        """The full range of each quantity that makes the task harder, by name.

        Args:
            options: has the options as its attributes.
        """

    @classmethod
    def check_options(cls, options: Any) -> None:
        """Refuse ranges that end before they begin, and a curriculum that does not fit them."""
        super().check_options(options)
        for name, (low, high) in cls.ranges(options).items():
            if low > high:
                raise ValueError(f"min_{name}: got {low}; allowed is at most max_{name}, which is {high}")
        cls._curriculum(options)

    @classmethod
    def _curriculum(cls, options: Any) -> Curriculum:
        ranges = cls.ranges(options)
        try:
            curriculum: Curriculum = build(options.curriculum, ranges)
        except ValueError as error:
            raise ValueError("\n".join(f"curriculum.{line}" for line in str(error).splitlines())) from error
        if is_outside(type(curriculum)):
            with under("curriculum"):
                curriculum.check()
        if curriculum.ranges != ranges:
            raise ValueError(f"curriculum: is one for the ranges {curriculum.ranges}; allowed: for {ranges}")
        return curriculum

    def after_setup(self) -> None:
        """Build the curriculum; see :meth:`Task.after_setup`."""
        super().after_setup()
        self.curriculum = self._curriculum(self.options)

    def draw(self, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw each quantity at the current level, ``[B]``: one value for all sequences, or one for each.

        Raises:
            ValueError: a batch size below 1.
        """
        count = self.draws(batch_size)
        return {name: value.expand(batch_size) for name, value in self.curriculum.draw(count, generator).items()}

    def draws(self, batch_size: int) -> int:
        """How often each quantity is drawn for a batch: once, or for each sequence.

        Raises:
            ValueError: a batch size below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}; allowed is a whole number of at least 1")
        return batch_size if self.lengths == "sequence" else 1

    def bits(self, *shape: int, generator: torch.Generator) -> Tensor:
        """Independent fair bits of the given shape, as floats."""
        return torch.randint(2, shape, generator=generator, device=self.device).to(torch.get_default_dtype())

    def steps(self, count: int) -> Tensor:
        """The steps 0 … count - 1, ``[count, 1]``, to be compared with quantities ``[B]``."""
        return torch.arange(count, device=self.device).unsqueeze(-1)

    def variant(self, **ranges: Range) -> Self:
        """The same task with other ranges and no curriculum; where there is a choice, lengths are drawn for each
        sequence, since an error is the mean over many.
        """
        changes: dict[str, Any] = {"curriculum": "fixed"}
        if "lengths" in type(self.options).model_fields:
            changes["lengths"] = "sequence"
        for name, (low, high) in ranges.items():
            changes |= {f"min_{name}": low, f"max_{name}": high}
        return self.changed(**changes)

    @property
    def kept_words(self) -> int | None:
        """Words of the longest training sequence that are asked for after the last of them; None where it depends."""
        return None

    def beyond(self) -> list[dict[str, Range]]:
        """Ranges beyond the training range to be judged on."""
        return []

    def sets(self, stream: Stream) -> dict[str, Env]:
        """The full training range, then the ranges beyond it, each named by its quantities: ``length 1-20``."""
        return self.variants([self.ranges(self), *self.beyond()])

    def variants(self, ranges: Iterable[Mapping[str, Range]]) -> dict[str, Env]:
        """A :meth:`variant` for each of some ranges, named by its quantities."""
        return {_name(each): self.variant(**each) for each in ranges}

    def lesson(self) -> Env | None:
        """The ranges of the current level, without any earlier ones; None at the last level."""
        curriculum = self.curriculum
        return None if curriculum.at_the_last else self.variant(**curriculum.levels[curriculum.level])

    def advance(self, error: float) -> bool:
        """Raise the curriculum's level if the error is under its threshold; True if it rose."""
        return self.curriculum.advance(error)

    def state_dict(self) -> dict[str, Any]:
        """The level of the curriculum."""
        return self.curriculum.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the level of the curriculum.

        Raises:
            ValueError: the level is none of this curriculum's.
        """
        self.curriculum.load_state_dict(state)


def place(words: Tensor, index: Tensor, where: Tensor) -> Tensor:
    """Words put at their steps, zeros elsewhere.

    Args:
        words: ``[L, B, W]``.
        index: which word belongs to each step, ``[T, B]``; anything where there is none.
        where: steps that hold a word, bool ``[T, B]``.

    Returns:
        ``[T, B, W]``.
    """
    index = index.clamp(0, words.shape[0] - 1).unsqueeze(-1).expand(-1, -1, words.shape[-1])
    return words.gather(0, index) * where.unsqueeze(-1)


def _name(ranges: Mapping[str, Range]) -> str:
    return ", ".join(f"{name} {low}" if low == high else f"{name} {low}-{high}" for name, (low, high) in ranges.items())
