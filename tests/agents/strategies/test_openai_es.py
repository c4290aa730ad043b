import math

import pytest
import torch

from papertape.agents.genome import Layout
from papertape.agents.strategies import OpenAIES
from papertape.agents.strategies.shaping import centred_ranks
from papertape.core.members import dense

LAYOUT = Layout({"weight": (6, 5), "bias": (6,), "narrow": (2, 9)})


def build(**values):
    initial = torch.linspace(-1, 1, LAYOUT.size, dtype=torch.float64)
    return OpenAIES(initial, **{"population": 8, **values}, seed=1, layout=LAYOUT)


@pytest.mark.parametrize("rank", [None, 1, 3])
def test_generations_against_a_loop_with_adam_by_hand(rank):
    strategy = build(rank=rank, lr=0.03, sigma=0.2, weight_decay=0.01)
    center = strategy.genome.clone()
    mean, square = torch.zeros_like(center), torch.zeros_like(center)
    generator = torch.Generator().manual_seed(4)
    for step in range(1, 4):
        genomes = strategy.ask()
        fitness = torch.randn(8, generator=generator)
        strategy.tell(fitness)
        gradient = torch.zeros_like(center)
        for member in range(8):
            below = sum(bool(other < fitness[member]) for other in fitness)
            gradient += (below / 7 - 0.5) * (genomes[member] - center) / 0.2 / 8
        gradient = -gradient + 0.01 * center
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        center = center - 0.03 * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        torch.testing.assert_close(strategy.best, center)


@pytest.mark.parametrize("rank", [None, 2])
def test_members_come_in_mirrored_pairs_around_the_centre(rank):
    genomes = build(rank=rank).ask()
    middle = (genomes[0::2] + genomes[1::2]) / 2
    torch.testing.assert_close(middle, build().best.expand(4, -1))


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_low_rank_noise_has_the_rank_and_the_variance(rank):
    strategy = build(population=8000, rank=rank, sigma=0.1)
    stacks = strategy.ask_stacks()
    noise = dense(stacks["weight"])[0::2] - stacks["weight"].center
    assert int(torch.linalg.matrix_rank(noise[:50], rtol=1e-9).max()) == rank
    torch.testing.assert_close(noise.std(0), torch.full((6, 5), 0.1, dtype=torch.float64), atol=0.012, rtol=0)
    # Too narrow for this rank, or no matrix: element by element.
    narrow = dense(stacks["narrow"])[0::2] - stacks["narrow"].center
    assert int(torch.linalg.matrix_rank(narrow[0])) == min(2, 2 if rank >= 2 else rank)
    assert stacks["bias"].noise is not None


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_the_centre_stays_a_number_however_long_sigma_decays(kind, rank):
    strategy = OpenAIES(torch.ones(LAYOUT.size, dtype=kind), population=8, sigma_decay=0.1, rank=rank, layout=LAYOUT)
    for _ in range(400):
        genomes = strategy.ask()
        strategy.tell(-genomes.square().sum(1) + torch.arange(8))
        assert strategy.best.isfinite().all()
    assert strategy.sigma > 0


def test_centred_ranks_share_the_mean_rank_of_equals():
    ranks = centred_ranks(torch.tensor([3.0, -1.0, 3.0, 7.0, 3.0]))
    assert ranks.tolist() == [0.0, -0.5, 0.0, 0.5, 0.0]
    assert centred_ranks(torch.zeros(6)).tolist() == [0.0] * 6


def test_equal_fitness_leaves_only_the_weight_decay():
    strategy = build(weight_decay=0.0)
    before = strategy.best.clone()
    strategy.ask()
    strategy.tell(torch.ones(8))
    assert torch.equal(strategy.best, before)


def test_decays():
    strategy = build(lr=0.1, lr_decay=0.5, sigma=0.2, sigma_decay=0.9)
    for _ in range(3):
        strategy.ask()
        strategy.tell(torch.arange(8.0))
    assert math.isclose(strategy.lr, 0.0125) and math.isclose(strategy.sigma, 0.2 * 0.9**3)


def test_estimate_points_along_the_true_gradient():
    for rank in (None, 2):
        strategy = build(population=4000, rank=rank, sigma=0.01)
        genomes = strategy.ask()
        slope = torch.linspace(1, 2, LAYOUT.size, dtype=torch.float64)
        estimate = strategy.gradient(genomes @ slope, strategy.ask_stacks())
        assert float(torch.cosine_similarity(estimate, slope, dim=0)) > 0.97
