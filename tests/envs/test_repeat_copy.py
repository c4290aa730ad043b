"""Repeat-copy, decoded sequence by sequence."""

from __future__ import annotations

import pytest
import torch

from papertape.circuits import DNC
from papertape.core.component import build
from papertape.core.env import Env
from papertape.envs import RepeatCopyEnv
from papertape.utils.options import load_file


@pytest.mark.parametrize("lengths", ["batch", "sequence"])
def test_every_sequence_repeats_its_words_as_told(lengths: str) -> None:
    env = RepeatCopyEnv(width=4, max_length=3, max_repeats=5, repeat_scale=20.0, lengths=lengths)
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


@pytest.mark.parametrize(("fewest", "most"), [(1, 10), (3, 8), (2, 2)])
def test_the_number_of_repeats_as_in_the_ntm_paper(fewest: int, most: int) -> None:
    """Mean 0 and variance 1 over the training range; sets beyond it are told in the same measure."""
    env = RepeatCopyEnv(max_length=2, min_repeats=fewest, max_repeats=most, repeat_scale=None, lengths="sequence")
    counts = list(range(fewest, most + 1))
    mean = sum(counts) / len(counts)
    deviation = (sum((count - mean) ** 2 for count in counts) / len(counts)) ** 0.5 or 1.0

    def told(env: Env, repeats: list[int]) -> None:
        inputs, _, mask = env.sample(4000, torch.Generator().manual_seed(1))
        assert torch.equal(inputs[0, :, -2], torch.ones(4000))
        seen = set()
        for b in range(4000):
            answers, end = int(mask[:, b].sum()), int(mask[:, b].nonzero()[0]) - 1
            repeated = (answers - 1) // (end - 1)
            seen.add(repeated)
            assert inputs[end, b, -1].item() == pytest.approx((repeated - mean) / deviation, abs=1e-6)
        assert seen == set(repeats)

    told(env, counts)
    sets = env.sets("test")
    told(sets[f"length 2, repeats {2 * most}"], [2 * most])
    told(sets[f"length 4, repeats {most}"], [most])


def test_presets_tell_the_number_of_repeats_as_their_papers_do() -> None:
    def env(preset: str) -> RepeatCopyEnv:
        return build(RepeatCopyEnv.Options.model_validate(load_file(preset)["env"]))

    ntm, dnc = env("ntm-repeat-copy"), env("dnc-repeat-copy")
    assert (ntm.repeats_mean, ntm.repeats_scale) == (5.5, pytest.approx(8.25**0.5))
    assert (dnc.repeats_mean, dnc.repeats_scale) == (0.0, 10.0)


def test_sizes_of_the_small_dnc_preset() -> None:
    env = RepeatCopyEnv(width=4, max_length=2, max_repeats=2)
    circuit = DNC(env.input_size, env.output_size, hidden_size=64, memory_size=16, word_size=16)
    assert sum(parameter.numel() for parameter in circuit.parameters()) == 44_236
    assert list(env.sets("test"))[1:] == ["length 4, repeats 2", "length 2, repeats 4"]
