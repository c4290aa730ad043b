"""SNES and PGPE against loops over members."""

import math

import pytest
import torch

from papertape.agents.strategies import PGPE, SNES


def start(size):
    return torch.linspace(-1, 1, size, dtype=torch.float64)


def test_snes_against_a_loop():
    size, population = 7, 10
    strategy = SNES(start(size), population=population, sigma=0.3, seed=1)
    center, sigma = start(size).tolist(), [0.3] * size
    generator = torch.Generator().manual_seed(4)
    for _ in range(4):
        genomes = strategy.ask().tolist()
        fitness = torch.randn(population, generator=generator)
        strategy.tell(fitness)
        raw = [max(0.0, math.log(population / 2 + 1) - math.log(rank)) for rank in range(1, population + 1)]
        ranking = sorted(range(population), key=lambda member: -float(fitness[member]))
        rate = (3 + math.log(size)) / (5 * math.sqrt(size))
        for weight in range(size):
            mean_gradient = sigma_gradient = 0.0
            for rank, member in enumerate(ranking):
                utility = raw[rank] / sum(raw) - 1 / population
                z = (genomes[member][weight] - center[weight]) / sigma[weight]
                mean_gradient += utility * z
                sigma_gradient += utility * (z * z - 1)
            center[weight] += sigma[weight] * mean_gradient
            sigma[weight] *= math.exp(rate / 2 * sigma_gradient)
        torch.testing.assert_close(strategy.best, torch.tensor(center, dtype=torch.float64))
        torch.testing.assert_close(strategy.deviations, torch.tensor(sigma, dtype=torch.float64))


def test_snes_sizes_its_population_and_rate_by_the_genome():
    strategy = SNES(start(100))
    assert strategy.population == 4 + math.floor(3 * math.log(100))
    assert strategy.deviations_lr == pytest.approx((3 + math.log(100)) / 50)


def test_pgpe_against_a_loop():
    size, pairs = 6, 5
    strategy = PGPE(start(size), population=2 * pairs, max_speed=0.1, lr=0.08, sigma=0.2, sigma_lr=0.5, seed=1)
    center, sigma, velocity = start(size).tolist(), [0.2] * size, [0.0] * size
    generator = torch.Generator().manual_seed(4)
    clipped = 0
    for _ in range(6):
        genomes = strategy.ask().tolist()
        fitness = torch.randn(2 * pairs, generator=generator)
        strategy.tell(fitness)
        ranks = [sum(bool(other < own) for other in fitness) / (2 * pairs - 1) - 0.5 for own in fitness]
        gradient, sigma_gradient = [0.0] * size, [0.0] * size
        for weight in range(size):
            for pair in range(pairs):
                noise = genomes[2 * pair][weight] - center[weight]
                plus, minus = ranks[2 * pair], ranks[2 * pair + 1]
                gradient[weight] += noise * (plus - minus) / 2 / pairs
                change = (noise**2 - sigma[weight] ** 2) / sigma[weight]
                sigma_gradient[weight] += ((plus + minus) / 2) * change / pairs
        norm = math.sqrt(sum(part**2 for part in gradient))
        velocity = [0.9 * old + 0.08 * part / norm for old, part in zip(velocity, gradient, strict=True)]
        speed = math.sqrt(sum(part**2 for part in velocity))
        if speed > 0.1:
            velocity, clipped = [part * 0.1 / speed for part in velocity], clipped + 1
        center = [old + part for old, part in zip(center, velocity, strict=True)]
        sigma = [
            old + max(-0.2 * old, min(0.2 * old, 0.5 * part)) for old, part in zip(sigma, sigma_gradient, strict=True)
        ]
        torch.testing.assert_close(strategy.best, torch.tensor(center, dtype=torch.float64))
        torch.testing.assert_close(strategy.deviations, torch.tensor(sigma, dtype=torch.float64))
    assert clipped, "the limit on the step was never reached, so it was not tested"


def test_pgpe_rule_of_thumb():
    strategy = PGPE(start(25), max_speed=0.3)
    assert strategy.step_length == pytest.approx(0.15)
    assert float(strategy.deviations[0]) == pytest.approx(15 * 0.3 / 5)


def test_pgpe_deviations_change_by_no_more_than_their_limit():
    strategy = PGPE(start(30), population=4, sigma=1.0, sigma_lr=100.0, sigma_max_change=0.1, seed=3)
    strategy.ask()
    strategy.tell(torch.arange(4.0))
    change = strategy.deviations - 1
    assert float(change.abs().max()) == pytest.approx(0.1)
