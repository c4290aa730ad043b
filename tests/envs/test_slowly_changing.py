"""Slowly-changing regression: its network and its bits against a loop, wherever the stream is."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from papertape.envs import SlowlyChangingEnv


def said(env: SlowlyChangingEnv, bits: list[float]) -> float:
    """What the network of the env says, one unit after the other."""
    total = float(env.output_bias)
    for unit in range(env.units):
        weights, bias = env.weights[unit].tolist(), float(env.biases[unit])
        total_sum = bias + sum(bit * weight for bit, weight in zip(bits, weights, strict=True))
        if total_sum > env.threshold * (env.bits + 1) - (weights.count(-1.0) + bias / 2):
            total += float(env.output_weights[unit])
    return total


@pytest.mark.parametrize("options", [{}, {"bits": 6, "slow_bits": 2, "units": 9, "threshold": 0.5, "task_seed": 3}])
def test_targets_against_a_loop(options: dict[str, Any]) -> None:
    env = SlowlyChangingEnv(**options)
    batch = env.sample(60, torch.Generator().manual_seed(1))
    assert set(batch.inputs.unique().tolist()) <= {0.0, 1.0}
    assert batch.targets[0, :, 0].tolist() == [said(env, row) for row in batch.inputs[0].tolist()]
    assert len(batch.targets.unique()) > 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.sampled_from(["one", "all"]))
def test_slow_bits_depend_on_the_place_in_the_stream_alone(counts: list[int], change: Any) -> None:
    options = {"bits": 8, "slow_bits": 5, "units": 3, "every": 4, "change": change}
    env, single = SlowlyChangingEnv(**options), SlowlyChangingEnv(**options)
    generator = torch.Generator().manual_seed(0)
    for count in counts:
        expected = []
        for _ in range(count):
            assert single.task_number == single.seen // 4
            expected.append(single.sample(1, generator).inputs[0, 0, :5].tolist())
            single.move_on(1)
        assert env.sample(count, generator).inputs[0, :, :5].tolist() == expected
        env.move_on(count)
        assert (env.state_dict(), env.task_number) == (single.state_dict(), single.task_number)


def test_one_bit_flips_from_task_to_task() -> None:
    env, tasks = SlowlyChangingEnv(every=10), []
    for _ in range(40):
        tasks.append(list(env.slow))
        env.move_on(10)
    assert [sum(map(int.__ne__, *pair)) for pair in pairwise(tasks)] == [1] * 39
    other = SlowlyChangingEnv(every=10, task_seed=1)
    assert not torch.equal(other.weights, env.weights)


def test_drawing_and_judging_move_nothing_and_the_state_is_taken_up() -> None:
    env = SlowlyChangingEnv(every=10)
    env.move_on(25)
    state = copy.deepcopy(env.state_dict())
    (name, variant), *more = env.sets("test").items()
    assert (name, more) == ("current task", [])
    variant.sample(500, torch.Generator())
    variant.move_on(500)
    slow = variant.sample(500, torch.Generator().manual_seed(0)).inputs[0, :, :15]
    assert slow.unique(dim=0).tolist() == [env.slow]
    env.sample(500, torch.Generator())
    assert env.state_dict() == state
    again = SlowlyChangingEnv(every=10)
    again.load_state_dict(state)
    seeds = [torch.Generator().manual_seed(4) for _ in range(2)]
    assert torch.equal(again.sample(30, seeds[0]).inputs, env.sample(30, seeds[1]).inputs)
    assert again.slow == env.slow
    with pytest.raises(ValueError, match="env state: got none; this env keeps seen"):
        again.load_state_dict({})


def test_metrics_and_wrong_options() -> None:
    env = SlowlyChangingEnv()
    batch = env.sample(50, torch.Generator().manual_seed(0))
    outputs = batch.targets + 0.5
    assert env.metrics(outputs, batch) == {"loss": 0.25}
    assert float(env.loss(outputs, batch)) == 0.25
    assert float(env.right(batch.targets, batch).mean()) == 1
    with pytest.raises(ValueError, match="slow_bits: got 9; allowed is at most bits, which is 8"):
        SlowlyChangingEnv(bits=8, slow_bits=9)
    with pytest.raises(ValueError, match="batch_size: got 0"):
        env.sample(0, torch.Generator())
