"""What the generated tasks share: ranges with a curriculum, fixed variants for testing, and placing words in time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..core.env import Env, EnvOptions
from ..core.streams import Stream
from .curriculum import Curriculum, CurriculumOptions, FixedOptions, Range

Sizes = list[Annotated[int, Field(ge=1)]]
"""Sizes to be tested on, each at least 1."""


class SequenceOptions(EnvOptions):
    """Options that every generated task has."""

    lengths: Literal["batch", "sequence"] = "batch"
    """Whether lengths are drawn once for a whole batch, or for each sequence (the shorter are padded and masked)."""
    curriculum: CurriculumOptions = FixedOptions()
    """How the ranges that are trained on grow."""

    @abstractmethod
    def ranges(self) -> dict[str, Range]:
        """The full range of each quantity that makes the task harder, by name."""

    @model_validator(mode="after")
    def _check_ranges(self) -> SequenceOptions:
        for name, (low, high) in self.ranges().items():
            if low > high:
                raise ValueError(f"min_{name}: got {low}; allowed is at most max_{name}, which is {high}")
        Curriculum(self.curriculum, self.ranges())
        return self


class SequenceEnv(Env):
    """A task that is made up on the fly, whose difficulty is a set of named ranges."""

    options: SequenceOptions

    def __init__(self, options: SequenceOptions, device: torch.device | str = "cpu") -> None:
        """
        Args:
            options: of this task.
            device: where batches are made.
        """
        self.options = options
        self.device = torch.device(device)
        self.curriculum = Curriculum(options.curriculum, options.ranges())

    def draw(self, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw each quantity at the current level, ``[B]``: one value for all sequences, or one for each.

        Raises:
            ValueError: a batch size below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}; allowed is a whole number of at least 1")
        count = batch_size if self.options.lengths == "sequence" else 1
        return {name: value.expand(batch_size) for name, value in self.curriculum.draw(count, generator).items()}

    def bits(self, *shape: int, generator: torch.Generator) -> Tensor:
        """Independent fair bits of the given shape, as floats."""
        return torch.randint(2, shape, generator=generator, device=self.device).to(torch.get_default_dtype())

    def steps(self, count: int) -> Tensor:
        """The steps 0 … count - 1, ``[count, 1]``, to be compared with quantities ``[B]``."""
        return torch.arange(count, device=self.device).unsqueeze(-1)

    def variant(self, **ranges: Range) -> SequenceEnv:
        """The same task with other ranges and no curriculum; lengths are drawn for each sequence, since an error is the
        mean over many.
        """
        changes: dict[str, Any] = {"curriculum": FixedOptions(), "lengths": "sequence"}
        for name, (low, high) in ranges.items():
            changes |= {f"min_{name}": low, f"max_{name}": high}
        return type(self)(self.options.model_copy(update=changes), self.device)

    def beyond(self) -> list[dict[str, Range]]:
        """Ranges beyond the training range to be judged on."""
        return []

    def sets(self, stream: Stream) -> dict[str, Env]:
        """The full training range, then the ranges beyond it, each named by its quantities: ``length 1-20``."""
        return {_name(ranges): self.variant(**ranges) for ranges in [self.options.ranges(), *self.beyond()]}

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
        """Take up the level of the curriculum.

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
