"""Brackets, answered with a stack."""

from __future__ import annotations

import pytest
import torch

from papertape.envs import BracketsEnv


@pytest.mark.parametrize("answers", ["each", "last"])
@pytest.mark.parametrize(("kinds", "max_depth"), [(1, None), (2, None), (3, 2), (6, 1), (2, 1)])
def test_the_innermost_open_bracket_is_due(kinds: int, max_depth: int | None, answers: str) -> None:
    env = BracketsEnv(kinds=kinds, max_depth=max_depth, answers=answers, max_length=25, lengths="sequence")
    assert (env.input_size, env.output_size) == (2 * kinds, kinds + 1)
    assert len(set(env.input_names())) == 2 * kinds and len(set(env.output_names())) == kinds + 1
    inputs, targets, mask = env.sample(60, torch.Generator().manual_seed(0))
    seen, deepest, opened = set(), 0, [0, 0]
    for b in range(60):
        length = int(mask[:, b].nonzero().max()) + 1
        seen.add(length)
        assert mask[:, b].nonzero().flatten().tolist() == [*range(length)][0 if answers == "each" else -1 :]
        stack: list[int] = []
        for step in range(length):
            token = int(inputs[step, b])
            if 0 < len(stack) < (max_depth or 99):
                opened[token < kinds] += 1
            if token < kinds:
                stack.append(token)
            else:
                assert stack.pop() == token - kinds
            deepest = max(deepest, len(stack))
            if mask[step, b]:
                assert int(targets[step, b]) == (stack[-1] + 1 if stack else 0)
    assert len(seen) > 10
    if max_depth is None:
        assert deepest > 5
    else:
        assert deepest == max_depth
    if sum(opened):
        assert abs(opened[1] / sum(opened) - 0.5) < 0.1


def test_names_say_which_bracket_it_is() -> None:
    assert list(BracketsEnv(think_steps=1).input_names()) == ["(", "[", ")", "]", "think"]
    assert list(BracketsEnv().output_names()) == ["none", "(", "["]
    assert list(BracketsEnv(kinds=5).input_names())[:6] == ["1(", "2(", "3(", "4(", "5(", "1)"]
