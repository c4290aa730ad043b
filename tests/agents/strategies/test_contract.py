"""What every strategy must do, whatever it does."""

import copy
import io

import pytest
import torch

import papertape.agents.strategies  # noqa: F401 (registers them)
from papertape.agents.genome import Layout
from papertape.core.members import dense
from papertape.core.registry import entries

SIZE = 14
LAYOUT = Layout({"weight": (3, 4), "bias": (2,)})
SMALL = {"deep-ga": {"truncation": 3, "elite_candidates": 2}, "trust": {"crossover": True}}
STRATEGIES = {name: entry for name, entry in entries("strategy").items() if entry.__module__.startswith("papertape.")}
NAMES = list(STRATEGIES)
# Two hidden nodes and an output, three inputs and the bias; then what is no connection.
NETWORK = Layout({"hidden_weight": (2, 7), "output_weight": (1, 7), "bias": (2,)})
LAYOUTS = {"neat": NETWORK}


def build(name, *, seed=3, layout=LAYOUT, size=None, genome=None, **values):
    entry = STRATEGIES[name]
    if layout is LAYOUT:
        layout = LAYOUTS.get(name, LAYOUT)
    size = size or (layout.size if layout else SIZE)
    values = {"population": 12, **SMALL.get(name, {}), **values}
    if genome is None:
        genome = torch.linspace(-1, 1, size)
    return entry(genome, seed=seed, layout=layout, **values)


def sphere(genomes):
    return -(genomes - 0.5).square().sum(1)


def told(strategy, genomes):
    """Fitness in the form that the strategy takes."""
    fitness = sphere(genomes)
    return torch.stack([fitness, fitness / 2], 1) if strategy.per_sample else fitness


def advance(strategy, generations):
    for _ in range(generations):
        strategy.tell(told(strategy, strategy.ask()))
        candidates = strategy.candidates()
        if candidates is not None:
            strategy.confirm(sphere(candidates))


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


GROWING = {"add_node": 0.5, "add_connection": 0.5, "toggle_connection": 0.2, "recurrent": 0.5, "elite_size": 1}
VARIANTS = [
    *((name, {}) for name in NAMES),
    ("openai-es", {"rank": 1}),
    ("ars", {"top": 2}),
    ("cma-es", {"restarts": "bipop"}),
    ("trust", {"decay_per": "sample", "initial": "copied", "elite": 1, "base_mutation": 0.9}),
    ("deep-ga", {"initial": "copied", "elite_candidates": 0}),
    ("neat", GROWING),
    ("neat", {**GROWING, "initial": "copied", "target_species": 3}),
]


HOLDING = [name for name in NAMES if STRATEGIES[name].holds_members]


@pytest.mark.parametrize(("name", "values"), VARIANTS)
class TestEvery:
    def test_population_has_the_shape_and_stays_until_told(self, name, values):
        strategy = build(name, **values)
        first = strategy.ask().clone()
        assert first.shape == (12, strategy.layout.size)
        assert torch.isfinite(first).all()
        assert torch.equal(strategy.ask(), first)

    def test_members_differ(self, name, values):
        assert len(torch.unique(build(name, **values).ask(), dim=0)) == 12

    def test_stacks_are_the_same_population(self, name, values):
        strategy = build(name, **values)
        genomes, stacks = strategy.ask(), strategy.ask_stacks()
        layout = strategy.layout
        assert {key: (12, *shape) for key, shape in layout.shapes.items()} == {
            key: tuple(dense(stack).shape) for key, stack in stacks.items()
        }
        torch.testing.assert_close(layout.join(stacks), genomes, rtol=0, atol=0)
        first = next(iter(layout.shapes))
        torch.testing.assert_close(dense(stacks[first])[5].flatten(), genomes[5, : layout.sizes[0]], rtol=0, atol=0)

    def test_same_seed_same_generations_other_seed_others(self, name, values):
        first, second, other = (build(name, seed=seed, **values) for seed in (3, 3, 4))
        for strategy in (first, second, other):
            advance(strategy, 3)
        assert torch.equal(first.ask(), second.ask())
        assert torch.equal(first.best, second.best)
        assert not torch.equal(first.ask(), other.ask())

    def test_global_random_state_is_neither_used_nor_touched(self, name, values):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        first = build(name, **values)
        advance(first, 2)
        assert torch.equal(torch.get_rng_state(), before)

    def test_fitness_with_a_graph_is_taken_without_it(self, name, values):
        strategy, plain = build(name, **values), build(name, **values)
        scale = torch.ones((), requires_grad=True)
        for _ in range(3):
            strategy.tell(scale * told(strategy, strategy.ask()))
            if strategy.candidates() is not None:
                strategy.confirm(scale * sphere(strategy.candidates()))
        advance(plain, 3)
        assert torch.equal(copy.deepcopy(strategy).ask(), plain.ask())
        held = [value for value in vars(strategy).values() if isinstance(value, torch.Tensor)]
        assert not any(value.grad_fn or value.requires_grad for value in held)

    def test_leaves_inference_mode(self, name, values):
        strategy, plain = build(name, **values), build(name, **values)
        with torch.inference_mode():
            advance(strategy, 2)
        advance(strategy, 2)
        advance(plain, 4)
        assert torch.equal(strategy.ask(), plain.ask())

    def test_resumed_is_bit_for_bit_the_unbroken(self, name, values):
        unbroken = build(name, **values)
        advance(unbroken, 4)
        state = through_a_file(unbroken.state_dict())
        resumed = build(name, seed=99, genome=unbroken.genome / 2, **values)
        resumed.load_state_dict(state)
        for _ in range(4):
            assert torch.equal(resumed.ask(), unbroken.ask())
            advance(unbroken, 1)
            advance(resumed, 1)
            assert torch.equal(resumed.best, unbroken.best)
        assert resumed.metrics() == unbroken.metrics()
        assert resumed.generation == unbroken.generation == 8
        assert resumed.best_fitness == unbroken.best_fitness

    def test_saved_between_ask_and_tell_draws_the_same_again(self, name, values):
        unbroken = build(name, **values)
        advance(unbroken, 2)
        asked = unbroken.ask().clone()
        resumed = build(name, seed=99, **values)
        resumed.load_state_dict(through_a_file(unbroken.state_dict()))
        assert torch.equal(resumed.ask(), asked)
        advance(unbroken, 1)
        advance(resumed, 1)
        assert torch.equal(resumed.ask(), unbroken.ask())

    def test_a_saved_state_does_not_change_afterwards(self, name, values):
        strategy = build(name, **values)
        advance(strategy, 2)
        state = strategy.state_dict()
        kept = through_a_file(state)
        advance(strategy, 2)
        for key, value in kept.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(state[key], value), key

    def test_not_finite_counts_as_the_worst_and_is_counted(self, name, values):
        values = {**values, "elite_candidates": 0} if name == "deep-ga" else values
        bad, worst = build(name, **values), build(name, **values)
        fitness = told(bad, bad.ask())
        worst.ask()
        lowest = fitness.clone()
        fitness[1], fitness[4], fitness[7] = float("nan"), float("inf"), float("-inf")
        others = [row for row in range(12) if row not in (1, 4, 7)]
        lowest[[1, 4, 7]] = lowest[others].min()
        bad.tell(fitness)
        worst.tell(lowest)
        assert bad.bad_fitness == 3 and worst.bad_fitness == 0
        assert torch.equal(bad.ask(), worst.ask())

    def test_all_fitness_not_finite_goes_on(self, name, values):
        strategy = build(name, **values)
        strategy.tell(torch.full_like(told(strategy, strategy.ask()), float("nan")))
        assert strategy.bad_fitness == 12
        assert torch.isfinite(strategy.ask()).all()

    def test_fitness_of_any_magnitude_goes_on(self, name, values):
        strategy = build(name, **values)
        for _ in range(3):
            fitness = told(strategy, strategy.ask())
            strategy.tell(torch.linspace(-1.0, 1.0, fitness.numel()).view_as(fitness).double() * 1.7e308)
            assert torch.isfinite(strategy.ask()).all()

    def test_equal_fitness_goes_on(self, name, values):
        strategy = build(name, **values)
        for _ in range(3):
            strategy.tell(torch.zeros_like(told(strategy, strategy.ask())))
            assert torch.isfinite(strategy.ask()).all()

    def test_metrics_are_finite_floats(self, name, values):
        strategy = build(name, **values)
        advance(strategy, 2)
        metrics = strategy.metrics()
        assert {"diversity", "genome_norm"} <= set(metrics)
        for key, value in metrics.items():
            assert isinstance(value, float) and value == value and abs(value) < 1e6, key

    def test_telling_what_was_not_asked_for_is_refused(self, name, values):
        with pytest.raises(RuntimeError, match="tell: no population was asked for"):
            build(name, **values).tell(torch.zeros(12))

    def test_fitness_of_the_wrong_shape_is_refused(self, name, values):
        strategy = build(name, **values)
        strategy.ask()
        with pytest.raises(ValueError, match="fitness: got a float; expected a tensor"):
            strategy.tell(1.5)
        with pytest.raises(ValueError, match="fitness: got torch.complex64; expected real numbers"):
            strategy.tell(torch.zeros(12, dtype=torch.complex64))
        with pytest.raises(ValueError, match=r"fitness: got shape \[11\]"):
            strategy.tell(torch.zeros(11))


@pytest.mark.parametrize("name", NAMES)
def test_state_of_another_genome_or_strategy_is_refused(name):
    strategy = build(name)
    smaller = Layout({"hidden_weight": (1, 6), "output_weight": (1, 6)} if name == "neat" else {"weight": (6,)})
    with pytest.raises(ValueError, match="checkpoint: strategy 'genome' has shape"):
        strategy.load_state_dict(build(name, layout=smaller).state_dict())
    other = "snes" if name != "snes" else "cma-es"
    with pytest.raises(ValueError, match="agent.strategy.type: "):
        strategy.load_state_dict(build(other).state_dict())


@pytest.mark.parametrize(("name", "values"), [*((name, {}) for name in NAMES), ("openai-es", {"rank": 1})])
def test_a_parameter_may_have_no_elements(name, values):
    shapes = {"none": (0,), "rows": (0, 4), "columns": (3, 0), "one": ()}
    layout = Layout({**LAYOUTS.get(name, LAYOUT).shapes, **({} if name == "neat" else shapes)})
    strategy = build(name, layout=layout, **values)
    advance(strategy, 2)
    assert torch.equal(strategy.ask(), layout.join(strategy.ask_stacks()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "genome", [torch.zeros(2, 3), torch.tensor([1.0, float("nan")]), torch.arange(3), torch.zeros(0)]
)
def test_bad_initial_genomes_are_refused(name, genome):
    with pytest.raises(ValueError, match="genome: got shape"):
        build(name, layout=None, genome=genome)


SPHERE = {
    "trust": ({"population": 100, "mutation_scale": 0.05, "elite": 1, "decay": 0.9}, 150, 0.1),
    "deep-ga": ({"population": 100, "truncation": 10, "sigma": 0.05}, 100, 0.1),
    "openai-es": ({"population": 40, "lr": 0.03, "sigma": 0.05, "weight_decay": 0.0}, 200, 0.03),
    "snes": ({"population": None}, 300, 1e-4),
    "pgpe": ({"population": 40, "max_speed": 0.1, "sigma": 0.1}, 200, 0.1),
    "cma-es": ({"population": None}, 200, 1e-4),
    "sep-cma-es": ({"population": None}, 200, 1e-4),
}


@pytest.mark.parametrize("name", list(SPHERE))
def test_finds_the_optimum_of_the_sphere(name):
    values, generations, tolerance = SPHERE[name]
    strategy = build(name, **values)
    advance(strategy, generations)
    assert float((strategy.best - 0.5).abs().max()) < tolerance


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["cma-es", "sep-cma-es", "snes"])
def test_fitness_keeps_the_digits_that_a_large_offset_leaves(name, kind):
    """Of the sphere plus 1000, float64 leaves differences of 1e-13, float32 of 6e-5."""
    strategy = build(name, layout=None, genome=torch.linspace(-1, 1, 10).to(kind), population=None)
    for _ in range(600):
        strategy.tell(sphere(strategy.ask().double()) - 1000)
    assert -float(sphere(strategy.best.double()[None])) < 1e-12


def test_nearly_equal_fitness_is_ranked_by_every_strategy():
    """Told in float64, the better half differs from the worse by less than float32 can hold, as 1000 + 1e-9 does."""
    offsets = torch.tensor([0.0, 1e-9] * 6, dtype=torch.float64)
    for name in NAMES:
        near, far = build(name), build(name)
        if name == "deep-ga":
            near.elite_candidates = far.elite_candidates = 0
        near.ask(), far.ask()
        scale = 1e9 if name not in ("trust", "neat", "ars") else 1.0  # ranks alone count, but for what is earned
        near.tell(1000 + offsets)
        far.tell(1000 + offsets * scale)
        assert torch.equal(near.best, far.best), name
        assert near.best_fitness == 1000 + 1e-9


def test_cma_es_finds_the_optimum_of_rosenbrock():
    strategy = build("cma-es", layout=None, genome=torch.zeros(4, dtype=torch.float64))
    for _ in range(250):
        x = strategy.ask()
        strategy.tell(-(100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2).sum(1))
    assert float((strategy.best - 1).abs().max()) < 1e-3


@pytest.mark.parametrize("name", ["snes", "cma-es", "sep-cma-es"])
def test_scales_of_each_weight_adapt_to_an_ellipsoid(name):
    stiffness = torch.logspace(0, 4, 6, dtype=torch.float64)
    strategy = build(name, layout=None, genome=torch.ones(6, dtype=torch.float64))
    for _ in range(600):
        strategy.tell(-(strategy.ask().square() * stiffness).sum(1))
    assert float(strategy.best.abs().max()) < 1e-6


@pytest.mark.parametrize("name", HOLDING)
def test_members_are_replaced_by_finite_genomes_of_their_shape_alone(name):
    strategy = build(name)
    with pytest.raises(RuntimeError, match="replace: no population was asked for since the last tell"):
        strategy.replace(torch.zeros(12, strategy.layout.size))
    genomes = strategy.ask().clone()
    size = strategy.layout.size
    wrong = [
        (genomes[:5], rf"genomes: got shape \[5, {size}\]; expected \[12, {size}\]"),
        (genomes[0], rf"genomes: got shape \[{size}\]"),
        (genomes.tolist(), "genomes: got a list; expected a tensor"),
        (genomes.to(torch.complex64), "genomes: got torch.complex64; expected real numbers"),
        (genomes.clone().index_fill_(1, torch.tensor([1]), torch.nan), "genomes: got numbers that are not finite"),
        (genomes.double() + 1e300, "genomes: got numbers that are not finite"),
    ]
    for given, message in wrong:
        with pytest.raises(ValueError, match=message):
            strategy.replace(given)
        assert torch.equal(strategy.ask(), genomes)
    strategy.replace((2 * genomes).requires_grad_())
    assert torch.equal(strategy.ask(), 2 * genomes) and not strategy.ask().requires_grad


@pytest.mark.parametrize("name", [name for name in NAMES if name not in HOLDING])
def test_what_holds_no_members_replaces_none(name):
    strategy = build(name)
    with pytest.raises(RuntimeError, match="holds no members that could be replaced"):
        strategy.replace(strategy.ask())
