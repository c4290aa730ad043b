"""Which levels each schedule has, what it draws at them and when it moves."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from pydantic import Field

from papertape.core import registry
from papertape.core.component import options_of
from papertape.core.registry import name_of
from papertape.envs import CopyEnv, Curriculum, FixedCurriculum, GrowingCurriculum, LessonsCurriculum, RepeatCopyEnv
from papertape.envs.curriculum import Range

RANGES = {"length": (2, 7), "repeats": (1, 3)}
LESSONS = [
    {"length": [2, 2], "repeats": [1, 1]},
    {"length": [3, 5], "repeats": [2, 2]},
    {"length": [6, 7], "repeats": [3, 3]},
]


def draws(curriculum: Curriculum, name: str, count: int = 3000) -> torch.Tensor:
    return curriculum.draw(count, torch.Generator().manual_seed(0))[name]


def test_fixed_has_the_full_range_and_never_moves() -> None:
    curriculum = FixedCurriculum(RANGES)
    assert not curriculum.advance(0.0)
    assert draws(curriculum, "length").unique().tolist() == [2, 3, 4, 5, 6, 7]
    assert draws(curriculum, "repeats").unique().tolist() == [1, 2, 3]


def test_growing_raises_every_upper_end_to_the_task_s_own() -> None:
    curriculum = GrowingCurriculum(RANGES, start=1, step=2, threshold=0.1)
    ends = [(2, 1)]
    while curriculum.advance(0.05):
        ends.append((int(draws(curriculum, "length").max()), int(draws(curriculum, "repeats").max())))
    assert ends == [(2, 1), (3, 3), (5, 3), (7, 3)]
    assert draws(curriculum, "length").min() == 2


def test_growing_has_no_level_that_changes_nothing() -> None:
    curriculum = GrowingCurriculum({"length": (4, 6)}, start=1)
    assert [level["length"] for level in curriculum.levels] == [(4, 4), (4, 5), (4, 6)]


@pytest.mark.parametrize("error", [0.1, 5.0, float("nan"), float("inf")])
def test_no_move_unless_the_error_is_under_the_threshold(error: float) -> None:
    curriculum = GrowingCurriculum(RANGES, threshold=0.1)
    assert not curriculum.advance(error)
    assert curriculum.level == 0


def test_lessons_come_one_after_the_other() -> None:
    curriculum = LessonsCurriculum(RANGES, lessons=LESSONS, mix=0.0)
    for lesson in LESSONS:
        low, high = lesson["length"]
        assert draws(curriculum, "length").unique().tolist() == list(range(low, high + 1))
        curriculum.advance(0.0)
    assert curriculum.level == 2


def test_lessons_mix_in_earlier_ones_as_often_as_asked() -> None:
    curriculum = LessonsCurriculum(RANGES, lessons=LESSONS, mix=0.3)
    assert (draws(curriculum, "repeats") == 1).all()
    curriculum.advance(0.0), curriculum.advance(0.0)
    drawn = curriculum.draw(6000, torch.Generator().manual_seed(1))
    shares = torch.bincount(drawn["repeats"], minlength=4)[1:] / 6000
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.1, 0.8]), atol=0.02, rtol=0)
    # Every quantity of one draw comes from the same lesson.
    assert ((drawn["repeats"] == 3) == (drawn["length"] >= 6)).all()


def test_state_round_trip() -> None:
    curriculum = LessonsCurriculum(RANGES, lessons=LESSONS)
    curriculum.advance(0.0)
    other = LessonsCurriculum(RANGES, lessons=LESSONS)
    other.load_state_dict(curriculum.state_dict())
    assert other.level == 1


@pytest.mark.parametrize("state", [{}, {"level": 3}, {"level": -1}, {"level": "1"}])
def test_foreign_state_is_refused(state: dict) -> None:
    with pytest.raises(ValueError, match=r"curriculum level: got .*; allowed are 0 to 2"):
        LessonsCurriculum(RANGES, lessons=LESSONS).load_state_dict(state)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (GrowingCurriculum, {"start": 8}, "start: got 8; allowed is at most 7, the largest range"),
        (GrowingCurriculum, {"start": 0}, "start: got 0; allowed: greater than or equal to 1"),
        (GrowingCurriculum, {"step": 0}, "step: got 0; allowed: greater than or equal to 1"),
        (GrowingCurriculum, {"threshold": 0.0}, "threshold: got 0.0; allowed: greater than 0"),
        (LessonsCurriculum, {"lessons": [{"length": [2, 3]}]}, "lessons.0: got length; .* gives length and repeats"),
        (LessonsCurriculum, {"lessons": [{}]}, "lessons.0: got nothing"),
        (
            LessonsCurriculum,
            {"lessons": [{"length": [2, 8], "repeats": [1, 1]}]},
            r"lessons.0.length: got \[2, 8\]; allowed is within \[2, 7\]",
        ),
        (LessonsCurriculum, {"lessons": []}, "lessons: got "),
        (LessonsCurriculum, {"lessons": [{"length": [1]}]}, "lessons.0.length: got "),
        (LessonsCurriculum, {"lessons": [{"length": [3, 2]}]}, r"lessons.0.length: got \[3, 2\]; allowed is 1 <="),
        (LessonsCurriculum, {"lessons": [{"length": [0, 2]}]}, r"lessons.0.length: got \[0, 2\]; allowed is 1 <="),
        (LessonsCurriculum, {"mix": 1.5, "lessons": LESSONS}, "mix: got 1.5; allowed: less than or equal to 1"),
    ],
)
def test_wrong_options_are_named_here_and_in_an_env(kind: type[Curriculum], options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        kind(RANGES, **options)
    with pytest.raises(ValueError, match=rf"^curriculum\.{message}"):
        RepeatCopyEnv(min_length=2, max_length=7, max_repeats=3, curriculum={"type": name_of(kind), **options})


def test_what_a_schedule_does_not_have_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"curriculum\.threshold: unknown option; curriculum\.type growing or lessons has"
    ):
        CopyEnv(curriculum={"type": "fixed", "threshold": 0.5})
    with pytest.raises(ValueError, match=r"curriculum\.lessons: missing"):
        CopyEnv(curriculum="lessons")
    with pytest.raises(ValueError, match=r"curriculum\.type: got 'growin'; did you mean 'growing'\?"):
        CopyEnv(curriculum="growin")


class Halves(Curriculum):
    """The lower half of every range, then all of it."""

    threshold: float = Field(0.5, gt=0, description="the error under which the level rises")

    def make_levels(self) -> list[Mapping[str, Range]]:
        return [{name: (low, (low + high) // 2) for name, (low, high) in self.ranges.items()}, self.ranges]


def test_one_from_elsewhere_is_chosen_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._entries, "curriculum", dict(registry._entries["curriculum"]))
    registry.register("curriculum", "halves", Halves)
    env = CopyEnv(max_length=9, curriculum={"type": "halves", "threshold": 0.2})
    lesson = env.lesson()
    assert isinstance(lesson, CopyEnv) and (lesson.min_length, lesson.max_length) == (1, 5)
    assert not env.advance(0.2) and env.advance(0.1) and env.lesson() is None
    assert env.options.model_dump()["curriculum"] == {"type": "halves", "threshold": 0.2}
    with pytest.raises(ValueError, match=r"curriculum\.threshold: got 0\.0; allowed: greater than 0"):
        CopyEnv(curriculum={"type": "halves", "threshold": 0.0})
    options_of.cache_clear()


def test_an_object_may_be_given_if_it_is_for_the_task_s_ranges() -> None:
    curriculum = Halves({"length": (1, 20)})
    assert CopyEnv(curriculum=curriculum).curriculum is curriculum
    with pytest.raises(ValueError, match=r"curriculum: is one for the ranges .*\(1, 20\).*; allowed: for .*\(1, 9\)"):
        CopyEnv(max_length=9, curriculum=curriculum)


@pytest.mark.parametrize("levels", [[], [{"size": (1, 2)}], [RANGES, {"length": (2, 8), "repeats": (1, 3)}]])
def test_levels_that_are_none_of_the_task_s_are_refused(levels: list) -> None:
    class Wrong(Curriculum):
        def make_levels(self) -> list[Mapping[str, Range]]:
            return levels

    with pytest.raises(TypeError, match=r"Wrong\.make_levels: level \d is .*; expected ranges within "):
        Wrong(RANGES)
