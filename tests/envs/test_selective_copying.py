"""Selective copying, decoded sequence by sequence."""

from __future__ import annotations

import pytest
import torch

from papertape.envs import SelectiveCopyingEnv


@pytest.mark.parametrize("lengths", ["batch", "sequence"])
@pytest.mark.parametrize("think_steps", [0, 3])
def test_the_words_are_due_in_order(lengths: str, think_steps: int) -> None:
    env = SelectiveCopyingEnv(
        copied=4, words=6, min_length=5, max_length=12, lengths=lengths, think_steps=think_steps, test_lengths=[30]
    )
    names = list(env.input_names())
    assert names == ["noise", *"123456", *["think"] * (think_steps > 0), "mark"] and env.input_size == len(names)
    inputs, targets, mask = env.sample(40, torch.Generator().manual_seed(1))
    seen, places = set(), set()
    for b in range(40):
        row = [names[token] for token in inputs[:, b].tolist()]
        words = [name for name in row if name not in ("noise", "think", "mark")]
        length = row.index("think" if think_steps else "mark")
        assert row[length : length + think_steps + 4] == ["think"] * think_steps + ["mark"] * 4
        assert set(row[length + think_steps + 4 :]) <= {"noise"}
        asked = mask[:, b].nonzero().flatten().tolist()
        assert asked == list(range(length + think_steps, length + think_steps + 4))
        assert [env.output_names()[answer] for answer in targets[asked, b].tolist()] == words
        assert len(words) == 4
        seen.add(length)
        places |= {step for step, name in enumerate(row) if name in words}
    assert seen <= set(range(5, 13)) and (len(seen) == 1) == (lengths == "batch")
    assert places == set(range(max(seen)))
    assert list(env.sets("test")) == ["length 5-12", "length 30"]


def test_places_and_words_are_drawn_evenly() -> None:
    env = SelectiveCopyingEnv(copied=2, words=3, min_length=6, max_length=6)
    inputs = env.sample(6000, torch.Generator().manual_seed(0)).inputs[:6]
    torch.testing.assert_close((inputs > 0).float().mean(1), torch.full((6,), 1 / 3), atol=0.02, rtol=0)
    torch.testing.assert_close(
        torch.bincount(inputs[inputs > 0]) / 12000, torch.tensor([0, 1, 1, 1]) / 3, atol=0.02, rtol=0
    )


def test_defaults_are_those_of_the_paper() -> None:
    env = SelectiveCopyingEnv()
    batch = env.sample(2, torch.Generator().manual_seed(0))
    assert env.input_size == 16 and batch.inputs.shape == (4096 + 16, 2) and batch.mask.sum() == 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_length": 15}, "min_length: got 15; allowed is at least copied, which is 16"),
        ({"test_lengths": [20, 10]}, "test_lengths.1: got 10; allowed is at least copied, which is 16"),
        ({"min_length": 20, "max_length": 18}, "min_length: got 20; allowed is at most max_length, which is 18"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        SelectiveCopyingEnv(**options)
