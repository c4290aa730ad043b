import pytest
import torch

from papertape.agents.strategies import DeepGA


def build(size=37, **values):
    values = {"population": 30, "truncation": 5, "elite_candidates": 3, "sigma": 0.1, **values}
    return DeepGA(torch.linspace(-1, 1, size), **values, seed=2)


def fitness(genomes):
    return -genomes.square().sum(1)


@pytest.mark.parametrize("initial", ["resampled", "copied"])
@pytest.mark.parametrize("size", [5, 16, 37, 1000])
def test_every_genome_is_rebuilt_from_its_chain_bit_for_bit(initial, size):
    strategy = build(size, initial=initial)
    for generation in range(6):
        genomes = strategy.ask()
        for chain, genome in zip(strategy.chains, genomes, strict=True):
            assert len(chain) <= generation + 1
            assert torch.equal(strategy.rebuild(chain), genome)
        strategy.tell(fitness(genomes))
        strategy.confirm(fitness(strategy.candidates()))
        assert torch.equal(strategy.rebuild(strategy.elite), strategy.best)


def test_a_chain_is_a_sum_of_noises_each_drawn_from_its_seed():
    strategy = build(initial="copied")
    expected = strategy.genome
    for seed in (7, 8, 7):
        expected = expected + 0.1 * torch.randn(37, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(strategy.rebuild([7, 8, 7]), expected)


def test_checkpoint_holds_seeds_and_no_population():
    strategy = build(1000)
    for _ in range(3):
        strategy.tell(fitness(strategy.ask()))
        strategy.confirm(fitness(strategy.candidates()))
    elements = [
        value.numel() for key, value in strategy.state_dict().items() if torch.is_tensor(value) if key != "generator"
    ]
    assert elements == [1000]
    assert all(isinstance(seed, int) for chain in strategy.state_dict()["parents"] for seed in chain)


def test_children_descend_from_the_fittest_alone():
    strategy = build()
    genomes = strategy.ask().clone()
    strategy.tell(fitness(genomes))
    strategy.confirm(torch.tensor([0.0, 2.0, 1.0]))
    ranking = fitness(genomes).argsort(descending=True, stable=True)
    after = strategy.ask()
    # The elite is the candidate that did best the second time.
    assert torch.equal(after[0], genomes[ranking[1]])
    parents = set()
    for chain, child in zip(strategy.chains[1:], after[1:], strict=True):
        parent = next(rank for rank in range(5) if torch.equal(strategy.rebuild(chain[:-1]), genomes[ranking[rank]]))
        parents.add(parent)
        noise = torch.randn(37, generator=torch.Generator().manual_seed(chain[-1]))
        torch.testing.assert_close(child, genomes[ranking[parent]] + 0.1 * noise)
    assert parents == set(range(5))


def test_candidates_are_the_fittest_in_order():
    strategy = build()
    genomes = strategy.ask().clone()
    assert strategy.candidates() is None
    strategy.tell(torch.arange(30.0))
    assert torch.equal(strategy.candidates(), genomes[[29, 28, 27]])
    assert strategy.recheck_sequences == 30
    with pytest.raises(ValueError, match=r"fitness: got shape \[2\]; expected \[3\]"):
        strategy.confirm(torch.zeros(2))
    strategy.confirm(torch.tensor([0.0, float("nan"), -1.0]))
    assert torch.equal(strategy.best, genomes[29])
    assert strategy.bad_fitness == 1
    with pytest.raises(RuntimeError, match="no candidates"):
        strategy.confirm(torch.zeros(3))


@pytest.mark.parametrize(("candidates", "truncation"), [(3, 5), (1, 5), (6, 2)])
def test_the_elite_gets_a_second_look_and_children_however_unlucky_it_was(candidates, truncation):
    """Algorithm 1: C is the fittest but one, and the elite; the population is the elite, then the others."""
    strategy = build(elite_candidates=candidates, truncation=truncation)
    strategy.ask()
    strategy.tell(torch.arange(30.0))
    strategy.confirm(-torch.arange(float(candidates)))
    elite = strategy.best.clone()
    genomes = strategy.ask().clone()
    strategy.tell(torch.arange(30.0))  # the elite, first of its generation, is the last
    fittest = [29 - rank for rank in range(max(candidates - 1, 1))]
    assert torch.equal(strategy.candidates(), torch.cat([genomes[fittest], elite.unsqueeze(0)]))
    strategy.confirm(torch.arange(float(len(strategy.candidates()))))
    assert torch.equal(strategy.best, elite)
    chain = strategy.elite
    assert chain in strategy.parents and len(strategy.parents) == truncation
    strategy.ask()
    assert any(child[:-1] == chain for child in strategy.chains[1:])


def test_without_a_second_look_the_fittest_is_the_elite():
    strategy = build(elite_candidates=0)
    genomes = strategy.ask().clone()
    strategy.tell(torch.arange(30.0))
    assert strategy.candidates() is None
    assert torch.equal(strategy.best, genomes[29])


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_mutation_touches_a_share_of_the_weights(share):
    strategy = build(2000, initial="copied", share=share, sigma=0.7)
    parent = strategy.genome
    children = torch.stack([strategy.rebuild([1, seed]) - strategy.rebuild([1]) for seed in range(20)])
    touched = children != 0
    assert touched.double().mean() == pytest.approx(share, rel=0.1)
    assert children[touched].std() == pytest.approx(0.7, rel=0.1)
    first = torch.stack([strategy.rebuild([seed]) - parent for seed in range(20)])
    assert (first != 0).double().mean() == pytest.approx(share, rel=0.1)
    genomes = strategy.ask()
    assert all(
        torch.equal(strategy.rebuild(chain), genome) for chain, genome in zip(strategy.chains, genomes, strict=True)
    )
