"""Dynamic n-grams: the sequences, the best possible estimator and the excess over it."""

from __future__ import annotations

import math

import pytest
import torch

from papertape.envs import DynamicNGramsEnv
from papertape.envs.dynamic_ngrams import optimal_estimates


def logits(estimates: torch.Tensor) -> torch.Tensor:
    return torch.logit(estimates).unsqueeze(-1)


def test_every_bit_is_to_be_predicted_before_it_is_seen() -> None:
    env = DynamicNGramsEnv(order=3, min_length=4, max_length=9, lengths="sequence")
    assert (env.input_size, env.output_size) == (1, 1)
    inputs, targets, mask = env.sample(40, torch.Generator().manual_seed(1))
    seen = set()
    for b in range(40):
        length = int(mask[:, b].sum())
        seen.add(length)
        assert mask[:length, b].all()
        assert inputs[0, b] == 0
        assert torch.equal(inputs[1:length, b], targets[: length - 1, b])
        assert (inputs[length:, b] == 0).all() and (targets[length:, b] == 0).all()
    assert seen == set(range(4, 10))


@pytest.mark.parametrize("order", [2, 3, 6])
@pytest.mark.parametrize("length", [1, 5, 60])
def test_estimator_against_a_loop(order: int, length: int) -> None:
    bits = torch.randint(2, (length, 3), generator=torch.Generator().manual_seed(order)).double()
    estimates = optimal_estimates(bits, order)
    for b in range(3):
        counts: dict[tuple[float, ...], list[int]] = {}
        for t in range(length):
            expected = 0.5
            if t >= order - 1:
                zeros, ones = counts.setdefault(tuple(bits[t - order + 1 : t, b].tolist()), [0, 0])
                expected = (ones + 0.5) / (zeros + ones + 1)
                counts[tuple(bits[t - order + 1 : t, b].tolist())][int(bits[t, b])] += 1
            assert float(estimates[t, b]) == pytest.approx(expected, abs=1e-12)


def test_bits_depend_on_their_context_alone() -> None:
    """On a long sequence the shares of ones after each context are those of a table from Beta(1/2, 1/2)."""
    env = DynamicNGramsEnv(order=2, min_length=4000, max_length=4000)
    bits = env.sample(200, torch.Generator().manual_seed(0)).targets.squeeze(-1)
    shares = []
    for context in (0, 1):
        after = (bits[:-1] == context).double()
        halves = [
            (after[part] * bits[1:][part]).sum(0) / after[part].sum(0) for part in (slice(0, 2000), slice(2000, None))
        ]
        often = (after[:2000].sum(0) > 300) & (after[2000:].sum(0) > 300)
        assert often.sum() > 100
        assert (halves[0] - halves[1])[often].abs().max() < 0.15
        shares.append(bits[1:].where(bits[:-1] == context, torch.nan).nanmean(0))
    chances = torch.stack(shares).flatten()
    chances = chances[~chances.isnan()]
    # Beta(1/2, 1/2) has mean 1/2, variance 1/8 and a third of its mass below 1/4.
    assert abs(float(chances.mean()) - 0.5) < 0.06
    assert abs(float(chances.var()) - 0.125) < 0.02
    assert abs(float((chances < 0.25).double().mean()) - 1 / 3) < 0.07


def test_optimum_is_the_paper_s_133_bits_and_has_no_excess() -> None:
    env = DynamicNGramsEnv()
    batch = env.sample(1000, torch.Generator().manual_seed(0))
    metrics = env.metrics(logits(optimal_estimates(batch.targets.squeeze(-1), 6)), batch)
    assert metrics["optimal_bits"] == pytest.approx(133, abs=2)
    assert metrics["bits"] == pytest.approx(metrics["optimal_bits"], rel=1e-5)
    assert metrics["excess_bits"] == pytest.approx(0, abs=1e-3)
    assert "bits_wrong" not in metrics
    know_nothing = env.metrics(torch.zeros_like(batch.targets), batch)
    assert know_nothing["bits"] == pytest.approx(200, rel=1e-5)
    assert know_nothing["loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert know_nothing["excess_bits"] == pytest.approx(200 - know_nothing["optimal_bits"], rel=1e-5)


def test_estimator_comes_near_the_entropy_of_the_table() -> None:
    """Over a long sequence the optimum pays little over knowing the table, here estimated from the whole sequence."""
    env = DynamicNGramsEnv(order=3, min_length=1500, max_length=1500)
    batch = env.sample(20, torch.Generator().manual_seed(0))
    bits = batch.targets.squeeze(-1)
    known = torch.full_like(bits, 0.5)
    for context in range(4):
        here = (bits[:-2] == context // 2) & (bits[1:-1] == context % 2)
        share = bits[2:].where(here, torch.nan).nanmean(0)
        known[2:] = torch.where(here, share, known[2:])
    best = env.metrics(logits(known.clamp(1e-6, 1 - 1e-6)), batch)["bits"]
    optimal = env.metrics(logits(optimal_estimates(bits, 3)), batch)["bits"]
    assert best < optimal < best + 4 * (0.5 * math.log2(1500) + 2)
