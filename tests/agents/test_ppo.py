"""The PPO agent: what it learns from is what happened, what it descends is the loss, and runs go on as if unbroken."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from pydantic import Field
from states import same
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Normal

import papertape
from papertape.agents import PPOAgent
from papertape.agents.actor_critic import ActorCritic
from papertape.agents.learning import TrainingError
from papertape.agents.policy import Policy
from papertape.agents.ppo import Targets, advantages
from papertape.agents.rollout import pieces_of, run_again
from papertape.circuits import FeedForwardCircuit, MemoryCircuit
from papertape.circuits.normalised import NormalisedCircuit
from papertape.core.distributed import Processes
from papertape.core.recorder import Recorder
from papertape.core.registry import lookup
from papertape.core.state import register_state
from papertape.core.world import ActionKind, ActionPart, Step, World, WorldError, check_episodes
from papertape.envs import CopyEnv, CuedTMazeWorld, GymWorld, TMazeWorld
from papertape.main import main

SIZES = {"hidden_size": 5, "memory_size": 6, "word_size": 3}
NTM = {"controller": {"type": "gru", "hidden_size": 5}, "memory_size": 6, "word_size": 3}
CIRCUITS: dict[str, Any] = {
    "feedforward": lambda *io: FeedForwardCircuit(*io, hidden_sizes=[5]),
    "module": lambda *io: nn.Sequential(nn.Linear(io[0], 5), nn.Tanh(), nn.Linear(5, io[1])),
    "ntm": lambda *io: papertape.NTM(*io, **SIZES),
    "ntm, learned memory, GRU": lambda *io: papertape.NTM(*io, controller="gru", memory_init="learned", **SIZES),
    "ntm, eager": lambda *io: papertape.NTM(*io, controller="feedforward", backend="eager", **SIZES),
    "dnc": lambda *io: papertape.DNC(*io, num_reads=2, usage_gradient=True, **SIZES),
    "lstm": lookup("circuit", "lstm"),
    "stack-rnn": lookup("circuit", "stack-rnn"),
    "sam": lambda *io: papertape.SAM(*io, num_reads=2, slots_per_read=2, **SIZES),
    "sdnc": lambda *io: papertape.SDNC(*io, num_reads=2, slots_per_read=2, links_per_slot=2, **SIZES),
    "normalised": lambda *io: NormalisedCircuit(*io, circuit={"type": "ntm", **NTM}),
    "memory": lambda *io: MemoryCircuit(*io, controller="lstm", accessor="dynamic", hidden_size=5),
}
SMALL: dict[str, Any] = {
    "batch_size": 6, "rollout_steps": 12, "epochs": 2, "minibatches": 3, "log_every": 2, "evaluate_every": 3,
    "save_every": 4, "evaluation_sequences": 4, "restart_every": 5,
}  # fmt: skip


class Place(NamedTuple):
    """Where an episode is."""

    steps: Tensor
    length: Tensor
    cue: Tensor


register_state(Place)


class Anything(World):
    """Episodes of any length that come to their end or are cut off; all kinds of actions, which change the rewards."""

    error_metric = "loss"

    def setup(self) -> None:
        self.input_size, self.output_size = 3, 6

    def action_parts(self) -> list[ActionPart]:
        return [ActionPart("categorical", 3), ActionPart("bernoulli", 2), ActionPart("normal", 1)]

    def decide(self, outputs: Tensor) -> Tensor:
        whole = [outputs[:, :3].argmax(-1, keepdim=True), outputs[:, 3:5] > 0]
        return torch.cat([*(part.double() for part in whole), torch.tanh(outputs[:, 5:]).double()], 1)

    def reset(self, episodes: int, generator: torch.Generator, *, copies: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
        check_episodes(episodes, copies)
        length = torch.randint(1, 11, (episodes,), generator=generator).repeat(copies)
        cue = torch.randn(episodes, 2, generator=generator).repeat(copies, 1)
        self.state = Place(torch.zeros_like(length), length, cue)
        return self._seen(), self._info()

    def step(self, actions: Tensor) -> Step:
        steps, length, cue = self.state
        running = steps < length
        self.state = Place(steps + running, length, cue)
        over = self.state.steps >= length
        even = length % 2 == 0
        rewards = (actions[:, 0] + cue[:, 0] * actions[:, 1] + actions[:, 3]) * running
        seen = self._seen() * (running & ~(over & even)).unsqueeze(1)
        return Step(seen, rewards, over & even, over & ~even, self._info())

    def _seen(self) -> Tensor:
        return torch.cat([self.state.cue, self.state.steps.unsqueeze(1) / 10], 1)

    def _info(self) -> dict[str, Tensor]:
        return {"loss": (10 - self.state.steps).double()}


class Keep(Recorder):
    """Keeps rows, messages, episodes and states."""

    wants_episodes = True

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.rows: list[Any] = []
        self.episodes: list[Any] = []
        self.states: dict[str, Any] = {}

    def message(self, text: str) -> None:
        self.messages.append(text)

    def metrics(self, step: int, values: Any) -> None:
        self.rows.append((step, {name: value for name, value in values.items() if "per_second" not in name}))

    def episode(self, step: int, name: str, batch: Any, outputs: Any, trace: Any) -> None:
        self.episodes.append((name, batch, outputs, trace))

    def checkpoint(self, name: str, state: Any) -> None:
        self.states[name] = state


def make(kind: str = "ntm", world: World | None = None, **values: Any) -> PPOAgent:
    values = {**SMALL, **values}
    options = PPOAgent.Options(**{name: value for name, value in values.items() if name not in ("seed", "recorder")})
    task = PPOAgent.task_of(options, world or Anything())
    torch.manual_seed(1)
    return PPOAgent(task, CIRCUITS[kind](task.input_size, task.output_size), **values)


def rollout_of(agent: PPOAgent, segment: int, seed: int = 5) -> Any:
    generator = torch.Generator().manual_seed(seed)
    if not agent.actors.begun:
        agent.actors.begin(generator)
    return agent.actors.act(agent.circuit, agent.rollout_steps, segment, generator)


def bigger(agent: PPOAgent) -> None:
    """Weights by which the circuit does something."""
    with torch.no_grad():
        for parameter in agent.circuit.parameters():
            parameter.mul_(2)


@pytest.mark.parametrize("kind", CIRCUITS)
@pytest.mark.parametrize("segment", [12, 4])
def test_whole_segments_give_what_acting_gave(kind: str, segment: int) -> None:
    agent = make(kind, previous_action=True, previous_reward=True)
    bigger(agent)
    rollout_of(agent, segment)
    rollout = rollout_of(agent, segment, seed=6)  # most states are carried into this one
    cells = torch.randperm(6 * 12 // segment)
    with torch.no_grad():
        outputs, positions = run_again(agent.circuit, rollout, segment, cells)
    assert sorted(positions.tolist()) == list(range(6 * 12))
    acted = rollout.outputs.flatten(0, 1)[positions]
    assert float(acted.std()) > 0.01
    torch.testing.assert_close(outputs, acted, rtol=0, atol=1e-5)
    targets = agent.targets(rollout)
    parts = agent.loss(outputs, rollout, targets, positions)
    change = agent.env.policy.log_probability(outputs[:, :-1], rollout.samples.flatten(0, 1)[positions])  # type: ignore[attr-defined]
    torch.testing.assert_close(change, targets.log_probabilities[positions], rtol=0, atol=1e-5)
    assert float(parts["divergence"].abs()) < 1e-9 and float(parts["clipped"]) == 0


@pytest.mark.parametrize("kind", ["feedforward", "ntm, learned memory, GRU", "dnc"])
def test_acting_is_a_run_from_the_initial_state_in_each_episode(kind: str) -> None:
    agent = make(kind, previous_action=True, previous_reward=True, rollout_steps=40, minibatches=2)
    bigger(agent)
    rollout = rollout_of(agent, 40)
    whole = 0
    for row in range(6):
        starts = [*rollout.first[:, row].nonzero().squeeze(1).tolist(), 40]
        assert starts[0] == 0
        for start, end in itertools.pairwise(starts):
            seen = rollout.observations[start:end, row : row + 1]
            assert not seen[0, 0, 3:].any()
            assert torch.equal(seen[1:, 0, 3:9], rollout.samples[start : end - 1, row])
            torch.testing.assert_close(seen[1:, 0, 9], rollout.rewards[start : end - 1, row])
            outputs, _ = agent.circuit(seen)
            torch.testing.assert_close(outputs[:, 0], rollout.outputs[start:end, row], rtol=0, atol=1e-5)
            assert not rollout.over[start : end - 1, row].any()
            if end < 40:
                whole += 1
                assert rollout.over[end - 1, row]
                assert bool(rollout.ended[end - 1, row]) == ((end - start) % 2 == 0)
    assert whole > 10
    assert len(rollout.finished) == int(rollout.over.sum())


def test_what_followed_an_episode_that_was_cut_off_is_judged_by_its_last_observation() -> None:
    agent = make("dnc", previous_action=True, previous_reward=True, rollout_steps=30, minibatches=2)
    bigger(agent)
    rollout = rollout_of(agent, 30)
    cut = rollout.over & ~rollout.ended
    assert cut.sum() > 5 and not rollout.after[:-1][~cut[:-1]].any()
    for time, row in cut.nonzero().tolist():
        start = max(rollout.first[: time + 1, row].nonzero().squeeze(1).tolist())
        seen = rollout.observations[start : time + 1, row : row + 1]
        last = seen[-1:].clone()
        last[..., 2] = (time + 1 - start) / 10
        last[0, 0, 3:9], last[0, 0, 9] = rollout.samples[time, row], rollout.rewards[time, row]
        value = agent.circuit(torch.cat([seen, last]))[0][-1, 0, -1]
        torch.testing.assert_close(value, rollout.after[time, row], rtol=0, atol=1e-5)


def test_advantages_are_those_of_a_slow_loop() -> None:
    generator = torch.Generator().manual_seed(2)
    rewards, values, after = torch.randn(3, 9, 5, generator=generator, dtype=torch.float64)
    over = torch.rand(9, 5, generator=generator) < 0.3
    found = advantages(rewards, values, after, over, 0.9, 0.8)
    for row in range(5):
        for time in range(9):
            expected, weight = 0.0, 1.0
            for later in range(time, 9):
                expected += weight * float(rewards[later, row] + 0.9 * after[later, row] - values[later, row])
                weight *= 0.9 * 0.8
                if over[later, row]:
                    break
            assert float(found[time, row]) == pytest.approx(expected)


@pytest.mark.parametrize("normalised", [False, True])
def test_an_end_has_no_value_after_it_and_a_cut_has(normalised: bool) -> None:
    agent = make(discount=0.5, trace_decay=0.0, normalise_values=normalised, normalise_advantages=False)
    rollout = rollout_of(agent, 12)
    agent.value_count, agent.value_mean, agent.value_squares = 4, 3.0, 16.0  # deviation 2
    outputs = rollout.outputs[..., -1]
    targets = agent.targets(rollout)
    mean, deviation = (3.0, 2.0) if normalised else (0.0, 1.0)
    wanted = []
    for time, row in itertools.product(range(12), range(6)):
        if rollout.ended[time, row]:
            after = 0.0
        elif rollout.over[time, row] or time == 11:
            after = mean + deviation * float(rollout.after[time, row])
        else:
            after = mean + deviation * float(outputs[time + 1, row])
        value = mean + deviation * float(outputs[time, row])
        wanted.append(float(rollout.rewards[time, row]) + 0.5 * after)
        assert float(targets.advantages[time * 6 + row]) == pytest.approx(wanted[-1] - value, abs=1e-5)
    returns = torch.tensor(wanted, dtype=torch.float64)
    if normalised:
        # Four targets of mean 3 and deviation 2 stand for those before.
        everything = torch.cat([torch.tensor([1.0, 1.0, 5.0, 5.0]).double(), returns])
        assert agent.value_count == 76
        assert agent.value_mean == pytest.approx(float(everything.mean()), abs=1e-5)
        assert agent.value_deviation == pytest.approx(float(everything.std(correction=0)), abs=1e-5)
        returns = (returns - everything.mean()) / everything.std(correction=0)
    torch.testing.assert_close(targets.values.double(), returns, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["ntm, learned memory, GRU", "dnc"])
@pytest.mark.parametrize("clip_change", [None, 0.05])
def test_the_gradient_is_that_of_finite_differences(kind: str, clip_change: float | None) -> None:
    agent = make(kind, clip_change=clip_change, clip_ratio=0.05, value_weight=0.7, entropy_weight=0.3)
    agent.circuit.double()
    bigger(agent)
    rollout_of(agent, 6)
    rollout = rollout_of(agent, 6, seed=9)
    targets = agent.targets(rollout)
    cells = torch.tensor([0, 3, 7, 8, 11])

    def loss() -> dict[str, Tensor]:
        return agent.loss(*_swapped(run_again(agent.circuit, rollout, 6, cells), rollout, targets))

    with torch.no_grad():  # so that some ratios are clipped, and values have moved
        for parameter in agent.circuit.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    parts = loss()
    assert 0.05 < float(parts["clipped"]) < 0.95
    parts["loss"].backward()
    for parameter in agent.circuit.parameters():
        assert parameter.grad is not None
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for index in {0, flat.numel() // 2, int(gradient.abs().argmax())}:
            before, step, sides = float(flat[index]), 1e-6, []
            for sign in (1, -1):
                flat[index] = before + sign * step
                with torch.no_grad():
                    sides.append(float(loss()["loss"]))
            flat[index] = before
            assert float(gradient[index]) == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-4, abs=1e-7)


def _swapped(run: tuple[Tensor, Tensor], rollout: Any, targets: Targets) -> tuple[Tensor, Any, Targets, Tensor]:
    return run[0], rollout, targets, run[1]


def test_the_loss_is_that_of_a_slow_loop() -> None:
    agent = make(clip_change=0.1, clip_ratio=0.1, value_weight=0.7, entropy_weight=0.3)
    rollout = rollout_of(agent, 12)
    targets = agent.targets(rollout)
    positions = torch.tensor([3, 50, 17, 71])
    outputs = rollout.outputs.flatten(0, 1)[positions] + 0.3 * torch.randn(4, 8)
    found, policy = agent.loss(outputs, rollout, targets, positions), agent.env.policy  # type: ignore[attr-defined]
    total = 0.0
    for number, position in enumerate(positions.tolist()):
        time, row = divmod(position, 6)
        new = policy.log_probability(outputs[number, :-1], rollout.samples[time, row])
        old = policy.log_probability(rollout.outputs[time, row, :-1], rollout.samples[time, row])
        ratio, advantage = math.exp(float(new - old)), float(targets.advantages[position])
        gain = min(ratio * advantage, min(max(ratio, 0.9), 1.1) * advantage)
        value, before, wanted = (
            float(x) for x in (outputs[number, -1], rollout.outputs[time, row, -1], targets.values[position])
        )
        error = max((value - wanted) ** 2, (before + min(max(value - before, -0.1), 0.1) - wanted) ** 2)
        total += -gain + 0.7 * 0.5 * error - 0.3 * float(policy.entropy(outputs[number, :-1]))
    assert float(found["loss"]) == pytest.approx(total / 4, rel=1e-4)


def test_policies_are_the_distributions_of_torch() -> None:
    policy = Policy([ActionPart("bernoulli", 2), ActionPart("categorical", 4), ActionPart("normal", 3)], 0.5)
    assert (policy.sample_size, policy.size) == (9, 12)
    parameters = torch.randn(1, 12).expand(20_000, 12)
    samples = policy.sample(parameters, torch.Generator().manual_seed(0))
    known = [
        Bernoulli(logits=parameters[:, :2]),
        Categorical(logits=parameters[:, 2:6]),
        Normal(parameters[:, 6:9], 0.5 * parameters[:, 9:].exp()),
    ]
    taken = [(samples[:, :2] + 1) / 2, samples[:, 2:6].argmax(-1), samples[:, 6:]]
    assert torch.equal(samples[:, 2:6].sum(-1), torch.ones(20_000))
    logs = [one.log_prob(value) for one, value in zip(known, taken, strict=True)]
    expected = logs[0].sum(-1) + logs[1] + logs[2].sum(-1)
    torch.testing.assert_close(policy.log_probability(parameters, samples), expected, rtol=1e-4, atol=1e-4)
    entropy = known[0].entropy().sum(-1) + known[1].entropy() + known[2].entropy().sum(-1)
    torch.testing.assert_close(policy.entropy(parameters), entropy, rtol=1e-4, atol=1e-4)
    # The mean of what was drawn, and its mean information, are within five standard errors.
    torch.testing.assert_close(taken[0].mean(0), known[0].probs[0], rtol=0, atol=0.018)
    torch.testing.assert_close(samples[:, 2:6].mean(0), known[1].probs[0], rtol=0, atol=0.018)
    torch.testing.assert_close(taken[2].mean(0), parameters[0, 6:9], rtol=0, atol=float(known[2].scale.max()) * 0.036)
    assert float(-expected.mean()) == pytest.approx(float(entropy[0]), abs=0.1)
    likeliest = policy.mode(parameters[:1])
    assert float(policy.log_probability(parameters[:1], likeliest)) >= float(expected.max()) - 1e-4


@pytest.mark.parametrize("segment", [1, 3, 12])
def test_pieces_cover_each_step_once(segment: int) -> None:
    first = torch.rand(12, 5, generator=torch.Generator().manual_seed(segment)) < 0.3
    cells = torch.tensor([4, 0, 2]) if segment == 12 else torch.tensor([7, 0, 12, 3])
    found = []
    for piece in pieces_of(first, segment, cells):
        for column in range(piece.real.shape[1]):
            steps = piece.positions[piece.real[:, column], column].tolist()
            assert steps == list(range(steps[0], steps[0] + 5 * len(steps), 5))
            time, row = divmod(steps[0], 5)
            assert bool(piece.fresh[column]) == bool(first[time, row])
            assert piece.fresh[column] or time % segment == 0
            assert int(piece.cells[column]) == time // segment * 5 + row
            assert not any(first[step // 5, row] for step in steps[1:])
            found += steps
    wanted = [t * 5 + c % 5 for c in cells.tolist() for t in range(c // 5 * segment, c // 5 * segment + segment)]
    assert sorted(found) == sorted(wanted)


WORLDS: dict[str, Any] = {
    "anything": Anything,
    "t-maze": lambda: TMazeWorld(trials=3, min_stay=1, max_stay=2, test_trials=[4]),
    "cartpole": lambda: GymWorld(max_steps=20),
    "pendulum": lambda: GymWorld(id="Pendulum-v1", max_steps=7, target=0.0),
}


@pytest.mark.parametrize(("name", "broken"), [("anything", 4), ("t-maze", 4), ("cartpole", 5), ("pendulum", 4)])
def test_resumed_equals_unbroken(name: str, broken: int) -> None:
    values: dict[str, Any] = {"updates": 8, "previous_action": True, "previous_reward": True, "segment_steps": 4}
    whole, kept = Keep(), Keep()
    unbroken = make("dnc", WORLDS[name](), recorder=whole, **values)
    unbroken.fit()
    first = make("dnc", WORLDS[name](), **values)
    while first.step < broken:
        first.train_step()
        if first.step == 3:
            first.judge()
    resumed = make("dnc", WORLDS[name](), seed=7, recorder=kept, **values)
    resumed.seed = 0
    resumed.load_state_dict(first.state_dict())
    resumed.load_state_dict(resumed.state_dict())  # nothing was played in between
    resumed.fit()
    assert not kept.messages
    assert kept.rows == [row for row in whole.rows if row[0] > broken]
    for mine, other in zip(resumed.circuit.parameters(), unbroken.circuit.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert torch.equal(resumed.generator.get_state(), unbroken.generator.get_state())
    for agent in (unbroken, first, resumed):
        agent.env.close()


def test_a_world_that_is_another_one_begins_anew_and_says_so() -> None:
    first, kept = make(), Keep()
    first.train_step()
    state = first.state_dict()
    state["episodes"]["observations"] = state["episodes"]["observations"] + 0.5
    resumed = make(recorder=kept)
    resumed.load_state_dict(state)
    resumed.train_step()
    assert kept.messages == ["update 1: the world is not what it was, its episodes begin anew"]
    assert resumed.step == 2


def test_another_number_of_episodes_holds_when_a_run_goes_on() -> None:
    first, more = make(), make(batch_size=9)
    first.train_step()
    more.load_state_dict(first.state_dict())
    more.train_step()
    assert more.step == 2 and len(more.state_dict()["episodes"]["first"]) == 9


REFUSED: dict[str, tuple[Any, str]] = {
    "an env": (lambda: PPOAgent(CopyEnv(), papertape.NTM(10, 8)), "env: .*World"),
    "a world that draws": (lambda: make(world=Draws()), "env: its actions are drawn by itself"),
    "a world in two wrappings": (lambda: ActorCritic(ActorCritic(Anything())), "env: got an ActorCritic, which draws"),
    "a world that is not apart": (lambda: make(world=AllAtOnce()), "env: got a AllAtOnce, whose episodes cannot begin"),
    "dropout": (lambda: with_dropout(), r"circuit: it has dropout 0.5, .* allowed with ppo is none"),
    "a module's state": (lambda: with_lstm(), "circuit: LSTM carries a state of its own kind"),
    "no gradient": (lambda: make("tape"), "circuit: .* has no gradient; PPOAgent needs one"),
    "sizes": (
        lambda: PPOAgent(TMazeWorld(), papertape.NTM(4, 3), previous_action=True),
        "input_size: the circuit has 4, the env 7",
    ),
    "segments": (lambda: make(rollout_steps=12, segment_steps=5), "segment_steps: got 5; allowed is what divides"),
    "one step": (lambda: make(batch_size=1, rollout_steps=1, minibatches=1), "normalise_advantages: got True; allowed"),
    "minibatches": (lambda: make(batch_size=7), "minibatches: got 3; allowed is what divides"),
}


class Draws(Anything):
    """Says that it draws its actions."""

    def action_parts(self) -> list[ActionPart]:
        raise ValueError("env: its actions are drawn by itself")


class AllAtOnce(Anything):
    """Keeps its episodes where nobody can take one out."""

    def reset(self, *given: Any, **more: Any) -> tuple[Tensor, dict[str, Tensor]]:
        seen, info = super().reset(*given, **more)
        self.hidden, self.state = self.state, None
        return seen, info

    def step(self, actions: Tensor) -> Step:
        self.state = self.hidden
        made = super().step(actions)
        self.hidden, self.state = self.state, None
        return made


def with_dropout() -> PPOAgent:
    return PPOAgent(Anything(), papertape.NTM(3, 8, num_layers=2, dropout=0.5, **SIZES), **SMALL)


def with_lstm() -> PPOAgent:
    return PPOAgent(Anything(), nn.LSTM(3, 8), **SMALL)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CIRCUITS, "tape", lambda *io: papertape.Tape(*io, memory_size=6, word_size=4))
    call, said = REFUSED[name]
    with pytest.raises(ValueError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value).split("For further")[0].strip() or "pydantic" in str(type(caught.value))


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (nn.Dropout(1), "has dropout 1.0"),
        (nn.Dropout1d(0.1), "has dropout 0.1"),
        (nn.AlphaDropout(0.2), "has dropout 0.2"),
        (nn.FeatureAlphaDropout(0.2), "has dropout 0.2"),
        (nn.RReLU(), "is a RReLU"),
        (nn.BatchNorm1d(3), "is a BatchNorm1d"),
        (nn.InstanceNorm1d(6, affine=True, track_running_stats=True), "is a InstanceNorm1d"),
    ],
    ids=lambda given: type(given).__name__,
)
def test_modules_that_answer_otherwise_as_they_learn_are_refused(part: nn.Module, said: str) -> None:
    class Within(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.layer = part, nn.Linear(3, 8)

        def forward(self, inputs: Tensor) -> Tensor:
            answered: Tensor = self.layer(self.part(inputs.flatten(0, 1))).unflatten(0, inputs.shape[:2])
            return answered

    with pytest.raises(ValueError, match=rf"^circuit: module\.part {said}, .* allowed with ppo is none$"):
        PPOAgent(Anything(), Within(), **SMALL)


def test_modules_that_could_answer_otherwise_but_do_not_are_taken() -> None:
    parts = [nn.Dropout(0), nn.LayerNorm(3), nn.PReLU()]
    PPOAgent(Anything(), nn.Sequential(*parts, nn.Linear(3, 8)), **SMALL).train_step()


class Bandit(Anything):
    """One step; the reward is the second arm's, or the number's distance from where it should be."""

    kind: ActionKind = Field(default="categorical", description="of its actions")

    def setup(self) -> None:
        self.input_size, self.output_size = 3, 3 if self.kind == "categorical" else 2

    def action_parts(self) -> list[ActionPart]:
        return [ActionPart(self.kind, self.output_size)]

    def decide(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(-1) if self.kind == "categorical" else outputs

    def reset(self, episodes: int, generator: torch.Generator, *, copies: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
        super().reset(episodes, generator, copies=copies)
        self.state = self.state._replace(length=torch.full_like(self.state.length, 2))
        return self._seen(), self._info()

    def step(self, actions: Tensor) -> Step:
        step = super().step(torch.zeros(len(self.state.steps), 4))
        if self.kind == "categorical":
            rewards = (actions == 1).double()
        else:
            wanted = torch.tensor([0.7, -1.2]) if self.kind == "normal" else torch.tensor([-1.0, 1.0])
            rewards = -(actions - wanted).square().sum(-1).double()
        return step._replace(rewards=rewards)


@pytest.mark.parametrize(("kind", "wanted"), [("categorical", 1.9), ("bernoulli", -0.1), ("normal", -0.1)])
def test_bandits_are_learned(kind: str, wanted: float) -> None:
    agent = make("feedforward", Bandit(kind=kind), batch_size=32, rollout_steps=8, minibatches=4, lr=1e-2)
    for _ in range(60):
        agent.train_step()
    assert agent.evaluate()["validation/trained/reward"] >= wanted


@pytest.mark.parametrize("what", ["rewards", "observations"])
def test_what_is_not_finite_names_the_update_and_saves_the_run(what: str) -> None:
    kept = Keep()
    agent = make(world=Poisoned(part=what), recorder=kept, updates=9)
    with pytest.raises(TrainingError, match=rf"update 3: {what} are not finite; saved as of update 2"):
        agent.fit()
    fine = make(updates=2)
    for _ in range(2):
        fine.train_step()
    left, right = (agent.state_dict() for agent in (fine, make()))
    make().load_state_dict(kept.states["latest"])
    assert kept.states["latest"]["step"] == 2
    for name in ("observations", "actions"):
        assert torch.equal(kept.states["latest"]["episodes"][name], left["episodes"][name])
    assert torch.equal(kept.states["latest"]["generator"], left["generator"])
    assert right["episodes"] == {}


class Counting(Anything):
    """Counts its steps."""

    def setup(self) -> None:
        super().setup()
        self.taken = 0

    def step(self, actions: Tensor) -> Step:
        self.taken += 1
        return super().step(actions)


class Poisoned(Counting):
    """From the thirtieth step on a part of what it tells is no number."""

    part: str = Field(default="rewards", description="which")

    def step(self, actions: Tensor) -> Step:
        made = super().step(actions)
        part: Tensor = getattr(made, self.part)
        return made._replace(**{self.part: part * math.nan}) if self.taken >= 30 else made


class Spoilt(Counting):
    """Once, in the first twelve steps, shows what an agent judges, but does not act on, as something else."""

    where: str = Field(default="a cut", description="at which step")
    shown: str = Field(default="inf", description="what it shows")

    def step(self, actions: Tensor) -> Step:
        made = super().step(actions)
        here = made.truncated if self.where == "a cut" else torch.full_like(made.truncated, self.taken == 12)
        spoilt = (here & (self.taken <= 12)).unsqueeze(1)
        return made._replace(observations=made.observations.masked_fill(spoilt, float(self.shown)))


@pytest.mark.parametrize("where", ["a cut", "the last step"])
@pytest.mark.parametrize(("shown", "what"), [("inf", "observations"), ("3e38", "outputs of the circuit")])
def test_what_is_judged_but_not_acted_on_must_be_finite_too(where: str, shown: str, what: str) -> None:
    linear = nn.Linear(3, 8)
    nn.init.constant_(linear.weight, 2.0)
    agent = PPOAgent(Spoilt(where=where, shown=shown), linear, **SMALL)
    with pytest.raises(WorldError, match=f"{what} are not finite"):
        agent.train_step()
    assert agent.state_dict()["values"] == (0, 0.0, 0.0)
    learned = agent.train_step()
    assert agent.step == 1 and all(map(math.isfinite, learned.values()))


def test_rewards_whose_sum_is_not_finite_are_not_learned_from() -> None:
    agent = make(world=Rich())
    with pytest.raises(WorldError, match="targets of values are not finite"):
        agent.train_step()
    assert agent.state_dict()["values"] == (0, 0.0, 0.0)
    learned = agent.train_step()
    assert agent.step == 1 and all(map(math.isfinite, learned.values()))


class Rich(Counting):
    """Pays almost as much as there are numbers for, twelve times."""

    def step(self, actions: Tensor) -> Step:
        made = super().step(actions)
        return made._replace(rewards=torch.full_like(made.rewards, 3e38)) if self.taken <= 12 else made


def test_validation_is_played_beside_training_and_shown() -> None:
    kept = Keep()
    agent = make(world=TMazeWorld(trials=3, test_trials=[4]), recorder=kept, updates=6, previous_action=True)
    silent = make(world=TMazeWorld(trials=3, test_trials=[4]), updates=6, previous_action=True, evaluate_every=100)
    agent.fit()
    for _ in range(6):
        silent.train_step()
    for mine, other in zip(agent.circuit.parameters(), silent.circuit.parameters(), strict=True):
        assert torch.equal(mine, other)
    train = [values for _, values in kept.rows if "train/reward" in values][-1]
    parts = ("policy_loss", "value_loss", "entropy", "divergence", "clipped", "gradient_norm", "steps", "bad_steps")
    assert {f"train/{part}" for part in parts} <= set(train)
    assert {name for name, *_ in kept.episodes} == {"trials 3", "trials 4"}
    _, batch, outputs, trace = kept.episodes[0]
    assert batch.inputs.shape[2] == 7 and outputs.shape[2] == 4 and "world" in trace
    actions = torch.nn.functional.one_hot(outputs[:-1, 0, :3].argmax(-1), 3).float()
    assert torch.equal(batch.inputs[1:, 0, 4:], actions)


def test_evaluation_acts_as_its_option_says() -> None:
    values = {}
    for actions in ("likeliest", "sampled"):
        agent = make(world=TMazeWorld(trials=3), evaluation_actions=actions, evaluation_sequences=64)
        values[actions] = agent.evaluate()
        assert values[actions] == agent.evaluate()
    assert values["likeliest"] != values["sampled"]


BLOCKS = {
    "env": ["env.trials=3", "env.test_trials=[4]"],
    "circuit": ["circuit.memory_size=4", "circuit.word_size=3"],
    "agent": [f"agent.{name}={value}" for name, value in SMALL.items()],
}


def test_the_last_reward_is_seen_in_training_as_in_evaluation() -> None:
    """A shift of rewards is for training alone, and what is seen must be the same."""
    trained = ActorCritic(GymWorld(reward_shift=-0.25), previous_reward=True)
    (judged,) = trained.sets("test").values()
    seen = []
    for world in (trained, judged):
        world.reset(2, torch.Generator().manual_seed(0))
        seen.append(world.step(world.decide(torch.zeros(2, 3))).observations)
    assert torch.equal(*seen) and seen[0][:, -1].tolist() == [1.0, 1.0]


def test_a_run_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word for block in BLOCKS.values() for word in block]
    assert main(["train", "ppo-tmaze", *words, "agent.updates=7", "plots=files", "name=unbroken"]) == 0
    assert main(["train", "ppo-tmaze", *words, "agent.updates=4", "plots=off", "name=broken"]) == 0
    assert main(["train", "--resume", "broken", "agent.updates=7"]) == 0
    whole, resumed = (papertape.load_circuit(f"runs/{name}/checkpoints/latest.pt") for name in ("unbroken", "broken"))
    for mine, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert list(Path("runs/unbroken/plots").glob("*.png"))
    assert main(["test", "unbroken"]) == 0
    task = ActorCritic(TMazeWorld(trials=3), previous_action=True, previous_reward=True)
    assert (whole.input_size, whole.output_size) == (task.input_size, task.output_size)


def test_what_the_agent_refuses_of_an_env_is_named_as_in_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "ppo-tmaze", "env.type=gym", "env.action=sample", "plots=off"]) == 2
    assert "papertape: env.action: got 'sample'" in capsys.readouterr().err


def test_a_task_that_hands_out_batches_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "ntm-copy", "agent.type=ppo"]) == 2
    assert "env.type 'copy' hands out batches, allowed: " in capsys.readouterr().err


def test_a_memory_learns_which_way_a_sign_has_pointed() -> None:
    values = {"batch_size": 32, "rollout_steps": 32, "minibatches": 2, "epochs": 4, "lr": 5e-3, "updates": 60}
    judged = {"evaluate_every": 10, "evaluation_sequences": 64, "target_error": 0.0}
    agent = make("ntm", CuedTMazeWorld(corridor=3, test_corridors=[]), **values, **judged)
    agent.fit()
    assert agent.target_reached


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["ppo-repeat-previous", "ppo-repeat-previous-hard", "ppo-cartpole"])
def test_presets_learn(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", preset, "plots=off", "threads=1", "name=run"]) == 0
    assert "target reached" in Path("runs/run/log").read_text()


def test_several_processes_are_refused() -> None:
    with pytest.raises(ValueError, match="got 'ppo', which runs in one process"):
        make().join(Processes(rank=0, size=2))


def test_a_circuit_that_is_frozen_whole_stays_as_it_is() -> None:
    agent = make()
    agent.circuit.requires_grad_(False)
    before = copy.deepcopy(agent.circuit.state_dict())
    agent.train_step()
    assert same(agent.circuit.state_dict(), before)


def test_another_try_knows_nothing_of_the_last() -> None:
    again, fresh = make(retry_every=2, target_error=0.0), make()
    for _ in range(2):
        again.train_step()
    fresh.generator.set_state(again.generator.get_state())
    for agent in (again, fresh):
        agent.train_step()
    for mine, other in zip(again.circuit.parameters(), fresh.circuit.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert (again.value_count, again.value_mean) == (fresh.value_count, fresh.value_mean)


def test_a_run_resumed_where_another_try_begins_is_the_unbroken_one() -> None:
    unbroken, stopped, resumed = (make(retry_every=2, target_error=0.0) for _ in range(3))
    for _ in range(4):
        unbroken.train_step()
    for _ in range(2):
        stopped.train_step()
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    for _ in range(2):
        resumed.train_step()
    assert same(resumed.state_dict(), unbroken.state_dict())


def test_a_world_that_fails_as_it_begins_can_be_taken_up_again() -> None:
    class Failing(Anything):
        fails = False

        def reset(self, episodes: int, generator: torch.Generator, *, copies: int = 1) -> Any:
            if Failing.fails:
                raise WorldError("it does not start")
            return super().reset(episodes, generator, copies=copies)

    agent, fresh = make(world=Failing(), recorder=Keep()), make()
    Failing.fails = True
    with pytest.raises(TrainingError, match="update 1: it does not start; saved as of update 0"):
        agent.fit()
    Failing.fails = False
    agent.train_step()
    fresh.train_step()
    assert same(agent.state_dict(), fresh.state_dict())


@pytest.mark.parametrize(("change", "wanted"), [(-3.5, 1.0), (3.5, -1.0)])
def test_a_deviation_beyond_its_range_is_led_back_and_never_on(change: float, wanted: float) -> None:
    policy = Policy([ActionPart("normal", 1)], 1.0)
    for sign in (wanted, -wanted):
        parameters = torch.tensor([0.0, change], requires_grad=True)
        (-sign * policy.entropy(parameters).sum()).backward()
        assert parameters.grad is not None
        # Descent goes against the gradient: one that would lead further out is left out.
        assert float(-parameters.grad[1]) == pytest.approx(sign if sign == wanted else 0.0)
