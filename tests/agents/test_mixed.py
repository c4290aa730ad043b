"""The mixed agent: members learn together as each would alone, and inherit as the options say."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import papertape
from papertape.agents import EvolutionAgent, MixedAgent
from papertape.agents.genome import Layout
from papertape.agents.optimisers import SGD
from papertape.circuits import FeedForwardCircuit, NeatCircuit
from papertape.core.recorder import Recorder
from papertape.core.registry import entries
from papertape.envs import CopyEnv, SlowlyChangingEnv

SMALL = {"batch_size": 4, "log_every": 2, "evaluate_every": 3, "save_every": 4, "evaluation_sequences": 5}
TIMED = "train/sequences_per_second"


class Keep(Recorder):
    def __init__(self):
        self.rows, self.states = [], []

    def metrics(self, step, values):
        self.rows.append((step, {name: value for name, value in values.items() if name != TIMED}))

    def checkpoint(self, name, state):
        self.states.append((name, state))


def make(*, seed=0, recorder=None, kind="ntm", env=None, dtype=torch.float64, **values) -> MixedAgent:
    env = env or CopyEnv(width=2, max_length=2, test_lengths=[3])
    torch.manual_seed(1)
    sizes = {"hidden_size": 4, "memory_size": 4, "word_size": 3}
    if kind == "ntm":
        circuit = papertape.NTM(env.input_size, env.output_size, controller="gru", **sizes)
    else:
        circuit = FeedForwardCircuit(env.input_size, env.output_size, hidden_sizes=[4])
    block = {"type": "trust", "population": 6, "mutation_scale": 0.3}
    options = {**SMALL, "strategy": block, "lr": 0.03, **values}
    return MixedAgent(env, circuit.to(dtype), **options, seed=seed, recorder=recorder)


def alone(agent, genome, lessons):
    """What one member learns from the lessons by itself, by torch.optim on its own circuit."""
    circuit = copy.deepcopy(agent.circuit)
    layout = Layout.of(circuit)
    layout.write(genome, circuit)
    made = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[agent.options.optimiser.type]
    optimiser = made(circuit.parameters(), agent.lr)
    for batch in lessons:
        optimiser.zero_grad()
        agent.env.loss(circuit(batch.inputs)[0], batch).backward()
        if agent.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(circuit.parameters(), agent.clip_norm)
        optimiser.step()
    return layout.read(circuit)


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize(("kind", "clip_norm"), [("ntm", 0.05), ("feedforward", None)])
@pytest.mark.parametrize("memory_budget", [512.0, 1e-6])
def test_members_learn_together_as_each_does_alone(optimiser, kind, clip_norm, memory_budget):
    agent = make(
        kind=kind, optimiser=optimiser, clip_norm=clip_norm, memory_budget=memory_budget, gradient_steps=3,
        dtype=torch.float32,
    )  # fmt: skip
    agent.prepare()
    genomes = agent.strategy.ask().clone()
    learned = agent.population.layout.join(agent.learn(agent.strategy.ask_stacks())[0])
    assert learned.shape == genomes.shape and not torch.equal(learned, genomes)
    for before, after in zip(genomes, learned, strict=True):
        torch.testing.assert_close(alone(agent, before, agent._lessons), after, rtol=2e-4, atol=2e-5)
    assert torch.equal(agent.strategy.ask(), genomes), "what is learned goes nowhere by itself"


def test_lamarckian_weights_go_back():
    agent = make(dtype=torch.float32)
    before = agent.strategy.ask().clone()
    agent.prepare()
    agent.prepare = lambda: None  # the lessons stay the same
    expected = torch.stack([alone(agent, genome, agent._lessons) for genome in before])
    agent.train_step()
    best = agent.population.layout.read(agent.circuit)
    assert torch.equal(best, agent.strategy.best)
    nearest = (expected - best).abs().amax(1).min()
    assert nearest < 1e-4 and not (before == best).all(1).any()


def test_baldwinian_weights_do_not_go_back_but_count():
    agent = make(inheritance="baldwinian", dtype=torch.float32, strategy={"type": "snes", "population": 6})
    agent.prepare()
    agent.prepare = lambda: None
    before, told = agent.strategy.ask().clone(), []
    tell = agent.strategy.tell
    agent.strategy.tell = lambda fitness: told.append((agent.strategy.ask().clone(), fitness)) or tell(fitness)
    state = agent.generator.get_state()
    agent.train_step()
    drawn = agent.scoring.draw(4, torch.Generator().set_state(state))
    assert torch.equal(told[0][0], before), "the strategy has its own members"
    learned = torch.stack([alone(agent, genome, agent._lessons) for genome in before])
    fitness = agent.score(agent.population.layout.split(learned), drawn).sum(1)
    torch.testing.assert_close(told[0][1], fitness, rtol=1e-3, atol=1e-3)
    carried = agent.population.layout.read(agent.circuit)
    torch.testing.assert_close(carried, alone(agent, agent.strategy.best, agent._lessons), rtol=2e-4, atol=2e-5)


def test_candidates_are_judged_again_by_what_they_have_learned():
    block = {"type": "deep-ga", "population": 6, "truncation": 3, "elite_candidates": 4, "elite_sequences": 5}
    agent = make(inheritance="baldwinian", gradient_steps=3, strategy=block, dtype=torch.float32)
    told, drawn, confirm, draw = [], [], agent.strategy.confirm, agent.scoring.draw
    agent.strategy.confirm = lambda fitness: told.append((agent.strategy.candidates(), fitness)) or confirm(fitness)
    agent.scoring.draw = lambda count, generator: drawn.append(draw(count, generator)) or drawn[-1]
    agent.train_step()
    candidates, fitness = told[0]
    learned = torch.stack([alone(agent, genome, agent._lessons) for genome in candidates])
    expected = agent.score(agent.population.layout.split(learned), drawn[1]).sum(1)
    torch.testing.assert_close(fitness, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(agent.strategy.best, candidates[expected.argmax()])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"inheritance": "baldwinian", "strategy": {"type": "openai-es", "population": 6}},
        {
            "inheritance": "baldwinian",
            "every": 2,
            "strategy": {"type": "deep-ga", "population": 6, "truncation": 3, "elite_candidates": 2, "sigma": 0.1},
        },
    ],
)
def test_resumed_equals_unbroken(settings):
    whole = Keep()
    unbroken = make(recorder=whole, generations=6, dtype=torch.float32, **settings)
    unbroken.fit()
    first, kept = make(generations=6, dtype=torch.float32, **settings), Keep()
    while first.step < 4:
        first.train_step()
        if first.step == 3:
            first.judge()
    resumed = make(seed=7, recorder=kept, generations=6, dtype=torch.float32, **settings)
    resumed.seed = 0
    resumed.load_state_dict(first.state_dict())
    resumed.fit()
    assert kept.rows == [row for row in whole.rows if row[0] > 4]
    assert torch.equal(resumed.strategy.best, unbroken.strategy.best)
    weights = (agent.population.layout.read(agent.circuit) for agent in (resumed, unbroken))
    assert torch.equal(*weights)


class Poisoned(CopyEnv):
    """Members whose first output is positive everywhere have no loss."""

    def losses(self, outputs, batch):
        bad = (outputs[..., 0] > 0).all()
        return super().losses(outputs, batch) * torch.where(bad, math.nan, 1.0)


def test_a_member_whose_gradient_is_not_finite_stays_as_it_is():
    env = Poisoned(width=2, max_length=2, test_lengths=[])
    agent = make(env=env, kind="feedforward", gradient_steps=2, dtype=torch.float32)
    agent.prepare()
    genomes = agent.strategy.ask()
    stacks = agent.strategy.ask_stacks()
    stacks["layers.1.bias"][:] = -1.0
    stacks["layers.1.bias"][2] = 50.0  # positive outputs everywhere
    genomes = genomes.clone()
    found, bad = agent.learn(stacks)
    learned = agent.population.layout.join(found)
    moved = (learned != genomes).any(1)
    assert moved.tolist() == [True, True, False, True, True, True]
    assert bad.tolist() == [0, 0, 2, 0, 0, 0]
    assert learned.isfinite().all()


@pytest.mark.parametrize("inheritance", ["lamarckian", "baldwinian"])
def test_updates_that_were_skipped_are_counted_once(inheritance):
    env = Poisoned(width=2, max_length=2, test_lengths=[])
    agent = make(env=env, kind="feedforward", gradient_steps=2, dtype=torch.float32, inheritance=inheritance)
    agent.strategy.genomes[:, -2] = 50.0  # the bias of the first output: no member has a loss
    assert agent.train_step()["bad_gradients"] == agent.bad_gradients == 12


def test_a_member_that_grows_beyond_all_numbers_stays_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make()
    before, learn, taken = agent.strategy.ask().clone(), agent.learn, []

    def grow(stacks: Any, number: int = 0) -> Any:
        learned, bad = learn(stacks, number)
        return {name: stack.index_fill(0, torch.tensor([2]), math.inf) for name, stack in learned.items()}, bad

    monkeypatch.setattr(agent, "learn", grow)
    monkeypatch.setattr(agent.strategy, "exchange", taken.append)
    agent.train_step()
    (genomes,) = taken
    assert torch.equal(genomes[2], before[2])
    assert all(not torch.equal(genomes[member], before[member]) for member in (0, 1, 3, 4, 5))


@pytest.mark.parametrize("strategy", [name for name, kind in entries("strategy").items() if kind.holds_members])
@pytest.mark.parametrize("kind", ["neat", "ntm"])
def test_what_is_learned_is_handed_on_for_several_generations(strategy, kind):
    env = CopyEnv(width=2, max_length=2, test_lengths=[])
    torch.manual_seed(1)
    if kind == "neat":
        circuit: Any = NeatCircuit(env.input_size, env.output_size)
    else:
        controller: Any = "neat" if strategy == "neat" else {"type": "lstm", "hidden_size": 4}
        circuit = papertape.NTM(env.input_size, env.output_size, controller=controller, memory_size=4, word_size=3)
    agent = MixedAgent(env, circuit, **SMALL, strategy={"type": strategy, "population": 6}, lr=0.03, seed=0)
    for _ in range(3):
        values = agent.train_step()
        assert agent.strategy.ask().dtype is torch.float32
    assert math.isfinite(values["fitness_best"])


def test_learns_faster_than_by_mutation_alone():
    env = CopyEnv(width=2, max_length=1, test_lengths=[])
    agent = make(env=env, dtype=torch.float32, batch_size=16, generations=60, evaluate_every=10, target_error=0.0)
    agent.fit()
    assert agent.target_reached


def test_a_parameter_may_have_no_elements_or_no_axes():
    class Odd(torch.nn.Linear):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self.none, self.one = torch.nn.Parameter(torch.zeros(0, 3)), torch.nn.Parameter(torch.ones(()))

        def forward(self, inputs):
            return self.one * super().forward(inputs) + self.none.sum()

    env = CopyEnv(width=2, max_length=2, test_lengths=[3])
    strategy = {"type": "trust", "population": 6}
    agent = MixedAgent(env, Odd(env.input_size, env.output_size), **SMALL, strategy=strategy, generations=2)
    agent.fit()
    assert agent.bad_gradients == 0


def test_a_module_whose_members_would_share_what_they_learn_of_their_inputs_is_refused():
    class Normalised(torch.nn.Module):
        def __init__(self, size, answers):
            super().__init__()
            self.norm, self.layer = torch.nn.BatchNorm1d(size), torch.nn.Linear(size, answers)

        def forward(self, inputs):
            return self.layer(self.norm(inputs.flatten(0, 1))).unflatten(0, inputs.shape[:2])

    env = CopyEnv(width=2, max_length=2, test_lengths=[3])
    module, strategy = Normalised(env.input_size, env.output_size), {"type": "trust", "population": 6}
    EvolutionAgent(env, module, **SMALL, strategy=strategy)  # judges members, but trains none of them
    with pytest.raises(ValueError, match=r"^circuit: BatchNorm1d writes .* its buffer module\.norm\.running_mean,"):
        MixedAgent(env, module, **SMALL, strategy=strategy)


def test_strategies_without_members_inherit_nothing():
    message = r"strategy\.type: got 'openai-es'.*allowed with .*: neat, trust \(baldwinian"
    with pytest.raises(ValueError, match=message):
        make(strategy={"type": "openai-es"})
    assert make(strategy={"type": "openai-es"}, inheritance="baldwinian").gradient_steps == 4


def dropping(seed=0, **values) -> MixedAgent:
    env = CopyEnv(width=2, max_length=2, test_lengths=[3])
    torch.manual_seed(1)
    sizes = {"hidden_size": 4, "num_layers": 2, "memory_size": 4, "word_size": 3}
    circuit = papertape.NTM(env.input_size, env.output_size, controller="gru", dropout=0.5, **sizes)
    block = {"type": "trust", "population": 6, "mutation_scale": 0.3}
    return MixedAgent(env, circuit, **{**SMALL, "strategy": block, "generations": 4, **values}, seed=seed)


@pytest.mark.parametrize("inheritance", ["lamarckian", "baldwinian"])
def test_dropout_follows_from_the_seed_and_is_resumed(inheritance):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    unbroken = dropping(inheritance=inheritance)
    torch.set_rng_state(state)
    unbroken.fit()
    assert torch.equal(torch.get_rng_state(), state)
    first, second = dropping(inheritance=inheritance), dropping(inheritance=inheritance)
    torch.rand(9)
    first.train_step(), first.train_step()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    torch.rand(5)
    second.fit()
    assert torch.equal(second.strategy.ask(), unbroken.strategy.ask())
    assert torch.equal(second.population.layout.read(second.circuit), unbroken.population.layout.read(unbroken.circuit))


def test_members_learn_with_dropout_of_their_own_and_are_judged_without():
    agent = dropping()
    agent.prepare()
    stacks = agent.strategy.ask_stacks()
    equal = {name: stack[:1].expand_as(stack).clone() for name, stack in stacks.items()}
    agent.circuit.eval()
    learned = agent.population.layout.join(agent.learn(equal)[0])
    assert len(learned.unique(dim=0)) == 6
    assert not agent.circuit.training
    drawn = agent.scoring.draw(4, torch.Generator().manual_seed(0))
    assert torch.equal(agent.score(stacks, drawn), agent.score(stacks, drawn))


@pytest.mark.parametrize("optimiser", ["rmsprop", {"type": "graves-rmsprop", "momentum": 0.5}])
def test_any_optimiser_that_works_element_by_element(optimiser):
    agent = make(optimiser=optimiser, kind="feedforward", clip_norm=None, gradient_steps=3)
    agent.prepare()
    genomes = agent.strategy.ask().clone()
    learned = agent.population.layout.join(agent.learn(agent.strategy.ask_stacks())[0])
    for genome, found in zip(genomes, learned, strict=True):
        circuit = copy.deepcopy(agent.circuit)
        agent.population.layout.write(genome, circuit)
        made = agent.optimiser.make(circuit.parameters(), agent.lr)
        for batch in agent._lessons:
            made.zero_grad()
            agent.env.loss(circuit(batch.inputs)[0], batch).backward()
            made.step()
        torch.testing.assert_close(found, agent.population.layout.read(circuit))


class Whole(SGD):
    """Updates that depend on the gradients of all elements together."""

    elementwise = False


def test_an_optimiser_that_mixes_members_is_refused():
    with pytest.raises(ValueError, match="does not update each element on its own.*allowed: adam, "):
        make(optimiser=Whole())


def test_answers_are_those_of_the_trial_and_of_the_generations_that_learn():
    agent = make(every=2, gradient_steps=3)
    for _ in range(5):
        agent.train_step()
    assert agent.answered == 6 * 4 * (5 + 3 * 3)


def test_answers_of_second_looks_and_of_what_the_best_learns_count():
    block = {"type": "deep-ga", "population": 6, "truncation": 3, "elite_candidates": 4, "elite_sequences": 5}
    agent = make(inheritance="baldwinian", every=2, gradient_steps=3, strategy=block)
    agent.train_step()
    learning = 6 * (4 + 3 * 4) + 4 * (5 + 3 * 4) + 3 * 4
    assert agent.answered == learning
    agent.train_step()
    assert agent.answered == learning + 6 * 4 + 4 * 5


def test_a_stream_moves_on_by_what_was_learned_from_and_what_decided():
    env = SlowlyChangingEnv(every=1000)
    agent = make(env=env, kind="feedforward", every=2, gradient_steps=3)
    agent.train_step()
    assert env.seen == 4 + 3 * 4
    agent.train_step()
    assert env.seen == 2 * 4 + 3 * 4


def test_a_module_may_make_a_buffer_with_its_first_answer() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(env.input_size, env.output_size)
            self.register_buffer("cached", None, persistent=False)

        def forward(self, inputs: Tensor) -> Tensor:
            if self.training and self.cached is None:
                self.cached = inputs.new_ones(1)
            return self.linear(inputs)

    env = CopyEnv(width=2, max_length=1, test_lengths=[2])
    module = Cached()
    MixedAgent(env, module, generations=1)
    assert module.cached is None
