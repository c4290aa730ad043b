import math

import pytest
import torch

from papertape.agents.genome import Layout
from papertape.agents.strategies import Trust
from papertape.agents.strategies.base import resample


def build(size=50, **values):
    values = {"population": 20, "child_mutation": 0.0, "base_mutation": 0.0, **values}
    return Trust(torch.linspace(-1, 1, size), **values, seed=5)


def test_generations_against_a_loop_over_members():
    strategy = build(survivors=0.3, decay=0.2, inheritance=0.1)
    genomes = [row.tolist() for row in strategy.ask()]
    trust = [0.0] * 20
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        fitness = torch.randn(20, generator=generator)
        strategy.tell(fitness)
        trust = [0.8 * old + float(new) for old, new in zip(trust, fitness, strict=True)]
        ranking = sorted(range(20), key=lambda member: -trust[member])[:6]
        after = strategy.ask()
        # The survivors, the most trusted first.
        assert [row.tolist() for row in after[:6]] == [genomes[member] for member in ranking]
        survivors = [trust[member] for member in ranking]
        torch.testing.assert_close(strategy.trust[:6], torch.tensor(survivors, dtype=torch.float64))
        # Every child is a copy of one of them and has its share of the trust of that one.
        for row, inherited in zip(after[6:], strategy.trust[6:], strict=True):
            parents = [trust[member] for member in ranking if genomes[member] == row.tolist()]
            assert any(math.isclose(float(inherited), 0.1 * parent, rel_tol=1e-5) for parent in parents)
        genomes, trust = [row.tolist() for row in after], strategy.trust.tolist()


def test_decay_per_sample_against_a_loop_over_samples():
    strategy = build(survivors=1.0, decay_per="sample", decay=0.1)
    expected = torch.zeros(20, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        strategy.ask()
        fitness = torch.randn(20, 7, generator=generator)
        strategy.tell(fitness)
        for sample in range(7):
            expected = expected * 0.9 + fitness[:, sample]
        expected = expected.sort(descending=True).values
        torch.testing.assert_close(strategy.trust, expected)


@pytest.mark.parametrize(
    ("trust", "expected"),
    [
        ([4.0, 3.0, 1.0], [4 / 8, 3 / 8, 1 / 8]),
        ([4.0, 0.0, 0.0], [1.0, 0.0, 0.0]),
        ([3.0, 1.0, -1.0], [4 / 6, 2 / 6, 0.0]),
        ([-1.0, -2.0, -4.0], [3 / 5, 2 / 5, 0.0]),
        ([2.0, 2.0, 2.0], [1 / 3] * 3),
        ([0.0, 0.0, 0.0], [1 / 3] * 3),
        ([-2.0, -2.0, -2.0], [1 / 3] * 3),
    ],
)
def test_parents_are_drawn_in_proportion_to_trust(trust, expected):
    parents = build().parents(torch.tensor(trust), 20_000)
    assert parents.shape == (1, 20_000)
    shares = torch.bincount(parents[0], minlength=3) / 20_000
    torch.testing.assert_close(shares, torch.tensor(expected), atol=0.015, rtol=0)


def test_the_two_parents_of_a_child_differ():
    strategy = build(crossover=True)
    for trust in ([5.0, 0.0, 0.0], [3.0, 2.0, -1.0], [1.0, 1.0, 1.0]):
        parents = strategy.parents(torch.tensor(trust), 500)
        assert parents.shape == (2, 500)
        assert not (parents[0] == parents[1]).any()


def test_crossover_mixes_two_parents_evenly_and_sums_their_trust():
    strategy = Trust(
        torch.zeros(4001), population=10, crossover=True, child_mutation=0.0, base_mutation=0.0, inheritance=0.5
    )
    strategy.genomes = torch.arange(10.0).unsqueeze(1).repeat(1, 4001)
    fitness = torch.arange(10.0)
    strategy.ask()
    strategy.tell(fitness)
    children = strategy.ask()[2:]
    # The survivors are 9 and 8.
    assert torch.equal(children.unique(), torch.tensor([8.0, 9.0]))
    shares = (children == 9).float().mean(1)
    assert ((shares > 0.45) & (shares < 0.55)).all()
    torch.testing.assert_close(strategy.trust[2:], torch.full((8,), 8.5, dtype=torch.float64))


@pytest.mark.parametrize("rate", [0.01, 0.07, 0.3, 0.8, 1.0])
def test_mutation_touches_the_share_with_noise_of_the_scale(rate):
    strategy = Trust(torch.zeros(10), population=2, mutation_scale=0.3)
    genomes = torch.zeros(8, 20_000)
    strategy._mutate(genomes, rate)
    touched = genomes != 0
    assert abs(float(touched.float().mean()) - rate) < 0.05 * rate + 0.002
    # Where two draws met the variances add up; all draws together have the share's variance or a little more.
    variance = float(genomes.square().sum() / touched.sum())
    assert 0.09 * 0.95 < variance < 0.09 * (1.05 + (rate if rate <= 0.5 else 0))
    assert len(torch.unique(genomes, dim=0)) == 8


def test_survivors_and_children_have_their_own_rates_and_the_elite_none():
    strategy = build(size=1000, population=20, survivors=0.5, base_mutation=0.5, child_mutation=0.0, elite=2)
    before = strategy.ask().clone()
    strategy.tell(-torch.arange(20.0))
    after = strategy.ask()
    assert torch.equal(after[:2], before[:2])
    changed = (after[2:10] != before[2:10]).float().mean(1)
    assert ((changed > 0.42) & (changed < 0.58)).all()
    # Children are copies of their parents as these were evaluated, before their own mutation.
    assert all((row == before[:10]).all(1).any() for row in after[10:])


def test_best_is_the_most_trusted_genome_as_it_was_evaluated():
    strategy = build(size=100, base_mutation=1.0, child_mutation=1.0)
    before = strategy.ask().clone()
    fitness = torch.zeros(20)
    fitness[13] = 1
    strategy.tell(fitness)
    assert torch.equal(strategy.best, before[13])


@pytest.mark.parametrize("crossover", [True, False])
def test_trust_that_would_grow_without_bound_ends_where_fitness_does(crossover):
    strategy = build(crossover=crossover, inheritance=1e9, decay=0.0, decay_per="sample")
    for _ in range(50):
        strategy.ask()
        strategy.tell(torch.linspace(-1.0, 1.0, 20).unsqueeze(1))
        assert strategy.trust.isfinite().all()


def test_mutation_scale_decays():
    strategy = build(mutation_scale=0.4, mutation_decay=0.5)
    for expected in (0.2, 0.1):
        strategy.ask()
        strategy.tell(torch.zeros(20))
        assert strategy.mutation_scale == pytest.approx(expected)


def test_copied_population_starts_with_the_circuits_own_weights():
    strategy = build(initial="copied", child_mutation=0.2)
    assert torch.equal(strategy.ask()[0], strategy.genome)
    assert ((strategy.ask()[1:] != strategy.genome).float().mean(1) < 0.5).all()


def test_resampled_genomes_draw_each_parameter_from_its_own_elements():
    layout = Layout({"a": (3, 5), "b": (4,)})
    genome = torch.cat([torch.arange(15.0), torch.full((4,), -1.0)])
    drawn = resample(genome, layout, torch.Generator().manual_seed(0), 500)
    assert torch.equal(drawn[:, 15:], torch.full((500, 4), -1.0))
    counts = torch.bincount(drawn[:, :15].flatten().long(), minlength=15) / 500
    assert ((counts - 1).abs() < 0.25).all()


def test_a_parameter_may_have_no_elements() -> None:
    layout = Layout({"some": (2,), "none": (0,)})
    assert Trust(torch.ones(2), layout=layout, population=3).ask().tolist() == [[1.0, 1.0]] * 3
