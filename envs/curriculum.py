"""Curriculum: which ranges of difficulty a task draws from, and when it moves on to harder ones."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from ..core.component import Chosen, Component
from ..core.contracts import expect, trying
from ..core.options import ContractError
from ..core.registry import contract, register

Range = tuple[int, int]
"""Smallest and largest value, both included."""


@contract("curriculum")
class Curriculum(Component, ABC):
    """Draws a task's quantities (length, repeats, …) from the ranges of the current level.

    A subclass makes the levels in :meth:`make_levels`. It may override :meth:`advance`, if something else than the
    error on the current level decides when the level rises, and :meth:`draw`.
    """

    kept = frozenset()

    ranges: Mapping[str, Range] = Field(kw_only=False, description="the task's full range of each quantity")
    threshold: float = Field(default=1.0, init=False)
    """The error under which the level rises; an option of those that have more than one."""
    mix: float = Field(default=0.0, init=False)
    """Share of draws that come from a level picked evenly among those met so far."""

    @abstractmethod
    def make_levels(self) -> Sequence[Mapping[str, Range]]:
        """The ranges of each level, the easiest first; called once.

        Raises:
            ValueError: the options do not fit the task's :attr:`ranges`; begins with the name of the option.
        """

    def after_setup(self) -> None:
        """Make the levels and begin with the first.

        Raises:
            ContractError: a subclass makes levels that are none of this task's; names it and what is expected.
        """
        with trying(self, "make_levels", options=True):
            self.levels = [dict(level) for level in self.make_levels()]
        self.level = 0
        for number, level in enumerate(self.levels or [{}]):
            within = level.keys() == self.ranges.keys() and all(
                self.ranges[name][0] <= low <= high <= self.ranges[name][1] for name, (low, high) in level.items()
            )
            if not within:
                raise ContractError(
                    f"{type(self).__qualname__}.make_levels: level {number} is {dict(level)}; expected ranges within "
                    f"{dict(self.ranges)}"
                )

    def check(self) -> None:
        """Check by a trial on a copy that the curriculum meets its contract.

        Raises:
            ContractError: it is not; names the class, what was found and what is expected.
        """
        name, count, tried = type(self).__qualname__, 3, copy.deepcopy(self)
        for _ in range(2):
            with trying(self, "draw"):
                drawn = tried.draw(count, torch.Generator().manual_seed(0))
            found = f"gives {drawn!r}"
            expect(isinstance(drawn, Mapping), f"{name}.draw", found, "numbers by the name of each quantity")
            expect(drawn.keys() == self.ranges.keys(), f"{name}.draw", found, f"{', '.join(self.ranges)}")
            for quantity, (low, high) in self.ranges.items():
                numbers = drawn[quantity]
                right = isinstance(numbers, Tensor) and numbers.shape == (count,) and not numbers.is_floating_point()
                right = right and bool(((numbers >= low) & (numbers <= high)).all())
                expected = f"{count} whole numbers from {low} to {high}"
                expect(right, f"{name}.draw", f"{quantity} is {numbers!r}", expected)
            with trying(self, "advance"):
                tried.advance(0.0)
                tried.load_state_dict(tried.state_dict())

    def draw_ranges(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw ``count`` times the range that each quantity has at the current level, or at an earlier one.

        Args:
            count: how many independent draws.
            generator: the only source of randomness; the result is on its device.

        Returns:
            For each quantity its smallest and largest value, ``[count, 2]``.
        """
        device = generator.device
        levels = torch.full((count,), self.level, device=device)
        if self.mix and self.level:
            any_level = torch.randint(self.level + 1, (count,), generator=generator, device=device)
            levels = torch.where(torch.rand(count, generator=generator, device=device) < self.mix, any_level, levels)
        return {
            name: torch.tensor([level[name] for level in self.levels], device=device)[levels] for name in self.ranges
        }

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw every quantity ``count`` times, evenly within its range.

        Args:
            count: how many independent draws.
            generator: the only source of randomness; the result is on its device.

        Returns:
            For each quantity whole numbers, ``[count]``.
        """
        drawn = {}
        for name, ranges in self.draw_ranges(count, generator).items():
            low, high = ranges.unbind(-1)
            share = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64)
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
        """Restore the level that :meth:`state_dict` returned.

        Raises:
            ValueError: no such level; it was saved with another schedule.
        """
        level = state.get("level")
        if not isinstance(level, int) or not 0 <= level < len(self.levels):
            raise ValueError(f"curriculum level: got {level!r}; allowed are 0 to {len(self.levels) - 1}")
        self.level = level


AnyCurriculum = Annotated[Any, Chosen("curriculum")]
"""A curriculum as an option: its name, its name as ``type`` with its options, or an object for the task's ranges."""


@register("curriculum", "fixed")
class FixedCurriculum(Curriculum):
    """Always the full range of the task."""

    def make_levels(self) -> list[Mapping[str, Range]]:
        """The task's ranges."""
        return [self.ranges]


@register("curriculum", "growing")
class GrowingCurriculum(Curriculum):
    """The upper end of every range grows until it reaches the task's own (Zaremba & Sutskever 2014)."""

    start: int = Field(
        default=1,
        ge=1,
        description="upper end of the ranges at first; a range that begins above it starts with its smallest value "
        "alone",
    )
    step: int = Field(default=1, ge=1, description="how much the upper ends rise at a time")
    threshold: float = Field(
        default=1.0,
        gt=0,
        description="the validation error on the current level, in the task's error metric, under which the level rises"
        "",
    )

    def make_levels(self) -> list[Mapping[str, Range]]:
        """One for each upper end; see :meth:`Curriculum.make_levels`."""
        largest = max(high for _, high in self.ranges.values())
        if self.start > largest:
            raise ValueError(f"start: got {self.start}; allowed is at most {largest}, the largest range")
        ends = [*range(self.start, largest, self.step), largest]
        levels = [{name: (low, min(max(low, end), high)) for name, (low, high) in self.ranges.items()} for end in ends]
        # Ends below every range's beginning give the same level again: a level that changes nothing is none.
        return [level for number, level in enumerate(levels) if number == 0 or level != levels[number - 1]]


@register("curriculum", "lessons")
class LessonsCurriculum(Curriculum):
    """A list of lessons, each giving every range of the task, mixed with earlier ones (Graves et al. 2016, Methods)."""

    lessons: list[dict[str, Annotated[list[int], Field(min_length=2, max_length=2)]]] = Field(
        min_length=1,
        description="for each lesson the range [smallest, largest] of each of the task's quantities: "
        "- {length: [1, 5]}",
    )
    mix: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="share of draws that come from a lesson picked evenly among those met so far, against forgetting",
    )
    threshold: float = Field(
        default=1.0,
        gt=0,
        description="the validation error on the current lesson, in the task's error metric, under which the next one "
        "starts",
    )

    @classmethod
    def check_options(cls, options: Any) -> None:
        """Refuse ranges that end before they begin."""
        super().check_options(options)
        for number, lesson in enumerate(options.lessons):
            for name, (low, high) in lesson.items():
                if not 1 <= low <= high:
                    raise ValueError(f"lessons.{number}.{name}: got {[low, high]}; allowed is 1 <= smallest <= largest")

    def make_levels(self) -> list[Mapping[str, Range]]:
        """The lessons; see :meth:`Curriculum.make_levels`."""
        for number, lesson in enumerate(self.lessons):
            if lesson.keys() != self.ranges.keys():
                raise ValueError(
                    f"lessons.{number}: got {', '.join(lesson) or 'nothing'}; "
                    f"a lesson of this task gives {' and '.join(self.ranges)}"
                )
            for name, (low, high) in lesson.items():
                if low < self.ranges[name][0] or high > self.ranges[name][1]:
                    raise ValueError(
                        f"lessons.{number}.{name}: got {[low, high]}; allowed is within {list(self.ranges[name])}"
                    )
        return [{name: (low, high) for name, (low, high) in lesson.items()} for lesson in self.lessons]
