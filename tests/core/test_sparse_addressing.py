"""Sparse weightings: the choice of slots is exact, the same for ties, and independent of what follows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import addressing_loops as loops
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from papertape.core import sparse_addressing


def largest_by_sorting(values: list[float], count: int) -> list[int]:
    """By the definition: larger values first, of equal ones the first."""
    return sorted(range(len(values)), key=lambda index: (-values[index], index))[:count]


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.5, 3.0]), min_size=1, max_size=30), data=st.data())
def test_top_k_takes_the_first_of_equals(values, data):
    count = data.draw(st.integers(1, len(values)))
    expected = sorted(largest_by_sorting(values, count))
    for dtype in (torch.float32, torch.float64, torch.int64):
        given_values = torch.tensor(values).mul(2).to(dtype)
        assert sorted(sparse_addressing.top_k(given_values, count).tolist()) == expected
    # Whatever follows, as long as it is not larger.
    smallest = min(values[index] for index in expected)
    longer = torch.tensor(values + [smallest] * 7)
    assert sorted(sparse_addressing.top_k(longer, count).tolist()) == expected


@pytest.mark.parametrize("size", [8193, 20_000, 20_480])
@pytest.mark.parametrize("levels", [3, 10**6])
def test_top_k_of_many_looks_in_the_right_blocks(size, levels):
    generator = torch.Generator().manual_seed(1)
    values = torch.randint(levels, (2, 3, size), generator=generator).float()
    chosen = sparse_addressing.top_k(values, 2)
    for row in range(2):
        for head in range(3):
            assert sorted(chosen[row, head].tolist()) == sorted(largest_by_sorting(values[row, head].tolist(), 2))


def test_least_recent_slots_in_order():
    last_access = torch.tensor([[3, 0, 5, 0, 1], [2, 2, 2, 2, 2]])
    assert sparse_addressing.least_recent(last_access, 1).tolist() == [[1], [0]]
    assert sparse_addressing.least_recent(last_access, 3).tolist() == [[1, 3, 4], [0, 1, 2]]


def test_merging_adds_up_and_keeps_the_heaviest():
    slots = torch.tensor([[4, 1, 4, -1, 2, 1]])
    weights = torch.tensor([[0.2, 0.1, 0.3, 9.0, 0.0, 0.3]], dtype=torch.float64, requires_grad=True)
    assert sparse_addressing.first_of_equals(slots).tolist() == [[True, True, False, True, True, False]]
    torch.testing.assert_close(
        sparse_addressing.totals(slots, weights), torch.tensor([[0.5, 0.4, 0.5, 9.0, 0.0, 0.4]], dtype=torch.float64)
    )
    merged_slots, merged = sparse_addressing.merged(slots, weights, 3)
    assert sorted(merged_slots[0].tolist()) == [1, 2, 4]
    full = sparse_addressing.dense(merged_slots, merged, 6)
    torch.testing.assert_close(full, torch.tensor([[0, 0.4, 0, 0, 0.5, 0]], dtype=torch.float64))
    (gradient,) = torch.autograd.grad((full * torch.arange(6)).sum(), weights)
    assert gradient.tolist() == [[4, 1, 4, 0, 2, 1]]
    assert sparse_addressing.merged(slots, weights, 1)[0].tolist() == [[4]]


def total_by_slot(slots: list[int], weights: list[float]) -> dict[int, float]:
    """Each slot's weight over all entries that name it, in the order in which they are named."""
    found: dict[int, float] = {}
    for slot, weight in zip(slots, weights, strict=True):
        found[slot] = found.get(slot, 0.0) + weight
    return found


def heaviest(entries: list[tuple[int, float]], count: int) -> list[tuple[int, float]]:
    """The heaviest entries, of equal ones the first, those without a slot last."""
    order = largest_by_sorting([weight if slot >= 0 else -math.inf for slot, weight in entries], count)
    return sorted(entries[index] for index in order)


def spread(entries: dict[int, float], size: int) -> list[float]:
    return [entries.get(slot, 0.0) for slot in range(size)]


ORACLES: dict[str, Callable[..., Any]] = {
    "similarity": lambda words, key, mask: [
        loops.cosine(np.array(key), np.array(word), np.array(mask)) for word in words
    ],
    "top_k": lambda values, count: sorted(largest_by_sorting(values, count)),
    "least_recent": lambda times, count: sorted(largest_by_sorting([-time for time in times], count)),
    "owners": lambda slots: [slots.index(slot) for slot in slots],
    "first_of_equals": lambda slots: [slot not in slots[:place] for place, slot in enumerate(slots)],
    "totals": lambda slots, weights: [total_by_slot(slots, weights)[slot] for slot in slots],
    "largest": heaviest,
    "merged": lambda slots, weights, count: heaviest(list(total_by_slot(slots, weights).items()), count),
    "dense": lambda slots, weights, size: spread(total_by_slot(slots, weights), size),
}


def test_every_public_function_has_an_oracle() -> None:
    public = {
        name
        for name, value in vars(sparse_addressing).items()
        if callable(value) and getattr(value, "__module__", "") == sparse_addressing.__name__ and name[0] != "_"
    }
    assert public == set(ORACLES)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 8), st.integers(1, 6), st.booleans())
def test_each_function_against_its_oracle(seed: int, entries: int, size: int, masked: bool) -> None:
    """Two rows of random entries, some of which name the same slot, or none; weights that are equal or 0 now and then.

    Computed in float64.
    """
    generator = np.random.default_rng(seed)
    slots = generator.integers(-1, size, (2, entries))
    weights = generator.choice([0.0, 0.25, 0.5, generator.normal(), generator.normal()], (2, entries))
    times = generator.integers(0, 4, (2, entries))
    words, key = generator.normal(size=(2, entries, 3)), generator.normal(size=(2, 3))
    mask = generator.uniform(0.1, 1, (2, 3)) if masked else None
    count = int(generator.integers(1, entries + 1))

    def same(name: str, found: torch.Tensor, *arguments: Any) -> None:
        for row in range(2):
            expected = ORACLES[name](
                *(part[row].tolist() if isinstance(part, np.ndarray) else part for part in arguments)
            )
            np.testing.assert_allclose(found[row].numpy(), expected, rtol=1e-12, atol=1e-14)

    def same_entries(name: str, found: tuple[torch.Tensor, torch.Tensor], rows: list[Any], kept: int) -> None:
        for row in range(2):
            pairs = sorted(zip(found[0][row].tolist(), found[1][row].tolist(), strict=True))
            np.testing.assert_allclose(pairs, ORACLES[name](*rows[row], kept), rtol=1e-12, atol=1e-14)

    given_slots, given_weights = torch.tensor(slots), torch.tensor(weights)
    ones = np.ones((2, 3)) if mask is None else mask
    cosine = sparse_addressing.similarity(
        torch.tensor(words), torch.tensor(key), None if mask is None else torch.tensor(mask)
    )
    same("similarity", cosine, words, key, ones)
    same("top_k", sparse_addressing.top_k(given_weights, count).sort(dim=-1).values, weights, count)
    same("least_recent", sparse_addressing.least_recent(torch.tensor(times), count), times, count)
    same("owners", sparse_addressing.owners(given_slots), slots)
    same("first_of_equals", sparse_addressing.first_of_equals(given_slots), slots)
    same("totals", sparse_addressing.totals(given_slots, given_weights), slots, weights)
    named = np.abs(slots)
    same("dense", sparse_addressing.dense(torch.tensor(named), given_weights, size + 1), named, weights, size + 1)

    each_once = np.stack([generator.permutation(entries) - 1 for _ in range(2)])
    pairs = [[list(zip(a.tolist(), b.tolist(), strict=True))] for a, b in zip(each_once, weights, strict=True)]
    same_entries("largest", sparse_addressing.largest(torch.tensor(each_once), given_weights, count), pairs, count)
    different = min(len(set(row.tolist()) - {-1}) for row in slots)
    if different:
        merged = sparse_addressing.merged(given_slots, given_weights, different)
        same_entries(
            "merged", merged, [[a.tolist(), b.tolist()] for a, b in zip(slots, weights, strict=True)], different
        )


def test_what_is_no_number_is_the_least_similar() -> None:
    words = torch.tensor([[[1.0, 0.0], [float("nan"), 1.0], [-1.0, 0.0]]])
    found = sparse_addressing.similarity(words, torch.tensor([[1.0, 0.0]]))
    assert found[0, 1] == -math.inf and (found[0, [0, 2]].abs() > 0.99).all()
