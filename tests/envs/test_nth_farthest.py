"""Nth farthest, answered by sorting distances one by one."""

from __future__ import annotations

import math

import pytest
import torch

from papertape.envs import NthFarthestEnv


@pytest.mark.parametrize("think_steps", [0, 2])
def test_answers_against_a_loop(think_steps: int) -> None:
    env = NthFarthestEnv(vectors=5, dimensions=3, think_steps=think_steps)
    assert (env.input_size, env.output_size) == (3 + 15, 5)
    inputs, targets, mask = env.sample(200, torch.Generator().manual_seed(0))
    assert inputs.shape == (5 + think_steps, 200, 18)
    assert (inputs[5:] == 0).all() and mask[-1].all() and not mask[:-1].any()
    questions, orders, answers = set(), set(), []
    for b in range(200):
        vectors, labels = {}, []
        for step in range(5):
            channels = inputs[step, b].tolist()
            told = [channels[start : start + 5] for start in (3, 8, 13)]
            assert all(sorted(part) == [0, 0, 0, 0, 1] for part in told)
            label, m, n = (part.index(1) for part in told)
            vectors[label] = channels[:3]
            labels.append(label)
            questions.add((m, n))
        assert sorted(vectors) == list(range(5))
        orders.add(tuple(labels))
        distances = sorted((-math.dist(vectors[label], vectors[m]), label) for label in vectors)
        answers.append(distances[n][1])
        assert n < 4 or answers[-1] == m
    assert targets[-1].tolist() == answers
    assert len(questions) == 25 and len(orders) > 80
    assert float(inputs[..., :3].min()) > -1 and float(inputs[..., :3].max()) < 1


def test_vectors_are_spread_evenly_and_answers_as_well() -> None:
    inputs, targets, _ = NthFarthestEnv().sample(4000, torch.Generator().manual_seed(0))
    assert inputs.shape == (8, 4000, 40)
    assert abs(float(inputs[..., :16].mean())) < 0.01 and abs(float(inputs[..., :16].var()) - 1 / 3) < 0.01
    torch.testing.assert_close(torch.bincount(targets[-1]) / 4000, torch.full((8,), 1 / 8), atol=0.02, rtol=0)
