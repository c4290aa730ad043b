"""The evolution agent: generations, stopping, what is not finite, handing over, and going on bit for bit."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from states import same

import papertape
from papertape.agents import BackpropAgent, MixedAgent, NodePerturbationAgent
from papertape.agents.evolution import EvolutionAgent
from papertape.agents.learning import TrainingError
from papertape.circuits import FeedForwardCircuit
from papertape.core.env import Batch, Env
from papertape.core.recorder import Chart, Recorder
from papertape.core.registry import entries
from papertape.envs import CopyEnv, TMazeWorld

SMALL: dict[str, Any] = {
    "batch_size": 4,
    "log_every": 2,
    "evaluate_every": 3,
    "save_every": 4,
    "evaluation_sequences": 5,
}
TIMED = "train/sequences_per_second"


class Keep(Recorder):
    """Keeps everything that it is told."""

    wants_episodes = True

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.states: list[tuple[str, dict[str, Any]]] = []
        self.steps: list[tuple[int, int]] = []
        self.episodes: list[tuple[int, str]] = []
        self.charts: list[tuple[int, str, Chart]] = []

    def message(self, text):
        self.messages.append(text)

    def metrics(self, step, values):
        self.rows.append((step, {name: value for name, value in values.items() if name != TIMED}))

    def progress(self, step, total, values):
        self.steps.append((step, total))

    def checkpoint(self, name, state):
        self.states.append((name, state))

    def episode(self, step, name, batch, outputs, trace):
        self.episodes.append((step, name))

    def chart(self, step, name, chart):
        self.charts.append((step, name, chart))


def copy_env(**values) -> CopyEnv:
    return CopyEnv(**{"width": 2, "max_length": 2, "test_lengths": [3], **values})


def make(strategy="openai-es", *, seed=0, recorder=None, env=None, kind="ntm", weights=1, **values) -> EvolutionAgent:
    env = env or copy_env()
    torch.manual_seed(weights)
    sizes: dict[str, Any] = {"hidden_size": 4, "memory_size": 4, "word_size": 3}
    block = {"type": strategy, "population": 8} if isinstance(strategy, str) else strategy
    controller = "neat" if block["type"] == "neat" else "feedforward"
    circuit = {
        "ntm": lambda: papertape.NTM(env.input_size, env.output_size, controller=controller, **sizes),
        "dnc": lambda: papertape.DNC(env.input_size, env.output_size, controller="gru", num_reads=1, **sizes),
        "feedforward": lambda: FeedForwardCircuit(env.input_size, env.output_size, hidden_sizes=[4]),
    }[kind]()
    if block["type"] == "deep-ga":
        block = {"truncation": 3, "elite_candidates": 2, "elite_sequences": 3, **block}
    options = {**SMALL, "strategy": block, **values}
    return EvolutionAgent(env, circuit, **options, seed=seed, recorder=recorder)


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


@pytest.mark.parametrize("name", list(entries("strategy")))
def test_resumed_equals_unbroken(name):
    settings = {"generations": 6, "fitness": {"type": "reward", "prediction": "sampled"}}
    whole = Keep()
    unbroken = make(name, recorder=whole, **settings)
    unbroken.fit()
    for stop in (1, 4):
        first, kept = make(name, **settings), Keep()
        while first.step < stop:
            first.train_step()
            if first.step % SMALL["evaluate_every"] == 0:
                first.judge()
        resumed = make(name, seed=7, weights=9, recorder=kept, **settings)
        resumed.seed = 0
        resumed.load_state_dict(through_a_file(first.state_dict()))
        resumed.fit()
        assert same(resumed.state_dict(), unbroken.state_dict())
        assert same(kept.rows, [row for row in whole.rows if row[0] > stop])


@pytest.mark.parametrize("name", ["deep-ga", "openai-es", "trust"])
def test_begins_again_when_the_target_is_out_of_reach(name):
    settings = {"generations": 8, "retry_every": 3, "target_error": 0.0, "evaluate_every": 2}
    watch = Keep()
    unbroken = make(name, recorder=watch, **settings)
    first = unbroken.strategy.genome.clone()
    unbroken.fit()
    assert [message for message in watch.messages if "begins again" in message] == [
        f"generation {step}: target not reached, begins again with the first weights" for step in (3, 6)
    ]
    assert unbroken.strategy.generation == 2
    assert same(unbroken.strategy.genome, first)

    # Every try draws another population from the same weights, and a run that was stopped in one goes on with it.
    tries = make(name, **settings)
    asked = []
    while tries.step < 8:
        if tries.step in (2, 5):
            stopped, tries = tries, make(name, seed=7, weights=9, **settings)
            tries.seed = 0
            tries.load_state_dict(through_a_file(stopped.state_dict()))
        tries.train_step()
        if tries.step in (1, 4, 7):
            asked.append(through_a_file(tries.strategy.state_dict())["generator"])
        if tries.step % 2 == 0:
            tries.judge()
    assert same(tries.state_dict(), unbroken.state_dict())
    assert len({tuple(state.tolist()) for state in asked}) == 3


@pytest.mark.parametrize("kind", ["ntm", "dnc", "feedforward"])
def test_fitness_is_what_each_member_gets_on_its_own(kind):
    agent = make("snes", kind=kind)
    genomes = agent.strategy.ask()
    asked = agent.scoring.draw(4, torch.Generator().manual_seed(0))
    batch = asked.batch
    scores = agent.scoring.scores(agent.strategy.ask_stacks(), asked).sum(1)
    for genome, score in zip(genomes, scores, strict=True):
        agent.population.layout.write(genome, agent.circuit)
        loss = agent.env.loss(agent.circuit(batch.inputs)[0], batch)
        torch.testing.assert_close(-loss.detach().double(), score, rtol=1e-6, atol=1e-6)


class Distant(CopyEnv):
    """A linear map is to answer 0.5 to everything; each sequence also costs 250 that nothing can save."""

    def sample(self, batch_size, generator):
        rows = torch.eye(self.input_size).repeat(batch_size, 1)[:batch_size]
        inputs = rows.unsqueeze(0).expand(2, -1, -1)
        return Batch(inputs, inputs.new_zeros(2, batch_size, self.output_size), inputs.new_ones(2, batch_size))

    def losses(self, outputs, batch):
        away = (outputs[0] - 0.5).square().sum(-1) * batch.mask.shape[1]
        return torch.stack([away, torch.full_like(away, 1000.0)])


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("strategy", ["cma-es", "sep-cma-es", "snes"])
def test_fitness_keeps_the_digits_that_a_large_offset_leaves(strategy, precision):
    env = Distant(width=2, max_length=2, test_lengths=[3])
    torch.manual_seed(0)
    circuit = FeedForwardCircuit(env.input_size, env.output_size, hidden_sizes=[]).to(precision)
    agent = EvolutionAgent(env, circuit, **SMALL, strategy={"type": strategy, "sigma": 0.3})
    for _ in range(600):
        agent.train_step()
    with torch.no_grad():
        batch = env.sample(4, agent.generator)
        away = circuit(batch.inputs)[0][0].double() - 0.5
    assert float(away.square().sum()) < 1e-12


@pytest.mark.parametrize("kind", ["ntm", "dnc", "feedforward"])
@pytest.mark.parametrize("fitness", ["loss", "accuracy", "reward"])
def test_a_float64_circuit_is_judged_in_float64(kind, fitness):
    """Whatever type the sequences have."""
    agent = make("snes", kind=kind)
    agent = EvolutionAgent(
        agent.env, agent.circuit.double(), **SMALL, strategy={"type": "snes", "population": 8}, fitness=fitness
    )
    asked = agent.scoring.draw(4, torch.Generator().manual_seed(0))
    exact = asked._replace(batch=Batch(*(part.double() for part in asked.batch)))
    scores = agent.score(agent.strategy.ask_stacks(), asked)
    assert scores.dtype == torch.float64
    assert torch.equal(scores, agent.score(agent.strategy.ask_stacks(), exact))
    agent.train_step()


def test_all_members_see_the_same_data_and_another_in_the_next_generation():
    agent = make("snes")
    seen = []
    sample = agent.env.sample
    agent.env.sample = lambda size, generator: seen.append(sample(size, generator)) or seen[-1]
    agent.train_step()
    agent.train_step()
    assert len(seen) == 2 and seen[0].inputs.shape[1] == 4
    assert not (seen[0].inputs.shape == seen[1].inputs.shape and torch.equal(seen[0].inputs, seen[1].inputs))


def test_circuit_carries_the_best_genome_after_each_generation():
    agent = make("trust")
    for _ in range(3):
        agent.train_step()
        assert torch.equal(agent.population.layout.read(agent.circuit), agent.strategy.best)


def test_everything_is_reported():
    kept = Keep()
    agent = make("trust", recorder=kept, generations=6)
    last = agent.fit()
    assert kept.steps == [(step, 6) for step in range(1, 7)]
    train = [values for _, values in kept.rows if "train/fitness_best" in values]
    assert [step for step, values in kept.rows if "train/fitness_best" in values] == [2, 4, 6]
    names = {"fitness_best", "fitness_median", "fitness_worst", "diversity", "genome_norm", "bad_fitness"}
    assert {f"train/{name}" for name in names | {"trust_median", "best_bits_wrong"}} <= set(train[0])
    assert train[0]["train/fitness_worst"] <= train[0]["train/fitness_median"] <= train[0]["train/fitness_best"]
    assert {f"validation/{name}/bits_wrong" for name in agent.env.sets("validation")} <= set(last)
    assert [step for step, values in kept.rows if values == {**last, "answered": 6 * 8 * 4}] == [6]
    assert [name for name, _ in kept.states if name == "latest"] == ["latest"] * 2
    assert kept.states[0][0] == "best"
    assert {step for step, _ in kept.episodes} == {3, 6}


@pytest.mark.parametrize("block", [{"type": "loss"}, {"type": "reward", "prediction": "expected"}])
def test_learns_to_copy_one_word(block):
    env = copy_env(width=1, max_length=1, test_lengths=[])
    agent = make(
        {"type": "openai-es", "population": 32, "sigma": 0.2, "lr": 0.1, "weight_decay": 0.0},
        env=env, fitness=block, batch_size=16, generations=150, evaluate_every=25, target_error=0.0,
    )  # fmt: skip
    agent.fit()
    assert agent.target_reached
    assert agent.step < 150


def test_answers_are_counted_while_populations_grow_and_batches_change():
    block = {"type": "cma-es", "population": 4, "restarts": "ipop"}
    agent, expected = make(block, generations=8, batch_size=3), 0

    def rests(fitness: torch.Tensor) -> bool:
        agent.strategy.history = (float(fitness.max()),)
        return agent.step % 2 == 1

    agent.strategy.at_rest = rests
    kept = Keep()
    populations = set()
    while agent.step < 6:
        expected += agent.strategy.population * 3
        populations.add(agent.strategy.population)
        agent.train_step()
    assert agent.answered == expected and len(populations) > 2
    resumed = make(block, generations=8, batch_size=5, target_error=1000.0, recorder=kept)
    resumed.load_state_dict(through_a_file(agent.state_dict()))
    while resumed.step < 8:
        expected += resumed.strategy.population * 5
        resumed.train_step()
    resumed.judge()
    assert kept.rows[-1][1]["answered"] == resumed.answered == expected
    resumed.fit()
    assert kept.messages[-1] == f"generation 8: target reached after {expected:,} sequences"


def test_a_checkpoint_that_counted_no_answers_is_taken_to_have_had_the_same_in_every_step():
    agent = make(batch_size=3)
    agent.train_step()
    state = agent.state_dict()
    del state["answered"]
    agent.load_state_dict(state)
    assert agent.answered == 8 * 3


def test_stops_at_the_target_and_goes_on_with_a_lower_one():
    agent = make(generations=50, target_error=10.0)
    agent.fit()
    assert agent.step == 3 and agent.target_reached
    again = make(generations=5, target_error=10.0)
    again.load_state_dict(agent.state_dict())
    again.fit()
    assert again.step == 3
    further = make(generations=5, target_error=0.0)
    further.load_state_dict(agent.state_dict())
    further.fit()
    assert further.step == 5


def test_stops_when_asked_and_saves():
    kept = Keep()
    agent = make(recorder=kept, generations=50)
    kept.progress = lambda step, total, values: setattr(agent, "stop_requested", step == 5)
    agent.fit()
    assert agent.step == 5
    assert kept.states[-1][0] == "latest" and kept.states[-1][1]["step"] == 5


def test_curriculum_moves_on():
    """By the best genome's error on the lesson, at each evaluation, as long as there is a lesson left."""
    env, kept = copy_env(max_length=3, curriculum={"type": "growing", "threshold": 100.0}), Keep()
    lessons, lesson = [], env.lesson
    env.lesson = lambda: lessons.append(lesson()) or lessons[-1]
    agent = make(generations=9, env=env, recorder=kept)
    agent.fit()
    assert [text for text in kept.messages if "moves on" in text] == [
        f"generation {step}: the curriculum moves on" for step in (3, 6)
    ]
    judged = [next(iter(lesson.sets("validation"))) for lesson in lessons if lesson]
    assert list(dict.fromkeys(judged)) == ["length 1", "length 1-2"]
    assert [step for step, values in kept.rows if "validation/lesson/bits_wrong" in values] == [3, 6]


def test_charts_of_the_strategy_and_of_the_network():
    kept = Keep()
    agent = make("neat", recorder=kept, generations=3)
    agent.fit()
    assert [(step, name) for step, name, _ in kept.charts] == [(3, "network"), (3, "species")]
    assert kept.charts[0][2] == agent.circuit.controller.network.chart()
    kept.charts.clear()
    agent.test()
    assert [name for _, name, _ in kept.charts] == ["network"]
    make("trust", recorder=kept, generations=3).fit()
    (_, name, trust) = kept.charts[-1]
    assert name == "trust" and len(trust.values) == 8
    kept.wants_episodes = False
    make("neat", recorder=kept, generations=3).fit()
    assert len(kept.charts) == 2


def test_test_mode_changes_nothing():
    kept = Keep()
    agent = make(recorder=kept)
    before = through_a_file(agent.state_dict())
    values = agent.test()
    assert same(before, agent.state_dict())
    assert kept.rows == [(0, values)] and kept.episodes


class Poisoned(CopyEnv):
    """Every member whose first output bit is positive somewhere has no loss."""

    share = 1.0

    def losses(self, outputs, batch):
        bad = outputs[..., 0] > (-math.inf if self.share == 1 else 0)
        return super().losses(outputs, batch).masked_fill(bad & (batch.mask > 0), math.nan)


def poisoned(share) -> Env:
    env = Poisoned(width=2, max_length=2, test_lengths=[])
    env.share = share
    return env


def test_members_without_a_finite_fitness_are_counted_and_reported_once():
    kept = Keep()
    agent = make({"type": "snes", "population": 30, "sigma": 3.0}, env=poisoned(0.5), recorder=kept, generations=4)
    agent.fit()
    said = [text for text in kept.messages if "was not finite" in text]
    assert len(said) == 1 and "they count as the worst" in said[0]
    assert kept.rows[-2][1]["train/bad_fitness"] == agent.strategy.bad_fitness > 0


def test_a_population_that_is_lost_stops_with_an_error_and_is_saved():
    kept = Keep()
    agent = make("snes", env=poisoned(1.0), recorder=kept, max_bad_generations=5, evaluate_every=100, log_every=100)
    with pytest.raises(TrainingError, match="no member had a finite fitness 5 generations in a row"):
        agent.fit()
    assert kept.states[-1][0] == "latest"
    assert agent.step == 5


def test_evolved_circuit_goes_on_by_backprop_and_seeds_a_population_again():
    evolution = make("openai-es", generations=3)
    evolution.fit()
    circuit = evolution.circuit
    backprop = BackpropAgent(evolution.env, circuit, batch_size=4, steps=3, evaluation_sequences=4)
    before = evolution.population.layout.read(circuit)
    backprop.fit()
    trained = evolution.population.layout.read(circuit)
    assert not torch.equal(before, trained)
    for strategy in ("openai-es", "snes", "pgpe", "cma-es", "sep-cma-es"):
        agent = EvolutionAgent(evolution.env, circuit, strategy=strategy, **SMALL)
        torch.testing.assert_close(agent.strategy.best, trained)
    agent = EvolutionAgent(evolution.env, circuit, strategy={"type": "trust", "initial": "copied"}, **SMALL)
    assert torch.equal(agent.strategy.ask()[0], trained)


def test_deep_ga_looks_twice_at_its_candidates():
    agent = make("deep-ga")
    sizes = []
    sample = agent.env.sample
    agent.env.sample = lambda size, generator: sizes.append(size) or sample(size, generator)
    moved = []
    agent.env.move_on = moved.append
    agent.train_step()
    assert sizes == [4, 3] and moved == [4 + 3]
    assert agent.answered == 8 * 4 + 2 * 3


def test_decay_per_sample_gets_the_fitness_of_each_sequence():
    agent = make({"type": "trust", "population": 8, "decay_per": "sample"}, fitness={"type": "reward"})
    agent.train_step()
    assert agent.strategy.generation == 1


@pytest.mark.parametrize("kind", [EvolutionAgent, MixedAgent, NodePerturbationAgent, BackpropAgent])
@pytest.mark.parametrize("module", ["ntm", "feedforward", "any"])
def test_what_is_frozen_stays(kind, module):
    env = copy_env()
    torch.manual_seed(0)
    sizes = {"hidden_size": 4, "memory_size": 4, "word_size": 3, "memory_init": "constant"}
    circuit: Any = {
        "ntm": lambda: papertape.NTM(env.input_size, env.output_size, controller="feedforward", **sizes),
        "feedforward": lambda: FeedForwardCircuit(env.input_size, env.output_size, hidden_sizes=[4]),
        "any": lambda: torch.nn.Sequential(torch.nn.Linear(env.input_size, 4), torch.nn.Linear(4, env.output_size)),
    }[module]()
    names = [name for name, _ in circuit.named_parameters()][:2]
    for name in names:
        circuit.get_parameter(name).requires_grad_(False)
    before = {name: part.detach().clone() for name, part in circuit.named_parameters()}
    options = {
        EvolutionAgent: {"strategy": {"type": "openai-es", "population": 4}, "generations": 2},
        MixedAgent: {"strategy": {"type": "trust", "population": 4}, "generations": 2},
        NodePerturbationAgent: {"steps": 2},
        BackpropAgent: {"steps": 2, "plasticity": {"type": "shrink-perturb", "every": 1}},
    }[kind]
    agent: Any = kind(env, circuit, **SMALL, **options, seed=0)
    agent.fit()
    again: Any = kind(env, copy.deepcopy(circuit), **SMALL, **options, seed=0)
    again.load_state_dict(through_a_file(agent.state_dict()))
    for name, part in circuit.named_parameters():
        assert torch.equal(part, before[name]) == (name in names), name


def test_a_module_that_is_frozen_whole_has_nothing_to_evolve():
    with pytest.raises(ValueError, match="parameters: the circuit has none that are not frozen"):
        EvolutionAgent(copy_env(), torch.nn.Linear(4, 2).requires_grad_(False), **SMALL)

    empty = torch.nn.Linear(4, 2).requires_grad_(False)
    empty.register_parameter("none", torch.nn.Parameter(torch.zeros(0)))
    with pytest.raises(ValueError, match="parameters: the circuit has none that are not frozen"):
        EvolutionAgent(copy_env(), empty, **SMALL)


class Writes(torch.nn.Module):
    """Writes something to a buffer each time that it answers."""

    def __init__(self, task, what):
        super().__init__()
        self.layer, self.what = torch.nn.Linear(task.input_size, task.output_size), what
        self.register_buffer("kept", torch.tensor([math.nan, 0.0]))

    def forward(self, inputs):
        outputs = self.layer(inputs)
        if self.what == "assigned":
            self.kept = torch.stack([outputs.min(), outputs.max()])
        else:
            self.kept += {"inputs": inputs.mean(), "outputs": outputs.mean(), "steps": 1.0}[self.what]
        return outputs


@pytest.mark.parametrize("what", ["inputs", "outputs", "assigned"])
@pytest.mark.parametrize("task", [copy_env, lambda: TMazeWorld(trials=3)])
def test_a_module_whose_members_would_share_what_they_write_is_refused(what, task):
    env = task()
    module = torch.nn.Sequential(Writes(env, what))
    before = copy.deepcopy(module.state_dict())
    drawn = torch.random.get_rng_state()
    with pytest.raises(ValueError, match=r"^circuit: Writes writes what it is given to its buffer module\.0\.kept, .*"):
        EvolutionAgent(env, module, **SMALL)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert torch.equal(module.state_dict()["0.layer.weight"], before["0.layer.weight"])


@pytest.mark.parametrize("task", [copy_env, lambda: TMazeWorld(trials=3)])
def test_a_module_may_count_its_answers(task):
    env = task()
    EvolutionAgent(env, Writes(env, "steps"), **SMALL, generations=2).fit()


def test_state_of_another_circuit_or_agent_is_refused():
    state = make("snes").state_dict()
    with pytest.raises(ValueError, match="checkpoint: weight"):
        make("snes", kind="dnc").load_state_dict(state)
    with pytest.raises(ValueError, match=r"agent\.strategy\.type: 'cma-es' -> 'pgpe'"):
        make("pgpe").load_state_dict({**make("pgpe").state_dict(), "strategy": make("cma-es").state_dict()["strategy"]})
    backprop = BackpropAgent(copy_env(), make().circuit)
    with pytest.raises(ValueError, match="saved by another agent"):
        make().load_state_dict(backprop.state_dict())
    for one in (backprop, make(), make().strategy):
        with pytest.raises(ValueError, match="state: got a int; expected what state_dict gave"):
            one.load_state_dict(3)


def test_a_circuit_of_other_sizes_is_refused():
    with pytest.raises(ValueError, match="input_size: the circuit has 9, the env 4"):
        EvolutionAgent(copy_env(), FeedForwardCircuit(9, 2))


@pytest.mark.parametrize(
    ("values", "path", "message"),
    [
        ({"generations": 0}, ("generations",), "greater than or equal to 1"),
        ({"memory_budget": 0.0}, ("memory_budget",), "greater than 0"),
        ({"target_error_beyond": 0.1}, (), "target_error_beyond: needs target_error"),
        ({"strategy": {"type": "deep-ga", "population": 5}}, ("strategy",), "truncation: got 20"),
        ({"strategy": {"type": "openai-es", "population": 5}}, ("strategy",), "population: got 5"),
        ({"strategy": {"type": "walk"}}, ("strategy",), "'walk'"),
        ({"fitness": {"type": "walk"}}, ("fitness",), "'walk'"),
        ({"steps": 5}, ("steps",), "not permitted"),
    ],
)
def test_wrong_options_are_refused(values, path, message):
    with pytest.raises(ValidationError) as caught:
        EvolutionAgent.Options(**values)
    errors = caught.value.errors()
    assert errors[0]["loc"] == path
    assert message in errors[0]["msg"]


@pytest.mark.parametrize("strategy", ["trust", "deep-ga", "neat", "snes"])
def test_what_keeps_nothing_of_given_weights_is_said(strategy):
    lines = [*EvolutionAgent.refuses_start(EvolutionAgent.Options(strategy=strategy))]
    expected = ["agent.strategy.initial: got 'resampled', which keeps nothing of the weights of start; allowed: copied"]
    assert lines == (expected if strategy != "snes" else [])
    if strategy != "snes":
        copied = EvolutionAgent.Options(strategy={"type": strategy, "initial": "copied"})
        assert not [*EvolutionAgent.refuses_start(copied)]
