"""Copy, decoded sequence by sequence."""

from __future__ import annotations

import pytest
import torch

from papertape.envs import CopyEnv


@pytest.mark.parametrize("lengths", ["batch", "sequence"])
def test_every_sequence_holds_its_words_twice(lengths: str) -> None:
    env = CopyEnv(width=5, min_length=2, max_length=7, lengths=lengths)
    assert (env.input_size, env.output_size) == (7, 5)
    inputs, targets, mask = env.sample(30, torch.Generator().manual_seed(1))
    seen = set()
    for b in range(30):
        length = int(mask[:, b].sum())
        seen.add(length)
        assert 2 <= length <= 7
        expected = torch.zeros_like(inputs[:, b])
        answer = torch.zeros_like(targets[:, b])
        expected[0, 5] = 1
        expected[length + 1, 6] = 1
        for word in range(length):
            expected[1 + word, :5] = inputs[1 + word, b, :5]
            answer[length + 2 + word] = inputs[1 + word, b, :5]
        assert torch.equal(inputs[:, b], expected)
        assert torch.equal(targets[:, b], answer)
        assert mask[:, b].nonzero().flatten().tolist() == list(range(length + 2, 2 * length + 2))
    assert inputs.shape[0] == 2 * max(seen) + 2
    assert (len(seen) == 1) == (lengths == "batch")


def test_bits_are_fair_and_differ_between_sequences() -> None:
    env = CopyEnv(min_length=20)
    words = env.sample(200, torch.Generator().manual_seed(0)).inputs[1:21, :, :8]
    assert abs(float(words.mean()) - 0.5) < 0.02
    assert len({tuple(row.flatten().tolist()) for row in words.unbind(1)}) == 200
