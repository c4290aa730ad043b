"""Devices of any kind: what is random there, and what a checkpoint brings from elsewhere."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from papertape.core.placement import moved, random_apart, random_state, seed_all, set_random_state, take_up

CPU = torch.device("cpu")


class Pair(NamedTuple):
    """A state."""

    first: Tensor
    second: Tensor


def test_everything_within_plain_data_is_moved() -> None:
    part = {"pair": Pair(torch.ones(2), torch.ones(1)), "rows": [torch.ones(3), (torch.ones(1), "text")], "count": 3}
    there = moved(part, torch.device("meta"))
    assert isinstance(there["pair"], Pair)
    assert isinstance(there["rows"][1], tuple)
    assert all(t.is_meta for t in [*there["pair"], there["rows"][0], there["rows"][1][0]])
    assert (there["rows"][1][1], there["count"]) == ("text", 3)


def test_a_generator_goes_on_from_the_state_of_its_kind() -> None:
    other = torch.Generator().manual_seed(3)
    torch.rand(5, generator=other)
    own = torch.Generator().manual_seed(4)
    assert take_up(own, other.get_state())
    assert torch.equal(torch.rand(5, generator=own), torch.rand(5, generator=other))


@pytest.mark.parametrize("state", [torch.arange(16, dtype=torch.uint8), torch.zeros(44, dtype=torch.uint8)])
def test_a_generator_begins_anew_from_the_state_of_another_kind(state: Tensor) -> None:
    first, second = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    assert not take_up(first, state)
    assert not take_up(second, state)
    drawn = torch.rand(5, generator=first)
    assert torch.equal(drawn, torch.rand(5, generator=second))
    assert not take_up(second, state.flip(0) + 1)
    assert not torch.equal(drawn, torch.rand(5, generator=second))


def test_what_is_drawn_apart_changes_nothing() -> None:
    before = torch.get_rng_state()
    with random_apart(CPU):
        seed_all(CPU, 7)
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    assert random_state(CPU) is None
    set_random_state(CPU, None)
