"""ARS and CR-FM-NES against plain loops, and restarts of CMA-ES."""

import math

import pytest
import torch

from papertape.agents.strategies import ARS, CMAES, CRFMNES, SNES, SepCMAES, minimise
from papertape.agents.strategies.cr_fm_nes import distance_rate


@pytest.mark.parametrize("top", [None, 2])
def test_ars_against_a_loop(top):
    size, pairs = 5, 4
    start = torch.linspace(-1, 1, size, dtype=torch.float64)
    strategy = ARS(start, population=2 * pairs, top=top, sigma=0.1, lr=0.3, seed=1)
    center = start.tolist()
    generator = torch.Generator().manual_seed(4)
    for _ in range(4):
        genomes = strategy.ask().tolist()
        fitness = torch.randn(2 * pairs, generator=generator, dtype=torch.float64).tolist()
        strategy.tell(torch.tensor(fitness, dtype=torch.float64))
        best = sorted(range(pairs), key=lambda pair: -max(fitness[2 * pair : 2 * pair + 2]))[: top or pairs]
        counted = [fitness[2 * pair + end] for pair in best for end in (0, 1)]
        mean = sum(counted) / len(counted)
        spread = math.sqrt(sum((value - mean) ** 2 for value in counted) / len(counted))
        step = [0.0] * size
        for pair in best:
            for weight in range(size):
                direction = (genomes[2 * pair][weight] - center[weight]) / 0.1
                step[weight] += (fitness[2 * pair] - fitness[2 * pair + 1]) * direction
        center = [value + 0.3 / (len(best) * spread) * change for value, change in zip(center, step, strict=True)]
        torch.testing.assert_close(strategy.best, torch.tensor(center, dtype=torch.float64))


def test_ars_stays_where_all_are_equally_fit():
    strategy = ARS(torch.ones(3), population=4)
    strategy.ask()
    strategy.tell(torch.ones(4))
    assert torch.equal(strategy.best, torch.ones(3))


def test_cr_fm_nes_draws_from_the_covariance_that_it_has():
    strategy = CRFMNES(torch.zeros(4, dtype=torch.float64), population=200_000, sigma=0.5, seed=1)
    strategy.scales = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    strategy.direction = torch.tensor([1.0, -0.5, 2.0, 0.3], dtype=torch.float64)
    wide = torch.diag(strategy.scales)
    expected = 0.25 * wide @ (torch.eye(4) + torch.outer(strategy.direction, strategy.direction)) @ wide
    torch.testing.assert_close(strategy.ask().T.cov(), expected, atol=0.03, rtol=0.03)


def test_cr_fm_nes_turns_along_the_natural_gradient():
    """Of the log density of one drawn vector, by the Fisher matrix from finite differences (alpha below 1 damps it)."""
    size = 4
    strategy = CRFMNES(torch.zeros(size, dtype=torch.float64), population=4, seed=3)
    # A direction along which alpha is 1, where nothing is damped.
    strategy.direction = torch.tensor([2.0, -1.8, 2.2, 1.9], dtype=torch.float64)
    strategy.scales = torch.ones(size, dtype=torch.float64)
    v = strategy.direction.clone()

    def covariance(parameters):
        wide = torch.diag(1 + parameters[size:])
        return wide @ (torch.eye(size, dtype=torch.float64) + torch.outer(parameters[:size], parameters[:size])) @ wide

    at = torch.cat([v, torch.zeros(size, dtype=torch.float64)])
    whole = covariance(at)
    step, changes = 1e-6, []
    for index in range(2 * size):
        offset = torch.zeros_like(at)
        offset[index] = step
        changes.append((covariance(at + offset) - covariance(at - offset)) / (2 * step))
    inverse = whole.inverse()
    fisher = torch.stack([torch.stack([(inverse @ a @ inverse @ b).trace() / 2 for b in changes]) for a in changes])
    y = torch.tensor([[0.7, -1.1, 0.4, 2.0]], dtype=torch.float64)
    x = y[0]
    gradient = torch.stack([(x @ inverse @ a @ inverse @ x - (inverse @ a).trace()) / 2 for a in changes])
    expected = torch.linalg.solve(fisher, gradient)
    strategy._turn(y, torch.tensor([1e-9], dtype=torch.float64))
    torch.testing.assert_close((strategy.direction - v) / 1e-9, expected[:size], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close((strategy.scales - 1) / 1e-9, expected[size:], atol=1e-4, rtol=1e-4)


def test_distance_rate_solves_its_equation():
    for size in (2, 10, 1000):
        a = distance_rate(size)
        assert (1 + a * a) * math.exp(a * a / 2) / 0.24 - 10 == pytest.approx(size)


@pytest.mark.parametrize("strategy", ["cma-es", "cr-fm-nes"])
def test_rosenbrock_in_five_lines(strategy):
    def rosenbrock(x):
        return (100 * (x[..., 1:] - x[..., :-1].square()).square() + (1 - x[..., :-1]).square()).sum(-1)

    chosen = {"type": strategy, "sigma": 0.5}
    counts = sorted(
        minimise(
            rosenbrock, [0.0] * 10, strategy=chosen, evaluations=20_000, target=1e-9, batched=True, seed=seed
        ).evaluations
        for seed in range(3)
    )
    assert counts[1] <= {"cma-es": 5_500, "cr-fm-nes": 7_000}[strategy]


def rastrigin(x):
    return (10 + x.square() - 10 * torch.cos(2 * math.pi * x)).sum(-1)


@pytest.mark.parametrize("restarts", ["ipop", "bipop"])
def test_restarts_find_what_one_search_misses(restarts):
    def found(chosen):
        given = {"evaluations": 20_000, "target": 1e-8, "batched": True, "seed": 2}
        return minimise(rastrigin, [2.5] * 4, strategy={"type": "cma-es", "sigma": 1.0, "restarts": chosen}, **given)

    assert found("none").value > 0.5 and found(restarts).value <= 1e-8


@pytest.mark.parametrize("kind", ["ipop", "bipop"])
def test_the_population_doubles_nine_times_at_most(kind):
    strategy = CMAES(torch.zeros(2, dtype=torch.float64), population=4, restarts=kind, seed=1)
    strategy.restarts_done, strategy.spent = 30, (0, 1)
    while strategy.restarts_done < 31:
        strategy.tell(torch.zeros(len(strategy.ask()), dtype=torch.float64))
    assert strategy.population == 4 * 2**9


def test_a_restart_doubles_the_population_and_keeps_the_best_mean():
    strategy = CMAES(torch.full((2,), 2.0, dtype=torch.float64), sigma=0.3, population=6, restarts="ipop", seed=1)
    while strategy.restarts_done < 2:
        strategy.tell(-rastrigin(strategy.ask()))
    assert strategy.population == 24 and len(strategy.rates.weights) == 24
    assert float(rastrigin(strategy.best)) == pytest.approx(-strategy.kept_fitness, abs=1e-9)
    resumed = CMAES(torch.full((2,), 2.0, dtype=torch.float64), sigma=0.3, population=6, restarts="ipop", seed=1)
    resumed.load_state_dict(strategy.state_dict())
    assert torch.equal(resumed.ask(), strategy.ask())


def test_small_searches_take_at_most_half_of_what_the_last_large_one_took():
    def noisy(x):
        return rastrigin(x) + torch.rand(len(x), generator=chance)

    chance = torch.Generator().manual_seed(1)
    strategy = CMAES(torch.full((3,), 2.0, dtype=torch.float64), sigma=0.3, population=6, restarts="bipop", seed=1)
    searches, spent = [], (0, 0)
    for _ in range(3_000):
        # Noise keeps a search from coming to rest; it ends in the second of the large ones.
        strategy.tell(-(rastrigin if strategy.large else noisy)(strategy.ask()))
        if strategy.spent != spent:
            searches.append((strategy.spent[0] - spent[0], strategy.spent[1] - spent[1], strategy.last_large))
            spent = strategy.spent
        if len(searches) == 8:
            break
    small = [(taken, large) for _, taken, large in searches if taken]
    assert len(searches) == 8 and len(small) >= 3
    assert all(large / 2 <= taken < large / 2 + 200 for taken, large in small)


@pytest.mark.parametrize("strategy", ["cma-es", "snes", "pgpe", "trust", "ars", "openai-es"])
@pytest.mark.parametrize(
    "x0", [3, 3.0, [], None, "abc", ["a"], {}, [1 + 2j], torch.tensor([1, 2]), [math.inf], [[1.0]]]
)
def test_where_to_start_is_a_vector_of_numbers(x0, strategy):
    with pytest.raises(ValueError, match=r"^x0: got .*; expected a vector of one or more finite numbers"):
        minimise(lambda x: x.square().sum(), x0, strategy=strategy)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("bounds", 1, "bounds: got 1; expected two"),
        ("bounds", "ab", "bounds: got 'ab'; expected two"),
        ("bounds", (None, 1), r"bounds: got \(None, 1\); expected two"),
        ("bounds", (-1, 0, 1), r"bounds: got \(-1, 0, 1\); expected two"),
        ("bounds", (math.nan, 1), "bounds: got nan"),
        ("evaluations", "x", "evaluations: got 'x'; allowed is a whole number"),
        ("evaluations", math.nan, "evaluations: got nan"),
        ("evaluations", None, "evaluations: got None"),
        ("target", "x", "target: got 'x'; allowed is a number"),
        ("target", math.nan, "target: got nan"),
    ],
)
def test_arguments_that_are_none_are_said(name, value, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        minimise(lambda x: x.square().sum(), [0.0, 0.0], **{name: value})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "fitness", [lambda x: x.double().sum(1), lambda x: x.double().sum(1).tanh(), lambda x: x[:, 0]]
)
def test_cr_fm_nes_stays_finite_where_fitness_grows_without_end_or_is_flat(dtype, fitness):
    for seed in range(4):
        strategy = CRFMNES(torch.zeros(7, dtype=dtype), seed=seed)
        for _ in range(150):
            members = strategy.ask()
            assert members.isfinite().all()
            strategy.tell(fitness(members))
        assert strategy.best.isfinite().all() and fitness(strategy.best[None]) > 0


@pytest.mark.parametrize("kind", [SNES, CMAES, SepCMAES, CRFMNES])
@pytest.mark.parametrize("size", [1, 6])
def test_what_learns_its_spread_stays_finite_where_fitness_grows_without_end(kind, size):
    strategy = kind(torch.zeros(size), seed=1)
    for _ in range(1500):
        members = strategy.ask()
        assert members.isfinite().all()
        strategy.tell(members.double().sum(1))
    assert strategy.best.isfinite().all() and strategy.best.double().sum() > 1e3
    assert all(math.isfinite(value) for value in strategy.metrics().values())
