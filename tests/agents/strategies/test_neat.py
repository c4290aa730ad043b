"""Invariants of NEAT as properties, against plain loops where there is something to compute."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from papertape import NTM
from papertape.agents.genome import Layout
from papertape.agents.population import Population
from papertape.agents.strategies import Neat
from papertape.agents.strategies.neat import mutation
from papertape.agents.strategies.neat.genomes import EMPTY, Genomes, Markers, crossover
from papertape.agents.strategies.neat.species import Distance, quotas, speciate
from papertape.circuits import NeatCircuit

INPUTS, OUTPUTS, NODES = 3, 2, 5
FIRST = 1 + INPUTS
LAYOUT = Layout(
    {"hidden_weight": (NODES, FIRST + NODES + OUTPUTS), "output_weight": (OUTPUTS, FIRST + NODES + OUTPUTS)}
)
EAGER = {"add_node": 0.6, "add_connection": 0.6, "toggle_connection": 0.2, "recurrent": 0.4, "elite_size": 2}
seeds = st.integers(0, 10**6)
examples = settings(max_examples=15, deadline=None)


def fresh(seed: int, **values) -> Neat:
    torch.manual_seed(seed)
    initial = torch.zeros(LAYOUT.size)
    initial[-OUTPUTS * (FIRST + NODES + OUTPUTS) :].view(OUTPUTS, -1)[:, :FIRST] = torch.randn(OUTPUTS, FIRST)
    values = {"population": 24, "compatibility_threshold": 1.0, **EAGER, **values}
    return Neat(initial, seed=seed, layout=LAYOUT, **values)


def evolved(seed: int, generations: int, **values) -> Neat:
    """After generations of random fitness: every topology may survive."""
    strategy = fresh(seed, **values)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(generations):
        strategy.ask()
        strategy.tell(torch.randn(24, generator=generator))
    return strategy


def connections(strategy: Neat, member: int) -> dict[int, tuple[int, int, float, bool]]:
    """Innovation number -> numbers of the two nodes, weight, enabled; of one genome, as plain values."""
    genomes = strategy.genomes
    numbers = strategy.codec.node_numbers(genomes)[member].tolist()
    found = {}
    for innovation, source, target, weight, enabled in zip(
        *(
            getattr(genomes, name)[member].tolist()
            for name in ("innovations", "sources", "targets", "weights", "enabled")
        ),
        strict=True,
    ):
        if innovation != EMPTY:
            assert innovation not in found
            found[innovation] = (numbers[source], numbers[FIRST + target], weight, enabled)
    return found


@examples
@given(seed=seeds, generations=st.integers(0, 6))
def test_an_innovation_number_is_one_connection_everywhere_and_a_genome_has_it_once(seed, generations):
    strategy = evolved(seed, generations)
    pairs: dict[int, tuple[int, int]] = {}
    places: dict[int, float] = {}
    for member in range(24):
        genes = connections(strategy, member)
        nodes = [node for node in strategy.genomes.nodes[member].tolist() if node != EMPTY]
        assert len(set(nodes)) == len(nodes)
        assert {(source, target) for source, target, _, _ in genes.values()} == {
            pairs.setdefault(number, (source, target)) for number, (source, target, _, _) in genes.items()
        }
        assert len({gene[:2] for gene in genes.values()}) == len(genes), "no connection twice"
        known = {*range(FIRST + OUTPUTS), *nodes}
        assert all(source in known and target in known for source, target, _, _ in genes.values())
        order = strategy.genomes.innovations[member]
        assert torch.equal(order, order.sort().values)
        for node, place in zip(nodes, strategy.genomes.places[member].tolist(), strict=False):
            assert 0 < place < 1
            assert places.setdefault(node, place) == place, "a node is at the same place in every genome"
    assert len(set(pairs.values())) == len(pairs), "two numbers are two connections"
    assert all(number < len(strategy.innovations) for number in pairs)


@examples
@given(seed=seeds)
def test_equal_mutations_of_a_generation_get_equal_numbers(seed):
    strategy = fresh(seed)
    copies = strategy.genomes.rows(torch.zeros(12, dtype=torch.long))
    grown, next_node = mutation.add_nodes(
        copies,
        torch.ones(12, dtype=torch.bool),
        strategy.codec,
        strategy.innovations,
        strategy.next_node,
        torch.Generator().manual_seed(seed),
    )
    seen: dict[int, tuple] = {}
    for row in range(12):
        (split,) = (~grown.enabled[row] & grown.present[row]).nonzero()
        gene = int(grown.innovations[row, split])
        last = FIRST * OUTPUTS  # the two newest connections come after those of the start
        news = (
            int(grown.nodes[row, 0]),
            float(grown.places[row, 0]),
            *grown.innovations[row, last : last + 2].tolist(),
        )
        assert seen.setdefault(gene, news) == news
        assert int(grown.sources[row, split]) > 0, "nothing that leaves the bias is split"
    assert len({news[0] for news in seen.values()}) == len(seen) == next_node - strategy.next_node
    assert len({number for news in seen.values() for number in news[2:]}) == 2 * len(seen)


def test_a_split_connection_goes_on_through_the_new_node():
    strategy = fresh(1)
    before = connections(strategy, 0)
    one = strategy.genomes.rows(torch.zeros(1, dtype=torch.long))
    grown, _ = mutation.add_nodes(
        one,
        torch.ones(1, dtype=torch.bool),
        strategy.codec,
        strategy.innovations,
        strategy.next_node,
        strategy.generator,
    )
    strategy.genomes = grown
    after = connections(strategy, 0)
    (split,) = [number for number, gene in after.items() if not gene[3]]
    source, target, weight, _ = before[split]
    new = [gene for number, gene in after.items() if number not in before]
    node = strategy.next_node
    assert sorted(new) == sorted([(source, node, 1.0, True), (node, target, weight, True)])


@examples
@given(seed=seeds, generations=st.integers(1, 8))
def test_without_recurrence_networks_stay_feed_forward(seed, generations):
    strategy = evolved(seed, generations, recurrent=0.0)
    hidden, output = strategy.ask_stacks().values()
    among = hidden[:, :, FIRST : FIRST + NODES]
    assert (
        not among.triu().any() and not hidden[:, :, FIRST + NODES :].any() and not output[:, :, FIRST + NODES :].any()
    )


def test_with_nothing_else_new_connections_are_recurrent():
    strategy = evolved(1, 8, recurrent=1.0, add_node=0.0)
    output = strategy.ask_stacks()["output_weight"]
    assert (strategy.genomes.connection_counts > FIRST * OUTPUTS).any()
    assert (output[:, :, FIRST + NODES :] != 0).any() and not output[:, :, FIRST : FIRST + NODES].any()


@examples
@given(seed=seeds, generations=st.integers(0, 6))
def test_stacks_hold_the_enabled_connections_in_the_order_of_places(seed, generations):
    strategy = evolved(seed, generations)
    hidden, output = strategy.ask_stacks().values()
    for member in range(24):
        nodes, places = strategy.genomes.nodes[member].tolist(), strategy.genomes.places[member].tolist()
        ranked = sorted((place, node) for place, node in zip(places, nodes, strict=True) if node != EMPTY)
        slot = {node: node for node in range(FIRST)}
        slot |= {FIRST + index: FIRST + NODES + index for index in range(OUTPUTS)}
        slot |= {node: FIRST + index for index, (_, node) in enumerate(ranked)}
        expected = torch.zeros(NODES + OUTPUTS, FIRST + NODES + OUTPUTS)
        for source, target, weight, enabled in connections(strategy, member).values():
            expected[slot[target] - FIRST, slot[source]] = weight * enabled
        assert torch.equal(torch.cat([hidden[member], output[member]]), expected)


@examples
@given(seed=seeds, rate=st.sampled_from([0.0, 0.75, 1.0]))
def test_crossover_takes_matching_genes_from_either_and_the_rest_from_the_fitter(seed, rate):
    strategy = evolved(seed, 5)
    generator = torch.Generator().manual_seed(seed)
    fitter, other = (torch.randint(24, (16,), generator=generator) for _ in range(2))
    parents = [{member: connections(strategy, member) for member in range(24)}]
    two = torch.rand(16, generator=generator) < 0.8
    children = crossover(strategy.genomes, fitter, other, two, rate, generator)
    assert torch.equal(children.nodes, strategy.genomes.nodes[fitter])
    strategy.genomes = children
    for row in range(16):
        child = connections(strategy, row)
        first, second = parents[0][int(fitter[row])], parents[0][int(other[row])]
        assert child.keys() == first.keys()
        if not two[row]:
            assert child == first
            continue
        for number, (source, target, weight, enabled) in child.items():
            assert (source, target) == first[number][:2]
            if number in second:
                assert weight in (first[number][2], second[number][2])
            else:
                assert weight == first[number][2]
            off = not first[number][3] or (number in second and not second[number][3])
            assert enabled or off
            assert not off or 0 < rate < 1 or enabled == (rate == 0)


def distance_by_hand(one: dict, two: dict, distance: Distance) -> float:
    common = one.keys() & two.keys()
    newest = min(max(one), max(two))
    single = one.keys() ^ two.keys()
    excess = sum(number > newest for number in single)
    size = max(len(one), len(two))
    size = 1 if size < distance.small else size
    apart = math.fsum(abs(one[number][2] - two[number][2]) for number in common) / max(len(common), 1)
    structure = distance.excess * excess + distance.disjoint * (len(single) - excess)
    return structure / size + distance.weights * apart


@examples
@given(seed=seeds, small=st.sampled_from([1, 12, 20]))
def test_distance_equals_a_loop_over_genes(seed, small):
    strategy = evolved(seed, 5)
    distance = Distance(excess=1.5, disjoint=0.7, weights=0.4, small=small)
    genes = [connections(strategy, member) for member in range(24)]
    representatives = [0, 5, 17]
    found = distance(Markers.of(strategy.genomes.rows(torch.tensor(representatives))), Markers.of(strategy.genomes))
    expected = [[distance_by_hand(genes[one], two, distance) for two in genes] for one in representatives]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-5)
    assert found[1, 5] == 0


@examples
@given(seed=seeds, threshold=st.floats(0.05, 4.0))
def test_species_are_a_partition_by_the_first_representative_that_is_near(seed, threshold):
    strategy = evolved(seed, 4)
    distance = strategy.distance
    representatives = strategy.genomes.rows(torch.tensor([3, 8]))
    species, next_number = speciate(strategy.genomes, representatives, torch.tensor([7, 9]), 10, distance, threshold)
    markers = Markers.of(strategy.genomes)
    everyone = distance(markers, markers)
    near = distance(Markers.of(representatives), markers) < threshold
    assert species.shape == (24,) and set(species.tolist()) <= {7, 9, *range(10, next_number)}
    founders: dict[int, int] = {}
    for member, number in enumerate(species.tolist()):
        if near[:, member].any():
            assert number == [7, 9][int(near[:, member].to(torch.uint8).argmax())]
            continue
        assert number >= 10
        founder = founders.setdefault(number, member)
        assert founder == member or everyone[founder, member] < threshold
        earlier = [other for other, first in founders.items() if other < number and first < member]
        assert all(everyone[founders[other], member] >= threshold for other in earlier)
    assert next_number == 10 + len(founders)


@examples
@given(
    shares=st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=20),
    children=st.integers(1, 500),
)
def test_quotas_sum_up_and_are_in_proportion(shares, children):
    found = quotas(torch.tensor(shares, dtype=torch.float64), children)
    assert found.sum() == children and (found >= 0).all()
    total = sum(shares)
    wanted = [share / total * children if total else children / len(shares) for share in shares]
    assert all(abs(have - want) < 1 + 1e-6 for have, want in zip(found.tolist(), wanted, strict=True))


@examples
@given(seed=seeds, generations=st.integers(1, 6))
def test_every_generation_is_full_and_in_species(seed, generations):
    strategy = fresh(seed)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(generations):
        asked = strategy.ask()
        assert asked.shape == (24, LAYOUT.size)
        fitness = torch.randn(24, generator=generator)
        best = asked[fitness.argmax()].clone()
        strategy.tell(fitness)
        assert torch.equal(strategy.best, best)
        assert (strategy.ask() == best).all(1).any(), "the champion lives on"
        assert strategy.species.shape == (24,) and (strategy.species >= 0).all()
        assert (strategy.species < strategy.next_species).all()
        assert sum(members for _, members in strategy.sizes[-1][1]) == 24
        assert (strategy.genomes.node_counts <= NODES).all()


def test_children_follow_the_shared_fitness():
    strategy = fresh(0, interspecies=0.0, compatibility_threshold=50.0)
    strategy.species = torch.tensor([0] * 18 + [1] * 6)
    fitness = torch.tensor([1.0] * 18 + [3.0] * 6)
    numbers, member_of = strategy.species.unique(return_inverse=True)
    strategy._record(numbers, member_of, fitness)
    assert strategy._quotas(numbers, member_of, fitness, 18).tolist() == [6, 18]
    # Counted from the lowest where fitness is negative.
    strategy.records = []
    strategy._record(numbers, member_of, fitness - 4)
    assert strategy._quotas(numbers, member_of, fitness - 4, 18).tolist() == [0, 24]


def test_a_species_that_does_not_improve_has_no_more_children_but_the_best_one_has():
    strategy = fresh(0, species_patience=3, population_patience=100)
    strategy.species = torch.tensor([0] * 12 + [1] * 12)
    numbers, member_of = strategy.species.unique(return_inverse=True)
    for generation in range(5):
        strategy.generation = generation
        fitness = torch.tensor([2.0] * 12 + [1.0] * 12)
        strategy._record(numbers, member_of, fitness)
        children = strategy._quotas(numbers, member_of, fitness, 0)
        assert children.tolist() == ([16, 8] if generation < 3 else [24, 0])


def test_when_nothing_improves_two_species_go_on_and_patience_begins_anew():
    strategy = fresh(0, population_patience=2, species_patience=50)
    strategy.species = torch.arange(24) % 4
    numbers, member_of = strategy.species.unique(return_inverse=True)
    fitness = 4.0 - strategy.species.float()
    strategy.improved = (4.0, 0)
    allowed = []
    for generation in range(7):
        strategy.generation = generation
        strategy._record(numbers, member_of, fitness)
        allowed.append(int((strategy._quotas(numbers, member_of, fitness, 0) > 0).sum()))
    assert allowed == [4, 4, 4, 2, 4, 4, 2]


def test_the_first_population_has_the_topology_of_the_circuit():
    circuit = NeatCircuit(3, 2, max_nodes=4)
    with torch.no_grad():
        circuit.network.hidden_weight[1, 1] = 0.5
        circuit.network.hidden_weight[3, FIRST + 1] = -0.5
        circuit.network.hidden_weight[1, FIRST + 3] = 0.25
        circuit.network.output_weight[1, FIRST + 3] = 2.0
    layout = Layout.of(circuit)
    genome = layout.read(circuit)
    copied = Neat(genome, population=10, initial="copied", layout=layout)
    hidden, output = (part[0] for part in copied.ask_stacks().values())
    # Slots 1 and 3 move up to 0 and 1: the same network.
    assert hidden[0, 1] == 0.5 and hidden[1, FIRST] == -0.5 and hidden[0, FIRST + 1] == 0.25
    assert output[1, FIRST + 1] == 2.0 and (hidden != 0).sum() == 3
    inputs = torch.randn(4, 3, 3)
    answers = Population(circuit).outputs(copied.ask_stacks(), inputs)
    torch.testing.assert_close(answers[:, 0], circuit(inputs)[0])
    resampled = Neat(genome, population=10, layout=layout)
    assert (((resampled.ask() != 0).sum(1)) == (genome != 0).sum()).all()
    again = Neat(copied.ask()[0].clone(), population=10, initial="copied", layout=layout)
    assert torch.equal(again.ask()[0], copied.ask()[0])


def test_fills_up_and_goes_on():
    strategy = evolved(3, 30, add_node=1.0, add_connection=1.0, max_connections=FIRST * OUTPUTS + 5)
    assert strategy.genomes.connection_counts.max() == FIRST * OUTPUTS + 5
    full = evolved(3, 30, add_node=1.0, add_connection=1.0, max_connections=400)
    assert full.genomes.node_counts.max() == NODES
    assert torch.isfinite(full.ask()).all()


def test_threshold_moves_towards_the_species_asked_for():
    strategy = evolved(1, 40, target_species=6, compatibility_threshold=3.0)
    assert strategy.threshold != 3.0
    assert 2 <= len(strategy.species.unique()) <= 12
    assert strategy.metrics()["compatibility_threshold"] == strategy.threshold


def test_a_circuit_without_such_a_network_is_refused():
    with pytest.raises(ValueError, match="strategy: got neat, which evolves one network .*, of which there are 0"):
        Neat(torch.zeros(6), layout=Layout({"weight": (2, 3)}))
    with pytest.raises(ValueError, match="max_connections: got 7; the circuit has 8"):
        fresh(0, max_connections=7)


XOR = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])


@pytest.mark.parametrize("seed", range(3))
def test_solves_xor(seed):
    torch.manual_seed(seed)
    circuit = NeatCircuit(2, 1, max_nodes=8, activation="steep-sigmoid")
    population = Population(circuit)
    strategy = Neat(population.layout.read(circuit), seed=seed, layout=population.layout)
    targets = torch.tensor([0.0, 1.0, 1.0, 0.0])
    for _ in range(200):
        outputs = population.outputs(strategy.ask_stacks(), XOR.unsqueeze(0))[0, ..., 0].sigmoid()
        strategy.tell((4 - (outputs - targets).abs().sum(1)).square())
        population.layout.write(strategy.best, circuit)
        if torch.equal(circuit(XOR.unsqueeze(0))[0].flatten() > 0, targets.bool()):
            break
    assert strategy.generation < 200
    assert strategy.metrics()["nodes"] >= 1


def test_genes_are_all_of_the_genome():
    assert set(Genomes._fields) <= {name.removeprefix("genomes.") for name in fresh(0).state_dict()}


def test_species_over_time_are_a_chart():
    strategy = fresh(0)
    assert strategy.charts() == {}
    strategy = evolved(0, 5)
    chart = strategy.charts()["species"]
    assert [*chart.steps] == [0, 1, 2, 3, 4]
    assert all(sum(part[step] for part in chart.parts.values()) == 24 for step in range(5))


def test_replaced_weights_are_those_of_the_enabled_connections():
    torch.manual_seed(0)
    circuit = NTM(2, 1, controller="neat", hidden_size=3, memory_size=4, word_size=2)
    layout = Layout.of(circuit)
    strategy = Neat(layout.read(circuit), layout=layout, population=12, **EAGER)
    for _ in range(4):
        strategy.ask()
        strategy.tell(torch.randn(12))
    before, disabled = strategy.genomes, ~strategy.genomes.enabled
    asked = strategy.ask()
    learned = torch.where(asked != 0, asked + 0.5, asked)
    strategy.replace(learned)
    assert torch.equal(strategy.ask(), learned)
    assert torch.equal(strategy.genomes.weights[disabled], before.weights[disabled])
    assert torch.equal(strategy.genomes.innovations, before.innovations)
    strategy.tell(torch.arange(12.0))
    assert torch.equal(strategy.best, learned[11])
