"""Which levels each schedule has, what it draws at them and when it moves."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from papertape.envs.curriculum import Curriculum, FixedOptions, GrowingOptions, LessonsOptions

RANGES = {"length": (2, 7), "repeats": (1, 3)}
LESSONS = [
    {"length": [2, 2], "repeats": [1, 1]},
    {"length": [3, 5], "repeats": [2, 2]},
    {"length": [6, 7], "repeats": [3, 3]},
]


def draws(curriculum: Curriculum, name: str, count: int = 3000) -> torch.Tensor:
    return curriculum.draw(count, torch.Generator().manual_seed(0))[name]


def test_fixed_has_the_full_range_and_never_moves() -> None:
    curriculum = Curriculum(FixedOptions(), RANGES)
    assert not curriculum.advance(0.0)
    assert draws(curriculum, "length").unique().tolist() == [2, 3, 4, 5, 6, 7]
    assert draws(curriculum, "repeats").unique().tolist() == [1, 2, 3]


def test_growing_raises_every_upper_end_to_the_task_s_own() -> None:
    curriculum = Curriculum(GrowingOptions(start=1, step=2, threshold=0.1), RANGES)
    ends = [(2, 1)]
    while curriculum.advance(0.05):
        ends.append((int(draws(curriculum, "length").max()), int(draws(curriculum, "repeats").max())))
    assert ends == [(2, 1), (3, 3), (5, 3), (7, 3)]
    assert draws(curriculum, "length").min() == 2


def test_growing_has_no_level_that_changes_nothing() -> None:
    curriculum = Curriculum(GrowingOptions(start=1), {"length": (4, 6)})
    assert [level["length"] for level in curriculum.levels] == [(4, 4), (4, 5), (4, 6)]


@pytest.mark.parametrize("error", [0.1, 5.0, float("nan"), float("inf")])
def test_no_move_unless_the_error_is_under_the_threshold(error: float) -> None:
    curriculum = Curriculum(GrowingOptions(threshold=0.1), RANGES)
    assert not curriculum.advance(error)
    assert curriculum.level == 0


def test_lessons_come_one_after_the_other() -> None:
    curriculum = Curriculum(LessonsOptions(lessons=LESSONS, mix=0.0), RANGES)
    for lesson in LESSONS:
        low, high = lesson["length"]
        assert draws(curriculum, "length").unique().tolist() == list(range(low, high + 1))
        curriculum.advance(0.0)
    assert curriculum.level == 2


def test_lessons_mix_in_earlier_ones_as_often_as_asked() -> None:
    curriculum = Curriculum(LessonsOptions(lessons=LESSONS, mix=0.3), RANGES)
    assert (draws(curriculum, "repeats") == 1).all()
    curriculum.advance(0.0), curriculum.advance(0.0)
    drawn = curriculum.draw(6000, torch.Generator().manual_seed(1))
    shares = torch.bincount(drawn["repeats"], minlength=4)[1:] / 6000
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.1, 0.8]), atol=0.02, rtol=0)
    # Every quantity of one draw comes from the same lesson.
    assert ((drawn["repeats"] == 3) == (drawn["length"] >= 6)).all()


def test_state_round_trip() -> None:
    options = LessonsOptions(lessons=LESSONS)
    curriculum = Curriculum(options, RANGES)
    curriculum.advance(0.0)
    other = Curriculum(options, RANGES)
    other.load_state_dict(curriculum.state_dict())
    assert other.level == 1


@pytest.mark.parametrize("state", [{}, {"level": 3}, {"level": -1}, {"level": "1"}])
def test_foreign_state_is_refused(state: dict) -> None:
    with pytest.raises(ValueError, match=r"curriculum level: got .*; allowed are 0 to 2"):
        Curriculum(LessonsOptions(lessons=LESSONS), RANGES).load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (GrowingOptions(start=8), "curriculum.start: got 8; allowed is at most 7"),
        (LessonsOptions(lessons=[{"length": [2, 3]}]), "curriculum.lessons.0: got length; .* gives length and repeats"),
        (LessonsOptions(lessons=[{}]), "curriculum.lessons.0: got nothing"),
        (
            LessonsOptions(lessons=[{"length": [2, 8], "repeats": [1, 1]}]),
            r"curriculum.lessons.0.length: got \[2, 8\]; allowed is within \[2, 7\]",
        ),
    ],
)
def test_schedules_that_do_not_fit_the_task_are_refused(options: GrowingOptions, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Curriculum(options, RANGES)


@pytest.mark.parametrize(
    ("options", "values"),
    [
        (GrowingOptions, {"start": 0}),
        (GrowingOptions, {"step": 0}),
        (GrowingOptions, {"threshold": 0.0}),
        (LessonsOptions, {"lessons": []}),
        (LessonsOptions, {"lessons": [{"length": [1]}]}),
        (LessonsOptions, {"lessons": [{"length": [3, 2]}]}),
        (LessonsOptions, {"lessons": [{"length": [0, 2]}]}),
        (LessonsOptions, {"mix": 1.5, "lessons": [{"length": [1, 2]}]}),
        (LessonsOptions, {}),
    ],
)
def test_wrong_options_are_refused(options: type, values: dict) -> None:
    with pytest.raises(ValidationError, match=next(iter(values), "lessons")):
        options(**values)
