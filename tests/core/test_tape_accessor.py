"""The tape against a loop over sequences with Python numbers, its invariants, and states that are left alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from papertape.core.accessors import TapeAccessor, TapeState
from papertape.core.accessors.tape import TapeHeads, nearest


def random_heads(batch: int, width: int, generator: torch.Generator, coarse: bool = True) -> TapeHeads:
    """Coarse words are often equal to others, so that ties are met."""
    add = torch.rand(batch, 1, width, generator=generator, dtype=torch.float64)
    return TapeHeads(
        add=add.round() if coarse else add,
        interpolation=torch.rand(batch, generator=generator, dtype=torch.float64),
        jump=torch.rand(batch, generator=generator, dtype=torch.float64),
        shift=torch.randint(-1, 2, (batch,), generator=generator),
    )


def looped(heads: list[TapeHeads], cells: int, width: int, row: int) -> tuple[list[list[float]], list[int]]:
    """Words read and positions of one sequence, in plain Python, as the paper tells it."""
    tape, position, reads, positions = [[0.0] * width for _ in range(cells)], 0, [], []
    for step in heads:
        word, share = step.add[row, 0].tolist(), float(step.interpolation[row])
        tape[position] = [(1 - share) * old + share * new for old, new in zip(tape[position], word, strict=True)]
        if float(step.jump[row]) > 0.5:
            distances = [sum((a - b) ** 2 for a, b in zip(cell, word, strict=True)) for cell in tape]
            position = min(range(cells), key=lambda cell: (round(distances[cell], 12), cell))
        position = (position + int(step.shift[row])) % cells
        reads.append(list(tape[position]))
        positions.append(position)
    return reads, positions


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), cells=st.integers(1, 9), opened=st.booleans())
def test_equals_a_loop(seed, cells, opened):
    generator = torch.Generator().manual_seed(seed)
    accessor = TapeAccessor(4, memory_size=cells, word_size=3).double()
    heads = [random_heads(5, 3, generator, coarse=bool(seed % 2)) for _ in range(8)]
    state = accessor.initial_state(5)
    state = accessor.begin(state, len(heads)) if opened else state
    reads, positions = [], []
    for step in heads:
        read, state = accessor.access(step, state)
        reads.append(read[:, 0].clone())
        positions.append(state.position)
    for row in range(5):
        expected_reads, expected_positions = looped(heads, cells, 3, row)
        assert torch.stack(positions)[:, row].tolist() == expected_positions
        expected = torch.tensor(expected_reads, dtype=torch.float64)
        torch.testing.assert_close(torch.stack(reads)[:, row], expected)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), steps=st.integers(1, 8), more=st.integers(1, 20))
def test_a_longer_tape_cannot_be_told_from_two_cells_per_step_and_one(seed, steps, more):
    generator = torch.Generator().manual_seed(seed)
    accessor = TapeAccessor(4, memory_size=1, word_size=2).double()
    short, long = accessor.initial_state(6, 2 * steps + 1), accessor.initial_state(6, 2 * steps + 1 + more)
    for _ in range(steps):
        heads = random_heads(6, 2, generator)
        read, short = accessor.access(heads, short)
        expected, long = accessor.access(heads, long)
        assert torch.equal(read, expected)


def test_nearest_takes_the_first_of_equals():
    memory = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.5, 0.5]]])
    assert nearest(memory, torch.tensor([[0.0, 1.0]])).tolist() == [1]
    assert nearest(memory, torch.tensor([[0.6, 0.4]])).tolist() == [3]


def test_a_step_leaves_its_state_alone_and_an_open_tape_leaves_the_one_it_came_from():
    torch.manual_seed(0)
    accessor, hidden = TapeAccessor(4, memory_size=5, word_size=3), torch.randn(2, 4)
    first = accessor.initial_state(2)
    kept = TapeState(*(part.clone() for part in first))
    accessor(hidden, first)
    opened = accessor.begin(first, 2)
    for _ in range(2):
        _, opened, _ = accessor(hidden, opened)
    assert all(torch.equal(part, other) for part, other in zip(first, kept, strict=True))
    last = accessor.end(opened)
    assert type(last) is TapeState
    assert not torch.equal(last.memory, first.memory)


def test_weightings_show_one_cell_each():
    torch.manual_seed(1)
    accessor = TapeAccessor(4, memory_size=5, word_size=3)
    state = accessor.initial_state(2)
    for _ in range(3):
        before = state
        _, state, heads = accessor(torch.randn(2, 4), state)
        seen = accessor.observed(heads, state)
        assert seen["read_weights"].shape == seen["write_weights"].shape == (2, 1, 5)
        assert torch.equal(seen["read_weights"].argmax(-1).squeeze(1), state.position)
        assert torch.equal(seen["read_weights"].sum(-1), torch.ones(2, 1))
        assert torch.equal(seen["write_weights"].argmax(-1).squeeze(1), before.position)
        assert torch.equal(seen["write_weights"].sum(-1).squeeze(1), heads.interpolation)


@pytest.mark.parametrize("name", ["hidden_size", "memory_size", "word_size"])
def test_sizes_are_checked(name):
    sizes = {"hidden_size": 4, "memory_size": 5, "word_size": 3, name: 0}
    with pytest.raises(ValueError, match=f"{name}: got 0"):
        TapeAccessor(**sizes)
