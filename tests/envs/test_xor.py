from __future__ import annotations

import pytest
import torch

from papertape.envs import XorEnv


def test_truth_table():
    env = XorEnv()
    batch = next(env.batches(4))
    assert batch.inputs.tolist() == [[[0, 0], [0, 1], [1, 0], [1, 1]]]
    assert batch.targets.tolist() == [[[0], [1], [1], [0]]]
    assert batch.mask.tolist() == [[1, 1, 1, 1]]
    assert [part.inputs.shape[1] for part in env.batches(3)] == [3, 1]


def test_parity_and_bias():
    env = XorEnv(bits=3, bias=True)
    assert (env.input_size, env.output_size) == (4, 1)
    batch = next(env.batches(8))
    assert batch.inputs[0, :, 3].all()
    assert torch.equal(batch.targets[0, :, 0], batch.inputs[0, :, :3].sum(1) % 2)


@pytest.mark.parametrize("size", [1, 4, 7, 10])
def test_every_row_as_often_as_any_other(size):
    env = XorEnv()
    batch = env.sample(size, torch.Generator().manual_seed(size))
    assert batch.inputs.shape == (1, size, 2) and batch.targets.shape == (1, size, 1)
    counts = torch.bincount((batch.inputs[0] @ torch.tensor([2.0, 1.0])).long(), minlength=4)
    assert counts.max() - counts.min() <= 1


def test_metrics():
    env = XorEnv()
    batch = next(env.batches(4))
    assert env.metrics(20 * batch.targets - 10, batch)["bits_wrong"] == 0
    assert env.metrics(torch.full((1, 4, 1), 3.0), batch)["bits_wrong"] == 0.5


@pytest.mark.parametrize("wrong", [{"bits": 1}, {"bits": 11}, {"bias": 1}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}: got "):
        XorEnv(**wrong)
    with pytest.raises(ValueError, match="batch_size: got 0"):
        XorEnv().sample(0, torch.Generator())
