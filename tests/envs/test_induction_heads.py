"""Induction heads, decoded sequence by sequence."""

from __future__ import annotations

import pytest
import torch

from papertape.envs import InductionHeadsEnv


@pytest.mark.parametrize("lengths", ["batch", "sequence"])
@pytest.mark.parametrize("think_steps", [0, 2])
def test_the_word_after_the_first_mark_is_due_at_the_last(lengths: str, think_steps: int) -> None:
    env = InductionHeadsEnv(words=5, min_length=3, max_length=9, lengths=lengths, think_steps=think_steps)
    names = list(env.input_names())
    inputs, targets, mask = env.sample(60, torch.Generator().manual_seed(1))
    seen, firsts = set(), set()
    for b in range(60):
        row = [names[token] for token in inputs[:, b].tolist()]
        marks = [step for step, name in enumerate(row) if name == "mark"]
        (asked,) = mask[:, b].nonzero().flatten().tolist()
        first, last = marks
        assert asked == last + think_steps and row[last + 1 : asked + 1] == ["think"] * think_steps
        assert first + 1 < last and "think" not in row[:last]
        assert env.output_names()[int(targets[asked, b])] == row[first + 1]
        seen.add(last + 1)
        firsts.add(first)
    assert seen <= set(range(3, 10)) and (len(seen) == 1) == (lengths == "batch")
    assert firsts == set(range(max(seen) - 2))


def test_defaults_are_those_of_the_paper() -> None:
    env = InductionHeadsEnv()
    assert (env.input_size, env.output_size) == (16, 15)
    assert env.sample(2, torch.Generator().manual_seed(0)).inputs.shape == (256, 2)
    first, *_, last = env.sets("test")
    assert (first, last) == ("length 256", "length 4096")
