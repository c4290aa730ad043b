"""Curriculum: which ranges of difficulty a task draws from, and when it moves on to harder ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..core.options import Options

Range = tuple[int, int]
"""Smallest and largest value, both included."""


class FixedOptions(Options):
    """Always the full range of the task."""

    kept = frozenset()

    type: Literal["fixed"] = "fixed"


class GrowingOptions(Options):
    """The upper end of every range grows until it reaches the task's own (Zaremba & Sutskever 2014)."""

    kept = frozenset()

    type: Literal["growing"] = "growing"
    start: int = Field(1, ge=1)
    """Upper end of the ranges at first; a range that begins above it starts with its smallest value alone."""
    step: int = Field(1, ge=1)
    """How much the upper ends rise at a time."""
    threshold: float = Field(1.0, gt=0)
    """The validation error on the current level, in the task's error metric, under which the level rises."""


class LessonsOptions(Options):
    """A list of lessons, each giving every range of the task, mixed with earlier ones (Graves et al. 2016, Methods)."""

    kept = frozenset()

    type: Literal["lessons"] = "lessons"
    lessons: list[dict[str, Annotated[list[int], Field(min_length=2, max_length=2)]]] = Field(min_length=1)
    """For each lesson the range [smallest, largest] of each of the task's quantities: ``- {length: [1, 5]}``."""
    mix: float = Field(0.1, ge=0, le=1)
    """Share of draws that come from a lesson picked evenly among those met so far, against forgetting."""
    threshold: float = Field(1.0, gt=0)
    """The validation error on the current lesson, in the task's error metric, under which the next one starts."""

    @model_validator(mode="after")
    def _check_ranges(self) -> LessonsOptions:
        for number, lesson in enumerate(self.lessons):
            for name, (low, high) in lesson.items():
                if not 1 <= low <= high:
                    raise ValueError(f"lessons.{number}.{name}: got {[low, high]}; allowed is 1 <= smallest <= largest")
        return self


CurriculumOptions = Annotated[FixedOptions | GrowingOptions | LessonsOptions, Field(discriminator="type")]


class Curriculum:
    """Draws a task's quantities (length, repeats, …) from the ranges of the current level."""

    def __init__(self, options: CurriculumOptions, ranges: Mapping[str, Range]) -> None:
        """
        Args:
            options: which schedule.
            ranges: the task's full range of each quantity.

        Raises:
            ValueError: the schedule does not fit the ranges; says what is wrong and what is allowed.
        """
        self.ranges = dict(ranges)
        self.levels: Sequence[Mapping[str, Range]] = _levels(options, self.ranges)
        self.threshold = 0.0 if isinstance(options, FixedOptions) else options.threshold
        self.mix = options.mix if isinstance(options, LessonsOptions) else 0.0
        self.level = 0

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw every quantity ``count`` times, evenly within its range.

        Args:
            count: how many independent draws.
            generator: the only source of randomness; the result is on its device.

        Returns:
            For each quantity whole numbers, ``[count]``.
        """
        device = generator.device
        levels = torch.full((count,), self.level, device=device)
        if self.mix and self.level:
            any_level = torch.randint(self.level + 1, (count,), generator=generator, device=device)
            levels = torch.where(torch.rand(count, generator=generator, device=device) < self.mix, any_level, levels)
        drawn = {}
        for name in self.ranges:
            low, high = torch.tensor([level[name] for level in self.levels], device=device)[levels].unbind(-1)
            share = torch.rand(count, generator=generator, device=device, dtype=torch.float64)
            drawn[name] = low + (share * (high - low + 1)).long()
        return drawn

    @property
    def at_the_last(self) -> bool:
        """Whether no level is left to move on to."""
        return self.level + 1 == len(self.levels)

    def advance(self, error: float) -> bool:
        """Move one level up if the error is under the threshold and a level is left; True if it moved."""
        if error < self.threshold and not self.at_the_last:
            self.level += 1
            return True
        return False

    def state_dict(self) -> dict[str, Any]:
        """The level reached."""
        return {"level": self.level}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the level that :meth:`state_dict` gave.

        Raises:
            ValueError: no such level; it was saved with another schedule.
        """
        level = state.get("level")
        if not isinstance(level, int) or not 0 <= level < len(self.levels):
            raise ValueError(f"curriculum level: got {level!r}; allowed are 0 to {len(self.levels) - 1}")
        self.level = level


def _levels(options: CurriculumOptions, ranges: Mapping[str, Range]) -> list[Mapping[str, Range]]:
    if isinstance(options, FixedOptions):
        return [ranges]
    largest = max(high for _, high in ranges.values())
    if isinstance(options, GrowingOptions):
        if options.start > largest:
            raise ValueError(f"curriculum.start: got {options.start}; allowed is at most {largest}, the largest range")
        ends = [*range(options.start, largest, options.step), largest]
        levels = [{name: (low, min(max(low, end), high)) for name, (low, high) in ranges.items()} for end in ends]
        # Ends below every range's beginning give the same level again: a level that changes nothing is none.
        return [level for number, level in enumerate(levels) if number == 0 or level != levels[number - 1]]
    for number, lesson in enumerate(options.lessons):
        if lesson.keys() != ranges.keys():
            raise ValueError(
                f"curriculum.lessons.{number}: got {', '.join(lesson) or 'nothing'}; "
                f"a lesson of this task gives {' and '.join(ranges)}"
            )
        for name, (low, high) in lesson.items():
            if low < ranges[name][0] or high > ranges[name][1]:
                raise ValueError(
                    f"curriculum.lessons.{number}.{name}: got {[low, high]}; allowed is within {list(ranges[name])}"
                )
    return [{name: (low, high) for name, (low, high) in lesson.items()} for lesson in options.lessons]
