"""Repeat-copy, decoded sequence by sequence."""

from __future__ import annotations

import pytest
import torch

import papertape
from papertape.envs import RepeatCopyEnv, RepeatCopyOptions


@pytest.mark.parametrize("lengths", ["batch", "sequence"])
def test_every_sequence_repeats_its_words_as_told(lengths: str) -> None:
    env = RepeatCopyEnv(RepeatCopyOptions(width=4, max_length=3, max_repeats=5, repeat_scale=20.0, lengths=lengths))
    assert (env.input_size, env.output_size) == (6, 5)
    inputs, targets, mask = env.sample(40, torch.Generator().manual_seed(1))
    seen = set()
    for b in range(40):
        length = int(inputs[:, b, 5].nonzero()) - 1
        repeats = round(float(inputs[length + 1, b, 5]) * 20)
        seen.add((length, repeats))
        expected = torch.zeros_like(inputs[:, b])
        expected[0, 4] = 1
        expected[length + 1, 5] = repeats / 20
        expected[1 : length + 1, :4] = inputs[1 : length + 1, b, :4]
        assert torch.equal(inputs[:, b], expected)
        answer = torch.zeros_like(targets[:, b])
        step = length + 2
        for _ in range(repeats):
            for word in range(length):
                answer[step, :4] = inputs[1 + word, b, :4]
                step += 1
        answer[step, 4] = 1
        assert torch.equal(targets[:, b], answer)
        assert mask[:, b].nonzero().flatten().tolist() == list(range(length + 2, step + 1))
    assert inputs.shape[0] == max(length * (repeats + 1) + 3 for length, repeats in seen)
    assert (len(seen) == 1) == (lengths == "batch")


def test_sizes_of_the_small_dnc_preset() -> None:
    env = RepeatCopyEnv(RepeatCopyOptions(width=4, max_length=2, max_repeats=2))
    circuit = papertape.DNC(env.input_size, env.output_size, hidden_size=64, memory_size=16, word_size=16)
    assert sum(parameter.numel() for parameter in circuit.parameters()) == 44_236
    assert list(env.sets("test"))[1:] == ["length 4, repeats 2", "length 2, repeats 4"]
