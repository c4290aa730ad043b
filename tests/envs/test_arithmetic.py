"""Arithmetic: results, pairs that are kept apart, and errors as shares of what is due."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from papertape.envs import ArithmeticEnv

ALL = ["addition", "subtraction", "multiplication", "division"]


def computed(operation: str, first: int, second: int) -> float:
    return {
        "addition": first + second,
        "subtraction": first - second,
        "multiplication": first * second,
        "division": first / second,
    }[operation]


@given(st.integers(1, 50), st.integers(0, 99), st.sampled_from([3, 7, 30]))
def test_batches_against_a_loop(count: int, seed: int, largest: int) -> None:
    env = ArithmeticEnv(operations=ALL, max_number=largest)
    inputs, targets, mask = env.sample(count, torch.Generator().manual_seed(seed))
    assert mask.tolist() == [[1.0] * count]
    for row, target in zip(inputs[0].double(), targets[0], strict=True):
        first, second = (round(float(number) * largest) for number in row[:2])
        which = [name for name, chosen in zip(ALL, row[2:], strict=True) if chosen == 1]
        assert len(which) == 1
        assert float(target) == pytest.approx(computed(which[0], first, second))


def test_pairs_are_in_one_stream_each() -> None:
    env = ArithmeticEnv(max_number=9, held_out=0.3)

    def pairs(batches: Any) -> set[tuple[int, ...]]:
        return {tuple((9 * row[:2]).round().int().tolist()) for batch in batches for row in batch.inputs[0]}

    found = {stream: env.sets(stream)["held-out pairs"] for stream in ("validation", "test")}
    generator = torch.Generator().manual_seed(0)
    parts = [pairs([env.sample(5000, generator)]), *(pairs(part.batches(7)) for part in found.values())]
    drawn = pairs([found["test"].sample(2000, generator)])
    assert drawn == parts[2]
    assert [len(part) for part in parts] == [57, 12, 12]
    assert len(set.union(*parts)) == 81
    assert sum(batch.inputs.shape[1] for batch in env.batches(16)) == 2 * 57
    other = ArithmeticEnv(max_number=9, held_out=0.3, task_seed=1)
    assert pairs(other.batches(99)) != parts[0]
    whole = ArithmeticEnv(max_number=9, held_out=0)
    assert whole.sets("test") == {"all pairs": whole}
    assert len(pairs(whole.batches(99))) == 81


def test_metrics_against_a_loop() -> None:
    env = ArithmeticEnv(operations=ALL)
    generator = torch.Generator().manual_seed(2)
    batch = env.sample(400, generator)
    wrong = 10 ** (torch.rand(1, 400, 1, generator=generator) * 3 - 3)
    outputs = batch.targets + wrong * batch.targets.abs().clamp(min=1)
    errors = [
        abs(float(answer) - float(due)) / max(abs(float(due)), 1)
        for answer, due in zip(outputs[0], batch.targets[0], strict=True)
    ]
    found = env.metrics(outputs, batch)
    assert found["loss"] == pytest.approx(sum(error**2 for error in errors) / 400, rel=1e-4)
    assert float(env.loss(outputs, batch)) == pytest.approx(found["loss"], rel=1e-5)
    for share in (5, 15, 1):
        assert found[f"within_{share}"] == pytest.approx(sum(error <= share / 100 for error in errors) / 400, abs=1e-6)
    assert found["error"] == pytest.approx(1 - found["within_5"])
    divisions = [error for error, row in zip(errors, batch.inputs[0], strict=True) if row[5] == 1]
    close = sum(error <= 0.05 for error in divisions) / len(divisions)
    assert found["within_5/division"] == pytest.approx(close, abs=1e-6)
    perfect = env.metrics(batch.targets, batch)
    assert (perfect["error"], perfect["loss"], perfect["within_1"]) == (0, 0, 1)


def test_one_operation_needs_no_channel() -> None:
    env = ArithmeticEnv(operations=["multiplication"])
    assert (env.input_size, [channels.size for channels in env.input_channels()]) == (2, [2])
    batch = env.sample(20, torch.Generator().manual_seed(0))
    torch.testing.assert_close(batch.targets[..., 0], 100 * batch.inputs.prod(-1))
    assert "within_5/multiplication" not in env.metrics(batch.targets, batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operations": ["addition", "addition"]}, "operations: got .*; allowed is each once"),
        ({"operations": []}, "operations: got "),
        ({"operations": ["power"]}, r"operations.0: got 'power'; allowed: 'addition', "),
        (
            {"max_number": 2, "held_out": 0.2},
            "held_out: got 0.2, 1 of 4 pairs; allowed are 0, or shares that make up 2",
        ),
        ({"max_number": 2, "held_out": 0.9}, "held_out: got 0.9, 4 of 4 pairs"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        ArithmeticEnv(**options)
    with pytest.raises(ValueError, match="batch_size: got 0"):
        ArithmeticEnv().sample(0, torch.Generator())
