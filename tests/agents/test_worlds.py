"""Evolution in worlds: members act as they would on their own, and everything that holds for batches holds here."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from states import same
from torch import Tensor

import papertape
from papertape.agents import ActorCritic, BackpropAgent, EvolutionAgent, PPOAgent
from papertape.agents.evaluation import evaluate, show_episodes
from papertape.agents.learning import TrainingError
from papertape.agents.population import Population
from papertape.circuits import FeedForwardCircuit, NormalisedCircuit
from papertape.core.recorder import Recorder
from papertape.core.registry import lookup
from papertape.core.streams import stream_seed
from papertape.core.world import Step, World, WorldError, carrying, check_episodes
from papertape.envs import TMazeWorld

SMALL = {"batch_size": 3, "log_every": 2, "evaluate_every": 3, "save_every": 4, "evaluation_sequences": 5}
TIMED = "train/sequences_per_second"


class Keep(Recorder):
    """Keeps rows, messages and episodes."""

    wants_episodes = True

    def __init__(self):
        self.messages, self.rows, self.episodes, self.states = [], [], [], []

    def message(self, text):
        self.messages.append(text)

    def metrics(self, step, values):
        self.rows.append((step, {name: value for name, value in values.items() if name != TIMED}))

    def episode(self, step, name, batch, outputs, trace):
        self.episodes.append((name, batch, outputs, trace))

    def checkpoint(self, name, state):
        self.states.append((name, state))


def world(**values) -> TMazeWorld:
    return TMazeWorld(**{"trials": 6, "min_stay": 2, "max_stay": 3, "test_trials": [9], **values})


def circuit_for(task: World, kind: str = "gru"):
    torch.manual_seed(1)
    if kind == "feedforward":
        return FeedForwardCircuit(task.input_size, task.output_size, hidden_sizes=[5])
    sizes = {"hidden_size": 5, "memory_size": 4, "word_size": 3, "num_reads": 1}
    made = papertape.DNC if kind == "dnc" else papertape.NTM
    return made(task.input_size, task.output_size, controller="lstm" if kind == "dnc" else kind, **sizes)


def make(strategy="openai-es", *, seed=0, recorder=None, task=None, kind="gru", **values) -> EvolutionAgent:
    task = task or world()
    block = {"type": strategy, "population": 8} if isinstance(strategy, str) else strategy
    if block["type"] == "deep-ga":
        block = {"truncation": 3, "elite_candidates": 2, "elite_sequences": 3, **block}
    options = {**SMALL, "strategy": block, **values}
    return EvolutionAgent(task, circuit_for(task, kind), seed=seed, recorder=recorder, **options)


@pytest.mark.parametrize("kind", ["gru", "dnc", "feedforward"])
def test_members_act_together_as_each_does_on_its_own(kind):
    task = world()
    circuit = circuit_for(task, kind)
    population = Population(circuit)
    genomes = population.layout.read(circuit) + 2 * torch.randn(15, population.layout.size)
    stacks = population.layout.split(genomes)
    together = population.play(stacks, task, 3, seed=5)
    assert together.returns.shape == (15, 3)
    assert len(together.lengths.unique()) > 1, "members that all do the same would show nothing"
    for member, genome in enumerate(genomes):
        population.layout.write(genome, circuit)
        with torch.no_grad():
            alone = task.play(carrying(circuit), 3, torch.Generator().manual_seed(5))
        assert torch.equal(alone.returns[0], together.returns[member])
        assert torch.equal(alone.lengths[0], together.lengths[member])
    in_chunks = Population(circuit, memory_budget=1e-6)
    assert in_chunks.chunk_size(torch.empty(1, 3, 4)) == 2
    found = in_chunks.play(stacks, task, 3, seed=5)
    assert torch.equal(found.returns, together.returns) and torch.equal(found.lengths, together.lengths)
    assert torch.equal(found.info["rewarded_trials"], together.info["rewarded_trials"])


def test_fitness_is_the_mean_return_of_the_same_episodes():
    agent = make()
    drawn = agent.scoring.draw(3, agent.generator)
    scores = agent.scoring.scores(agent.strategy.ask_stacks(), drawn)
    again = agent.scoring.scores(agent.strategy.ask_stacks(), drawn)
    assert torch.equal(scores, again)
    agent.population.layout.write(agent.strategy.ask()[2], agent.circuit)
    torch.testing.assert_close(float(scores[2].sum()), agent.scoring.metrics(agent.circuit, drawn)["reward"])
    assert agent.scoring.draw(3, agent.generator) != drawn


@pytest.mark.parametrize("name", ["openai-es", "trust", "deep-ga"])
def test_resumed_equals_unbroken(name):
    whole = Keep()
    unbroken = make(name, recorder=whole, generations=6)
    unbroken.fit()
    first, kept = make(name, generations=6), Keep()
    while first.step < 4:
        first.train_step()
        if first.step == 3:
            first.judge()
    resumed = make(name, seed=7, recorder=kept, generations=6)
    resumed.seed = 0
    resumed.load_state_dict(first.state_dict())
    resumed.fit()
    assert kept.rows == [row for row in whole.rows if row[0] > 4]
    assert torch.equal(resumed.strategy.best, unbroken.strategy.best)
    assert torch.equal(resumed.generator.get_state(), unbroken.generator.get_state())


def test_everything_is_reported():
    kept = Keep()
    agent = make("trust", recorder=kept, generations=6)
    last = agent.fit()
    assert {f"validation/trials {trials}/avoidable_misses" for trials in (6, 9)} <= set(last)
    train = [values for _, values in kept.rows if "train/fitness_best" in values]
    assert {"train/best_reward", "train/best_avoidable_misses", "train/trust_median"} <= set(train[0])
    assert kept.states[0][0] == "best"
    assert {name for name, *_ in kept.episodes} == {"trials 6", "trials 9"}


def test_evaluation_does_not_depend_on_how_many_are_played_at_once():
    task = world(test_trials=[])
    circuit = circuit_for(task)
    values = evaluate(task, circuit, sequences=5, batch_size=5, seed=3)
    assert values == evaluate(task, circuit, sequences=5, batch_size=5, seed=3)
    halves = [task.play(carrying(circuit), count, generator) for generator in [torch.Generator().manual_seed(3)]
              for count in (3, 2)]  # fmt: skip
    mean = float(torch.cat([half.returns for half in halves], 1).double().mean())
    assert evaluate(task, circuit, sequences=5, batch_size=3, seed=3)["reward"] == pytest.approx(mean)


def test_an_episode_is_shown_with_its_trace():
    task, kept = world(), Keep()
    circuit = circuit_for(task)
    show_episodes(task, circuit, kept, 0, "test", seed=2)
    name, batch, outputs, trace = kept.episodes[0]
    alone = task.play(carrying(circuit), 1, torch.Generator().manual_seed(stream_seed(2, "test")))
    steps = int(alone.lengths)
    assert name == "trials 6"
    assert batch.inputs.shape == (steps, 1, 4) and outputs.shape == (steps, 1, 3)
    assert trace.read_weights.shape == (steps, 1, 1, 4)
    assert "usage" not in trace
    torch.testing.assert_close(batch.targets.sum().double(), alone.returns.sum())
    assert not batch.mask.any()
    torch.testing.assert_close(circuit(batch.inputs)[0], outputs)


class Cue(World):
    """Shows one of two cues, then nothing; the reward is for choosing the cue at the second step: memory is needed."""

    error_metric = "wrong"

    def setup(self):
        self.input_size, self.output_size = 2, 2

    def reset(self, episodes, generator, *, copies=1):
        check_episodes(episodes, copies)
        self.cue = torch.randint(2, (episodes,), generator=generator).repeat(copies)
        self.steps, self.wrong = 0, torch.zeros(len(self.cue))
        return torch.nn.functional.one_hot(self.cue, 2).float(), {"wrong": self.wrong}

    def step(self, actions):
        self.steps += 1
        over = torch.full_like(self.cue, self.steps >= 2, dtype=torch.bool)
        right = over & (actions == self.cue)
        self.wrong = (over & ~right).float()
        return Step(torch.zeros(len(self.cue), 2), right.float(), over, torch.zeros_like(over), {"wrong": self.wrong})


def test_learns_what_needs_memory():
    agent = make(
        {"type": "openai-es", "population": 64, "sigma": 0.3, "lr": 0.2, "weight_decay": 0.0},
        task=Cue(), batch_size=8, generations=100, evaluate_every=10, target_error=0.0, evaluation_sequences=32,
    )  # fmt: skip
    agent.fit()
    assert agent.target_reached


class Poisoned(TMazeWorld):
    """Whoever crashes gets a reward that is not a number."""

    def step(self, actions: Tensor):
        step = super().step(actions)
        return step._replace(rewards=step.rewards.masked_fill(step.rewards < 0, math.nan))


def test_rewards_that_are_not_finite_count_as_the_worst_and_are_reported():
    kept = Keep()
    task = Poisoned(trials=3, min_stay=2, max_stay=3, test_trials=[])
    agent = make({"type": "snes", "population": 30, "sigma": 1.0}, task=task, recorder=kept, generations=3)
    agent.fit()
    assert agent.strategy.bad_fitness > 0
    assert sum("was not finite" in text for text in kept.messages) == 1


def test_a_fitness_for_batches_is_refused():
    with pytest.raises(ValueError, match=r"agent\.fitness: got 'loss'; .* allowed is null"):
        make(fitness={"type": "loss"})


def test_a_member_whose_answers_are_no_numbers_earns_none() -> None:
    torch.manual_seed(0)
    world = TMazeWorld()
    circuit = FeedForwardCircuit(world.input_size, world.output_size)
    population = Population(circuit)
    stacks = {name: part.detach().expand(4, *part.shape).clone() for name, part in circuit.named_parameters()}
    expected = population.play(stacks, world, 3, seed=1).returns
    next(iter(stacks.values()))[2] = math.nan
    returns = population.play(stacks, world, 3, seed=1).returns
    assert returns[2].isnan().all()
    assert torch.equal(returns[[0, 1, 3]], expected[[0, 1, 3]])


class Drift(World):
    """A point in the plane that is driven outwards, which multiplies every rounding; ends where it leaves a circle."""

    error_metric = "far"
    droppable = True

    def setup(self):
        self.input_size, self.output_size = 2, 2
        self.stepped = 0

    def reset(self, episodes, generator, *, copies=1):
        check_episodes(episodes, copies)
        self.state = Place(torch.randn(episodes, 2, generator=generator).repeat(copies, 1) / 4)
        return self.state.at, self._info()

    def _info(self):
        return {"far": self.state.at.norm(dim=1)}

    def decide(self, outputs):
        return outputs

    def step(self, actions):
        before = self.state.at
        over = before.norm(dim=1) > 1
        at = torch.where(over.unsqueeze(1), before, 1.2 * before + 0.1 * actions.tanh())
        self.stepped += len(at)
        self.state = Place(at)
        ended = at.norm(dim=1) > 1
        return Step(at * ~ended.unsqueeze(1), at.sum(1).double() * ~over, ended, torch.zeros_like(ended), self._info())

    @property
    def renewable(self):
        return self.droppable


class Place(NamedTuple):
    at: Tensor


@pytest.mark.parametrize("kind", ["feedforward", "gru"])
def test_members_that_are_done_are_dropped_and_nothing_changes_for_the_others(kind):
    whole, dropping = Drift(), Drift()
    whole.droppable = False
    circuit = circuit_for(whole, kind)
    population = Population(circuit)
    stacks = population.layout.split(torch.randn(40, population.layout.size))
    seen = [[], []]
    expected, found = (
        population.play(stacks, task, 2, seed=3, seen=parts.append)
        for task, parts in zip((whole, dropping), seen, strict=True)
    )
    assert torch.equal(expected.returns, found.returns) and torch.equal(expected.lengths, found.lengths)
    assert torch.equal(expected.info["far"], found.info["far"])
    assert dropping.stepped < 0.8 * whole.stepped
    assert [len(part) for part in seen[0]] == [len(part) for part in seen[1]]
    assert sum(map(len, seen[0])) == int(expected.lengths.sum())


def test_statistics_of_observations_are_those_of_all_that_was_seen_and_go_with_the_circuit():
    task = world()
    circuit = NormalisedCircuit(task.input_size, task.output_size, circuit="feedforward")
    agent = EvolutionAgent(task, circuit, strategy={"type": "ars", "population": 8}, **{**SMALL, "generations": 3})
    seen = []
    drawn = agent.scoring.draw(3, torch.Generator().manual_seed(0))
    agent.population.play(agent.strategy.ask_stacks(), task, *drawn, seen=seen.append)
    agent.scoring.draw = lambda count, generator: drawn
    agent.train_step()
    rows = torch.cat(seen).double()
    assert int(circuit.count) == len(rows)
    torch.testing.assert_close(circuit.mean.double(), rows.mean(0))
    torch.testing.assert_close(circuit.variance.double(), rows.var(0))
    torch.testing.assert_close(circuit(rows.float().unsqueeze(0))[0], circuit.circuit(
        ((rows - rows.mean(0)) / rows.std(0)).nan_to_num().float().unsqueeze(0))[0], atol=1e-5, rtol=1e-4)  # fmt: skip
    state = agent.state_dict()
    assert {"count", "mean", "variance"} <= state["circuit"].keys()
    agent.train_step()
    again = EvolutionAgent(
        task, NormalisedCircuit(task.input_size, task.output_size, circuit="feedforward"),
        strategy={"type": "ars", "population": 8}, **{**SMALL, "generations": 3},
    )  # fmt: skip
    again.load_state_dict(state)
    again.scoring.draw = agent.scoring.draw
    again.train_step()
    assert torch.equal(again.circuit.mean, agent.circuit.mean) and torch.equal(again.strategy.best, agent.strategy.best)


def test_statistics_do_not_depend_on_shards_but_for_rounding():
    found = []
    for shards in (1, 3):
        task = world()
        circuit = NormalisedCircuit(task.input_size, task.output_size, circuit="feedforward")
        torch.manual_seed(0)
        circuit.reset_parameters()
        agent = EvolutionAgent(task, circuit, strategy={"type": "ars", "population": 8}, shards=shards, **SMALL)
        agent.train_step()
        found.append((int(circuit.count), circuit.mean, circuit.variance))
    assert found[0][0] == found[1][0] > 0
    torch.testing.assert_close(found[0][1:], found[1][1:])


def normalised(task, known=None, **values) -> EvolutionAgent:
    torch.manual_seed(1)
    circuit = NormalisedCircuit(task.input_size, task.output_size, circuit="feedforward")
    circuit.load_state_dict(known or circuit.state_dict())
    return EvolutionAgent(task, circuit, **{**SMALL, "strategy": {"type": "ars", "population": 8}, **values})


def test_statistics_are_of_the_generation_that_was_seen_not_of_the_size_of_the_next(monkeypatch):
    found = []
    for population in (12, 4):
        agent = normalised(world(), shards=3, strategy={"type": "sep-cma-es", "population": 12, "restarts": "bipop"})
        strategy = agent.strategy
        monkeypatch.setattr(
            strategy, "update", lambda *_, own=strategy, size=population: own._begin(own.mean, own.sigma, size)
        )
        agent.train_step()
        assert strategy.population == population
        found.append(agent.circuit.state_dict())
    assert found[0]["count"] > 0
    assert same(*found)


def test_another_try_knows_of_observations_what_the_first_one_did():
    seasoned = normalised(world())
    seasoned.train_step()
    known = seasoned.circuit.state_dict()
    tries = normalised(world(), known, retry_every=2, target_error=0.0)
    resumed = normalised(world(), retry_every=2, target_error=0.0)
    before = []
    learn = tries.circuit.learn
    tries.circuit.learn = lambda seen: (before.append(int(tries.circuit.count)), learn(seen))
    for _ in range(2):
        tries.train_step()
    resumed.load_state_dict(tries.state_dict())
    for agent in (tries, resumed):
        agent.train_step()
    assert before[1] > before[0] == before[2] == known["count"] > 0
    assert same(resumed.state_dict(), tries.state_dict())
    older = tries.state_dict()
    del older["first_statistics"]  # a checkpoint of before
    resumed.load_state_dict(older)
    assert same(resumed.state_dict(), tries.state_dict())


def test_what_was_seen_in_a_generation_that_failed_is_not_learned():
    unbroken, failing = (normalised(Failing(trials=6, min_stay=2, max_stay=3), shards=2) for _ in range(2))
    failing.env.begun, failing.env.fails_at = 0, 2  # the second shard
    with pytest.raises(WorldError):
        failing.train_step()
    generator = unbroken.generator.get_state()
    failing.generator.set_state(generator)
    for agent in (unbroken, failing):
        agent.train_step()
    assert failing.circuit.count > 0
    assert same(failing.state_dict(), unbroken.state_dict())


def test_a_normalised_circuit_needs_a_world():
    env = papertape.envs.CopyEnv()
    with pytest.raises(ValueError, match="circuit.type: got normalised, whose inputs are the observations of a world"):
        BackpropAgent(env, NormalisedCircuit(env.input_size, env.output_size))


class Failing(TMazeWorld):
    """Fails when it is begun for the n-th time."""

    begun, fails_at = 0, 0

    def reset(self, *arguments, **options):
        self.begun += 1
        if self.begun == self.fails_at:
            raise WorldError("it is gone")
        return super().reset(*arguments, **options)


@pytest.mark.parametrize("strategy", ["openai-es", {"type": "deep-ga", "population": 8, "elite_candidates": 3}])
@pytest.mark.parametrize("at", range(1, 9))
def test_a_generation_in_which_the_world_fails_is_not_taken(strategy, at):
    """Wherever in it: while members play, while the best are judged again, or for the metrics. So is a validation."""
    options = {"trials": 6, "min_stay": 2, "max_stay": 3, "test_trials": []}
    settings = {"generations": 4, "log_every": 1, "evaluate_every": 2}
    unbroken = make(strategy, task=Failing(**options), **settings)
    unbroken.fit()
    kept, task = Keep(), Failing(**options)
    kept.wants_episodes = False
    failing = make(strategy, task=task, recorder=kept, **settings)
    task.begun, task.fails_at = 0, at
    with pytest.raises(TrainingError, match=r"generation (\d): (validation: )?it is gone; saved as of generation (\d)"):
        failing.fit()
    resumed = make(strategy, task=Failing(**options), **settings)
    resumed.load_state_dict(kept.states[-1][1])
    resumed.fit()
    assert same(resumed.state_dict(), unbroken.state_dict())


class Unseen(TMazeWorld):
    """Cannot be drawn."""

    def pictured(self):
        raise WorldError("no screen")


def test_a_world_that_cannot_be_drawn_changes_nothing():
    options = {"trials": 6, "min_stay": 2, "max_stay": 3, "test_trials": []}
    watched, alone = Keep(), Keep()
    alone.wants_episodes = False
    states = []
    for kept in (watched, alone):
        agent = make("openai-es", task=Unseen(**options), recorder=kept, generations=4, evaluate_every=2)
        agent.fit()
        states.append(agent.state_dict())
    assert same(*states) and watched.rows == alone.rows
    assert watched.messages == ["generation 2: there is no picture of an episode: no screen"] and not watched.episodes


class Odd(TMazeWorld):
    """Has pictures that change in the third step of an episode."""

    frames: ClassVar = {
        "raises": lambda: [][7],
        "numpy": lambda: np.zeros((4, 5, 3), np.uint8),
        "floats": lambda: torch.rand(4, 5, 3),
        "grey": lambda: torch.zeros(4, 5, dtype=torch.uint8),
        "grows": lambda: torch.zeros(5, 5, 3, dtype=torch.uint8),
        "nothing": lambda: torch.zeros(0, 0, 3, dtype=torch.uint8),
        "none": lambda: None,
    }
    how = "none"

    def reset(self, *arguments, **options):
        self.steps = 0
        return super().reset(*arguments, **options)

    def step(self, actions):
        self.steps += 1
        return super().step(actions)

    def picture(self):
        return self.frames[self.how]() if self.steps == 2 else torch.full((4, 5, 3), self.steps, dtype=torch.uint8)


@pytest.mark.parametrize("how", Odd.frames)
def test_no_picture_is_worth_the_end_of_a_run(how, monkeypatch):
    monkeypatch.setattr(Odd, "how", how)
    monkeypatch.setattr(Odd, "check", lambda self: None)
    kept, task = Keep(), Odd(trials=6, min_stay=2, max_stay=3, test_trials=[])
    agent = make("openai-es", task=task, recorder=kept, generations=4, evaluate_every=2)
    agent.fit()
    agent.test()
    assert [name for name, _ in kept.states if name == "best"] and len(kept.episodes) == 3
    if how == "none":
        shown = kept.episodes[0][-1]["world"][:, 0, 0, 0, 0].tolist()
        assert not kept.messages and shown == [0, 1, 1, *range(3, len(shown))]
        return
    (said,) = kept.messages
    assert said.startswith("generation 2: there are no pictures of the world: ") and "\n" not in said
    expected = " env: IndexError: list index out of range" if how == "raises" else "; expected "
    assert expected in said and all("world" not in trace for *_, trace in kept.episodes)


class Whole(TMazeWorld):
    """Shows the same numbers in another type."""

    dtype = torch.float64

    def observe(self, situation):
        return super().observe(situation).to(self.dtype)

    def metrics(self, episodes):
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in super().metrics(episodes).items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.long])
def test_observations_and_metrics_may_be_of_any_type(dtype, monkeypatch):
    monkeypatch.setattr(Whole, "dtype", dtype)
    results = []
    for task in (world(), Whole(trials=6, min_stay=2, max_stay=3, test_trials=[9])):
        kept = Keep()
        agent = make("openai-es", task=task, recorder=kept, kind="dnc", generations=3, log_every=1)
        agent.fit()
        agent.test()
        ppo = PPOAgent(
            ActorCritic(task), circuit_for(ActorCritic(task)), updates=1, rollout_steps=4, minibatches=1, **SMALL
        )
        ppo.fit()
        rows = [values for _, values in kept.rows]
        assert all(type(value) in (int, float) for values in rows for value in values.values())
        results.append((rows, agent.state_dict(), ppo.state_dict(), [episode[1:3] for episode in kept.episodes]))
    assert same(*results)


@pytest.mark.parametrize("kind", ["lstm", "gru", "transformer", "normalised", "ntm"])
def test_populations_act_in_float64_as_well(kind):
    options = {
        "lstm": {"hidden_size": 4},
        "gru": {"hidden_size": 4},
        "transformer": {"model_size": 8, "accessor": {"type": "attention", "memory_size": 8, "num_heads": 2}},
        "normalised": {"circuit": {"type": "lstm", "hidden_size": 4}},
        "ntm": {"memory_size": 4, "word_size": 3, "read_feedback": False},
    }
    task = world()
    circuit = lookup("circuit", kind)(task.input_size, task.output_size, **options[kind]).double()
    agent = EvolutionAgent(task, circuit, strategy={"type": "snes", "population": 6}, generations=1, **SMALL)
    agent.fit()
    assert agent.step == 1
