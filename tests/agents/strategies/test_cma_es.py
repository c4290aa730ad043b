import math

import numpy as np
import pytest
import torch

from papertape.agents.strategies import CMAES, SepCMAES
from papertape.agents.strategies.cma_es import rates


def by_the_book(n, lam, separable):
    """Table 1 of the tutorial, written again from the paper."""
    w = np.array([math.log((lam + 1) / 2) - math.log(i) for i in range(1, lam + 1)])
    mu = lam // 2
    mueff = w[:mu].sum() ** 2 / (w[:mu] ** 2).sum()
    mueff_minus = w[mu:].sum() ** 2 / (w[mu:] ** 2).sum()
    cc = (4 + mueff / n) / (n + 4 + 2 * mueff / n)
    cs = (mueff + 2) / (n + mueff + 5)
    c1 = 2 / ((n + 1.3) ** 2 + mueff)
    cmu = min(1 - c1, 2 * (0.25 + mueff + 1 / mueff - 2) / ((n + 2) ** 2 + mueff))
    ds = 1 + 2 * max(0, math.sqrt((mueff - 1) / (n + 1)) - 1) + cs
    weights = np.where(w >= 0, w / w[w >= 0].sum(), 0.0)
    if separable:
        c1, cmu = min(1, c1 * (n + 2) / 3), min(1 - min(1, c1 * (n + 2) / 3), cmu * (n + 2) / 3)
    else:
        alpha = min(1 + c1 / cmu, 1 + 2 * mueff_minus / (mueff + 2), (1 - c1 - cmu) / (n * cmu))
        weights = np.where(w >= 0, weights, alpha * w / -w[w < 0].sum())
    return mu, mueff, cc, cs, c1, cmu, ds, weights


@pytest.mark.parametrize("separable", [False, True])
def test_generations_against_the_tutorial_in_numpy(separable):
    n, lam = 5, 9
    kind = SepCMAES if separable else CMAES
    start = torch.linspace(-1, 1, n, dtype=torch.float64)
    strategy = kind(start, population=lam, sigma=0.4, seed=6)
    mu, mueff, cc, cs, c1, cmu, ds, weights = by_the_book(n, lam, separable)
    m, sigma, C = start.numpy(), 0.4, np.eye(n)
    ps, pc = np.zeros(n), np.zeros(n)
    expected_norm = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n))
    for generation in range(1, 25):
        x = strategy.ask().numpy()
        fitness = -(x**2 @ np.arange(1, n + 1)) + x[:, 0] * x[:, 1]
        strategy.tell(torch.tensor(fitness))
        order = np.argsort(-fitness.astype(np.float32), kind="stable")
        y = (x[order] - m) / sigma
        values, vectors = np.linalg.eigh(C)
        root = vectors @ np.diag(values**-0.5) @ vectors.T
        yw = weights[:mu] @ y[:mu]
        m = m + sigma * yw
        ps = (1 - cs) * ps + math.sqrt(cs * (2 - cs) * mueff) * root @ yw
        norm = np.linalg.norm(ps)
        h = norm / math.sqrt(1 - (1 - cs) ** (2 * generation)) < (1.4 + 2 / (n + 1)) * expected_norm
        pc = (1 - cc) * pc + h * math.sqrt(cc * (2 - cc) * mueff) * yw
        C_next = (1 + c1 * (1 - h) * cc * (2 - cc) - c1 - cmu * weights.sum()) * C + c1 * np.outer(pc, pc)
        for w, step in zip(weights, y, strict=True):
            if w < 0:
                w = w * n / np.linalg.norm(root @ step) ** 2
            C_next = C_next + cmu * w * np.outer(step, step)
        C = np.diag(np.diag(C_next)) if separable else C_next
        sigma *= math.exp(cs / ds * (norm / expected_norm - 1))
        np.testing.assert_allclose(strategy.best.numpy(), m, rtol=1e-7, atol=1e-9)
        assert strategy.sigma == pytest.approx(sigma, rel=1e-7)
        found = np.diag(strategy.scales.numpy() ** 2) if separable else strategy.covariance.numpy()
        np.testing.assert_allclose(found, C, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("size", "population"), [(1, 4), (2, 6), (10, 10), (100, 17), (500, 200)])
@pytest.mark.parametrize("separable", [False, True])
def test_rates_keep_the_covariance_positive(size, population, separable):
    r = rates(size, population, separable=separable)
    assert float(r.weights[: r.mu].sum()) == pytest.approx(1)
    assert r.c_1 > 0 and r.c_mu > 0 and r.c_1 + r.c_mu <= 1
    # What the negative steps can take away at most is no more than what decay leaves (tutorial, section B.2).
    negative = float(-r.weights[r.mu :].sum())
    assert size * r.c_mu * negative <= 1 - r.c_1 - r.c_mu + 1e-12


def test_covariance_stays_symmetric_and_positive_when_fitness_is_noise():
    strategy = CMAES(torch.zeros(8), seed=1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        strategy.ask()
        strategy.tell(torch.randn(strategy.population, generator=generator))
    assert torch.linalg.eigvalsh(strategy.covariance).min() > 0
    assert torch.equal(strategy.covariance, strategy.covariance.T)


def test_a_genome_too_long_for_a_full_covariance_is_refused_and_the_separable_one_named():
    with pytest.raises(ValueError, match="10,000 weights; there are 20,000: take sep-cma-es"):
        CMAES(torch.zeros(20_000))
    assert SepCMAES(torch.zeros(20_000)).ask().shape == (33, 20_000)
