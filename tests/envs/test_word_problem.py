"""The word problem, answered by moving things about one element at a time."""

from __future__ import annotations

import pytest
import torch

from papertape.envs import WordProblemEnv


@pytest.mark.parametrize("group", ["S3", "S5", "A4", "A5"])
@pytest.mark.parametrize("lengths", ["batch", "sequence"])
@pytest.mark.parametrize("answers", ["each", "last"])
def test_states_against_things_that_are_moved(group: str, lengths: str, answers: str) -> None:
    env = WordProblemEnv(group=group, max_length=9, lengths=lengths, answers=answers)
    inputs, targets, mask = env.sample(20, torch.Generator().manual_seed(1))
    size, seen = int(group[1]), set()
    for b in range(20):
        length = int(mask[:, b].nonzero().max()) + 1
        seen.add(length)
        assert mask[:, b].nonzero().flatten().tolist() == [*range(length)][0 if answers == "each" else -1 :]
        things = list(range(size))  # which thing is in each place
        for step in range(length):
            element = [int(digit) - 1 for digit in env.input_names()[int(inputs[step, b])]]
            moved = [-1] * size
            for place, to in enumerate(element):
                moved[to] = things[place]
            things = moved
            if mask[step, b]:
                state = [int(digit) - 1 for digit in env.output_names()[int(targets[step, b])]]
                assert [things.index(thing) for thing in range(size)] == state
    assert (len(seen) == 1) == (lengths == "batch")


@pytest.mark.parametrize(
    ("group", "moved", "tokens", "elements"),
    [
        ("S3", None, 6, 6),
        ("S4", None, 24, 24),
        ("S5", None, 120, 120),
        ("S5", 2, 11, 120),  # ten swaps, and nothing moved
        ("A4", None, 12, 12),
        ("A5", None, 60, 60),
        ("A5", 3, 21, 60),
        ("Z2", None, 2, 2),
        ("Z60", None, 60, 60),
    ],
)
def test_sizes_of_groups(group: str, moved: int | None, tokens: int, elements: int) -> None:
    env = WordProblemEnv(group=group, moved=moved)
    assert (env.input_size, env.output_size) == (tokens, elements)
    assert len(set(env.input_names())) == tokens and len(set(env.output_names())) == elements
    for name in env.input_names() if group[0] != "Z" else ():
        assert sum(int(to) != place for place, to in enumerate(name, 1)) <= (moved or 5)
    assert WordProblemEnv(group=group, moved=moved, think_steps=1).input_size == tokens + 1


@pytest.mark.parametrize(("group", "size"), [("Z2", 2), ("Z60", 60)])
def test_turns_add_up(group: str, size: int) -> None:
    inputs, targets, mask = WordProblemEnv(group=group, max_length=30).sample(8, torch.Generator().manual_seed(0))
    total = [0] * 8
    for step in range(len(inputs)):
        total = [(before + turn) % size for before, turn in zip(total, inputs[step].tolist(), strict=True)]
        assert targets[step].tolist() == total
    assert mask.all()


def test_thinking_comes_after_each_element() -> None:
    options = {"group": "S3", "min_length": 4, "max_length": 7, "lengths": "sequence"}
    plain = WordProblemEnv(**options).sample(9, torch.Generator().manual_seed(3))
    slow = WordProblemEnv(**options, think_steps=2).sample(9, torch.Generator().manual_seed(3))
    assert len(slow.inputs) == 3 * len(plain.inputs)
    for b in range(9):
        length = int(plain.mask[:, b].sum())
        for step in range(length):
            assert slow.inputs[3 * step : 3 * step + 3, b].tolist() == [int(plain.inputs[step, b]), 6, 6]
            assert slow.targets[3 * step : 3 * step + 3, b].tolist() == [0, 0, int(plain.targets[step, b])]
            assert slow.mask[3 * step : 3 * step + 3, b].tolist() == [0, 0, 1]
        assert not slow.mask[3 * length :, b].any()


def test_words_that_move_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="^moved: got 2; no element of A5 moves so few things"):
        WordProblemEnv(group="A5", moved=2)
