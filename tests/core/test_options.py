"""Options refuse what they do not know, and never change."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from papertape import DNC, NTM
from papertape.core.options import Options


class Small(Options):
    type: Literal["small"] = "small"
    size: int = Field(3, ge=1)
    rate: float = 0.5
    on: bool = False
    places: list[Annotated[int, Field(ge=0, lt=2**31)]] = []


def test_right_values_are_taken():
    options = Small(size=4, rate=1, on=True, places=[2**31 - 1])
    assert (options.size, options.rate, options.on) == (4, 1.0, True)


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        ({"sizes": 3}, "sizes"),
        ({"size": 0}, "size"),
        ({"size": "3"}, "size"),
        ({"size": 3.0}, "size"),
        ({"size": True}, "size"),
        ({"rate": float("nan")}, "rate"),
        ({"rate": float("inf")}, "rate"),
        ({"rate": "0.5"}, "rate"),
        ({"on": 1}, "on"),
        ({"on": "yes"}, "on"),
        ({"type": "large"}, "type"),
        ({"places": [0, 2**31]}, "places"),
    ],
)
def test_wrong_values_are_refused_with_their_path(wrong, path):
    with pytest.raises(ValidationError) as caught:
        Small(**wrong)
    assert caught.value.errors()[0]["loc"][0] == path


def test_a_size_that_the_task_of_a_run_makes_too_large_says_what_it_follows_from():
    with pytest.raises(ValueError, match=r"^input_size: got 10000002; allowed: at most 10000000; in a run .* env$"):
        NTM(10_000_002, 8)


def test_options_never_change():
    with pytest.raises(ValidationError, match="frozen"):
        Small().size = 4


@pytest.mark.parametrize("cls", [NTM, DNC])
@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        ({"memory_size": 0}, ("memory_size",)),
        ({"clip": 0.0}, ("clip",)),
        ({"controller": {"type": "transformer"}}, ("controller",)),
        ({"controller": {"type": "gru", "hidden_size": 0}}, ("controller", "hidden_size")),
        ({"controller": {"type": "gru", "units": 3}}, ("controller", "units")),
    ],
)
def test_options_of_circuits_name_the_path(cls, wrong, path):
    with pytest.raises(ValidationError) as caught:
        cls.Options.model_validate(wrong)
    assert caught.value.errors()[0]["loc"] == path
