"""Multi-query associative recall, decoded sequence by sequence, and its gaps beside those of a slow generator."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from papertape.envs import MQAREnv


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("fill", [True, False])
@pytest.mark.parametrize("think_steps", [0, 2])
def test_every_key_is_asked_for_once_and_its_value_is_due(fill: bool, think_steps: int) -> None:
    env = MQAREnv(length=24, pairs=5, vocabulary=40, fill=fill, think_steps=think_steps)
    assert (env.input_size, env.output_size) == (41 if think_steps else 40, 40)
    inputs, targets, mask = env.sample(30, generator())
    assert inputs.shape == targets.shape == mask.shape == (24 + 5 * think_steps, 30)
    for b in range(30):
        steps = []  # without those for thinking: token, and what is due there
        column = list(zip(inputs[:, b].tolist(), targets[:, b].tolist(), mask[:, b].tolist(), strict=True))
        for number, (token, due, asked) in enumerate(column):
            if token == 40:
                if asked:
                    steps[-1] = (steps[-1][0], due)
                continue
            thinks = think_steps and number + 1 < len(column) and column[number + 1][0] == 40
            assert not (asked and thinks)
            steps.append((token, due if asked else None))
        assert len(steps) == 24
        keys, values = [token for token, _ in steps[:10:2]], [token for token, _ in steps[1:10:2]]
        assert len(set(keys)) == len(set(values)) == 5
        assert all(1 <= key < 20 for key in keys) and all(20 <= value < 40 for value in values)
        assert all(due is None for _, due in steps[:10])
        asked_for = {step: pair for step, pair in enumerate(steps) if pair[1] is not None}
        assert sorted(asked_for.values()) == sorted(zip(keys, values, strict=True))
        assert all(step % 2 == 0 for step in asked_for)
        rest = [token for step, (token, _) in enumerate(steps) if step >= 10 and step not in asked_for]
        assert any(rest) == fill
    assert (targets[mask == 0] == 0).all()


@pytest.mark.parametrize("power", [0.01, 1.0])
def test_gaps_are_those_of_numpys_choice(power: float) -> None:
    """The authors' generator draws gaps with numpy, each sequence for itself, without replacement."""
    env, count = MQAREnv(length=32, pairs=3, vocabulary=64, power=power), 6000
    inputs, _, mask = env.sample(count, generator())
    keys = inputs[0:6:2]
    found = np.zeros((3, 13))
    for b in range(count):
        for step in mask[:, b].nonzero().flatten().tolist():
            found[keys[:, b].tolist().index(int(inputs[step, b])), (step - 6) // 2] += 1
    rng = np.random.default_rng(0)
    chances = power * np.arange(1, 14) ** (power - 1.0)
    wanted = np.zeros((3, 13))
    for _ in range(count):
        for key, gap in enumerate(rng.choice(13, 3, replace=False, p=chances / chances.sum())):
            wanted[key, gap] += 1
    assert np.abs(found - wanted).max() / count < 0.03


def test_all_tokens_turn_up() -> None:
    inputs = MQAREnv(vocabulary=12, fill=True).sample(200, generator()).inputs
    assert set(inputs[:8:2].unique().tolist()) == set(range(1, 6))
    assert set(inputs[1:8:2].unique().tolist()) == set(range(6, 12))
    assert set(inputs[8:].unique().tolist()) == set(range(12))


def test_sets_are_the_sizes_of_the_paper() -> None:
    env = MQAREnv(test_sizes=[[128, 8], [256, 16]])
    assert (env.length, env.pairs, env.vocabulary, env.power) == (64, 4, 8192, 0.01)
    for stream in ("validation", "test"):
        sets = env.sets(stream)
        assert list(sets) == ["length 64, pairs 4", "length 128, pairs 8", "length 256, pairs 16"]
        for (length, pairs), variant in zip([(64, 4), (128, 8), (256, 16)], sets.values(), strict=True):
            batch = variant.sample(3, generator())  # type: ignore[union-attr]
            assert batch.inputs.shape == (length, 3) and batch.mask.sum(0).tolist() == [pairs] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 63}, "length: got 63; allowed is an even number of at least 4"),
        ({"pairs": 17}, "pairs: got 17 pairs; allowed is 1 to 16, a quarter of 64"),
        ({"test_sizes": [[64, 17]]}, "test_sizes.0: got 17 pairs; allowed is 1 to 16, a quarter of 64"),
        ({"test_sizes": [[2, 1]]}, "test_sizes.0: got 2; allowed is an even number of at least 4"),
        ({"vocabulary": 8}, "vocabulary: got 8; allowed is at least 10, which has 4 keys"),
        ({"power": 0.0}, "power"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        MQAREnv(**options)
