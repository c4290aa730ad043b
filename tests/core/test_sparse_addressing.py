"""Sparse weightings: the choice of slots is exact, the same for ties, and independent of what follows."""

from __future__ import annotations

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
