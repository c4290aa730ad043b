"""Evolution in worlds: members act as they would on their own, and everything that holds for batches holds here."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import papertape
from papertape.agents import EvolutionAgent
from papertape.agents.evaluation import evaluate, show_episodes
from papertape.agents.population import Population
from papertape.circuits import FeedForwardCircuit
from papertape.core.recorder import Recorder
from papertape.core.streams import stream_seed
from papertape.core.world import Step, World, carrying, check_episodes
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
