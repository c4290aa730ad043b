"""The backprop agent: updates, stopping, skipping what is not finite, and going on bit for bit."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from states import same
from torch import Tensor

import papertape
from papertape.agents import BackpropAgent, EvolutionAgent, MixedAgent
from papertape.agents.learning import TrainingError
from papertape.agents.optimisers import GravesRMSprop, Optimiser
from papertape.core.component import options_of
from papertape.core.distributed import Processes
from papertape.core.env import Batch
from papertape.core.recorder import Recorder
from papertape.core.registry import entries
from papertape.envs import CopyEnv, TMazeWorld
from papertape.utils import checkpoint

SMALL = {"batch_size": 4, "log_every": 2, "evaluate_every": 3, "save_every": 4, "evaluation_sequences": 5}


class Keep(Recorder):
    """Keeps everything that it is told."""

    wants_episodes = True

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.states: list[tuple[str, dict[str, Any]]] = []
        self.episodes: list[tuple[int, str]] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        # How fast it was is the one thing that two equal runs may differ in.
        kept = {name: value for name, value in values.items() if name != "train/sequences_per_second"}
        self.rows.append((step, kept))

    def checkpoint(self, name: str, state: Mapping[str, Any]) -> None:
        self.states.append((name, dict(state)))

    def episode(self, step: int, name: str, batch: Batch, outputs: Tensor, trace: Any) -> None:
        self.episodes.append((step, name))


def make(
    seed: int = 0,
    circuit: str = "ntm",
    recorder: Recorder | None = None,
    kind: type[BackpropAgent] = BackpropAgent,
    **options: Any,
) -> BackpropAgent:
    env = CopyEnv(width=3, max_length=3, test_lengths=[5])
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"hidden_size": 8, "memory_size": 6, "word_size": 4}
    built = papertape.NTM(5, 3, **sizes) if circuit == "ntm" else papertape.DNC(5, 3, num_reads=2, **sizes)
    return kind(env, built, **{**SMALL, **options}, seed=seed, recorder=recorder)


@pytest.mark.parametrize("circuit", ["ntm", "dnc"])
@pytest.mark.parametrize("optimiser", entries("optimiser"))
def test_resumed_equals_unbroken(tmp_path: Path, circuit: str, optimiser: str) -> None:
    """Stopped at any step, saved to a file and taken up by a new process's objects."""
    block: dict[str, Any] = {"type": optimiser}
    if "momentum" in options_of(entries("optimiser")[optimiser]).model_fields:
        block["momentum"] = 0.9
    settings: dict[str, Any] = {"steps": 9, "optimiser": block, "schedule": "cosine"}
    whole = Keep()
    unbroken = make(circuit=circuit, recorder=whole, **settings)
    unbroken.fit()
    for stop in (1, 4, 6):
        first = make(circuit=circuit, **settings)
        while first.step < stop:
            values = first.train_step()
            if first.step % first.evaluate_every == 0:
                first.judge()
        assert math.isfinite(values["objective"])
        path = tmp_path / "latest.pt"
        checkpoint.save(path, first.state_dict())
        rest = Keep()
        second = make(seed=0, circuit=circuit, recorder=rest, **settings)
        for parameter in second.circuit.parameters():
            parameter.data.zero_()
        second.load_state_dict(checkpoint.load(path))
        second.fit()
        assert same(second.state_dict(), unbroken.state_dict())
        assert rest.rows == [row for row in whole.rows if row[0] > stop]


def test_online_metrics_are_of_every_batch_before_its_update() -> None:
    kept, seen = Keep(), []
    agent = make(recorder=kept, steps=9, log_every=4, online=True)

    class Watched(CopyEnv):
        def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
            batch = super().sample(batch_size, generator)
            if generator is agent.generator:
                with torch.no_grad():
                    outputs, _ = agent.circuit(batch.inputs)
                seen.append(self.tallies(outputs, batch))
            return batch

    agent.env = Watched(width=3, max_length=3, test_lengths=[5])
    agent.fit()
    rows = {step: row for step, row in kept.rows if "train/online_loss" in row}
    assert sorted(rows) == [4, 8]
    for step, row in rows.items():
        for name in ("loss", "bits_wrong"):
            pairs = [tallies[name] for tallies in seen[step - 4 : step]]
            expected = sum(float(total) for total, _ in pairs) / sum(float(count) for _, count in pairs)
            assert row[f"train/online_{name}"] == pytest.approx(expected, rel=1e-6)
    again = Keep()
    resumed = make(recorder=again, steps=9, log_every=4, online=True)
    part = make(steps=9, log_every=4, online=True)
    for _ in range(6):
        part.train_step()
    resumed.load_state_dict(copy.deepcopy(part.state_dict()))
    resumed.fit()
    assert [row for row in again.rows if row[0] == 8] == [row for row in kept.rows if row[0] == 8]
    old = {name: value for name, value in part.state_dict().items() if name != "online"}
    make(steps=9, online=True).load_state_dict(old)


class Together(Processes):
    """Processes that are threads of this one and add up alone."""

    def __init__(self, rank: int, sent: list[Any], barrier: threading.Barrier) -> None:
        super().__init__(rank, len(sent))
        self.sent, self.barrier = sent, barrier

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        self.sent[self.rank] = [tensor.clone() for tensor in tensors]
        self.barrier.wait(timeout=30)
        for tensor, parts in zip(tensors, zip(*self.sent, strict=True), strict=True):
            tensor.copy_(torch.stack(parts).sum(0))
        self.barrier.wait(timeout=30)


def together(agents: list[BackpropAgent], steps: int) -> list[dict[str, float]]:
    """What the last of some steps gives to each of the processes that take them together."""
    sent, barrier = [None] * len(agents), threading.Barrier(len(agents))

    def learn(rank: int) -> dict[str, float]:
        agents[rank].join(Together(rank, sent, barrier))
        return [agents[rank].train_step() for _ in range(steps)][-1]

    with ThreadPoolExecutor(len(agents)) as pool:
        return list(pool.map(learn, range(len(agents))))


def test_online_metrics_of_processes_go_on_in_any_number_of_them() -> None:
    def online() -> BackpropAgent:
        return make(log_every=4, online=True)

    unbroken = online()
    (expected,) = together([unbroken], 8)
    assert expected["online_loss"] > 0
    first = [online(), online()]
    together(first, 6)
    kept = [agent.state_dict() for agent in first]
    assert kept[0]["online"] == kept[1]["online"] != {}
    for number in (1, 2, 3):
        agents = [online() for _ in range(number)]
        for agent in agents:
            agent.load_state_dict(copy.deepcopy(kept[0]))
        for found in together(agents, 2):
            names = [name for name in expected if name.startswith("online")]
            assert [found[name] for name in names] == pytest.approx([expected[name] for name in names], rel=1e-4)


def test_curriculum_is_resumed() -> None:
    options: dict[str, Any] = {"width": 3, "max_length": 6, "test_lengths": []}
    options["curriculum"] = {"type": "growing", "threshold": 100.0}
    env = CopyEnv(**options)
    agent = BackpropAgent(env, papertape.NTM(5, 3, memory_size=6), **SMALL, steps=6)
    agent.fit()
    assert env.state_dict()["level"] == 2
    other = BackpropAgent(CopyEnv(**options), papertape.NTM(5, 3, memory_size=6), **SMALL, steps=6)
    other.load_state_dict(agent.state_dict())
    assert other.env.state_dict()["level"] == 2


def test_learns() -> None:
    env = CopyEnv(width=3, max_length=3, test_lengths=[])
    torch.manual_seed(1)
    options: dict[str, Any] = {"batch_size": 16, "steps": 800, "lr": 1e-2, "clip_norm": 10.0, "evaluate_every": 50}
    agent = BackpropAgent(
        env, papertape.NTM(5, 3, hidden_size=32, memory_size=8, word_size=8), **options, seed=1, target_error=0.2
    )
    before = agent.evaluate()["validation/length 1-3/bits_wrong"]
    after = agent.fit()["validation/length 1-3/bits_wrong"]
    assert before > 1.5
    assert after <= 0.2


def test_reports_what_it_promises() -> None:
    kept = Keep()
    agent = make(steps=6, recorder=kept)
    last = agent.fit()
    assert [step for step, values in kept.rows if "train/loss" in values] == [2, 4, 6]
    assert [step for step, values in kept.rows if "validation/length 5/bits_wrong" in values] == [3, 6]
    expected = {"loss", "objective", "bits_wrong", "gradient_norm", "learning_rate", "bad_steps"}
    assert {name.removeprefix("train/") for name in kept.rows[0][1]} == expected
    assert kept.episodes == [(3, "length 1-3"), (3, "length 5"), (6, "length 1-3"), (6, "length 5")]
    assert [name for name, _ in kept.states].count("latest") == 2
    assert last == agent.last_validation and {**last, "answered": 6 * 4} == kept.rows[-1][1]


def test_best_weights_that_could_not_be_saved_do_not_keep_later_ones_from_being_saved() -> None:
    class Full(Keep):
        def checkpoint(self, name: str, state: Mapping[str, Any]) -> bool:
            super().checkpoint(name, state)
            return not (name == "best" and state["step"] == 6)

    kept = Full()
    agent = make(steps=9, recorder=kept)
    errors = iter([4.0, 1.0, 2.0])
    agent._score = lambda _: next(errors)  # type: ignore[method-assign]
    agent.fit()
    assert [(state["step"], state["best_error"]) for name, state in kept.states if name == "best"] == [
        (3, 4.0),
        (6, 1.0),
        (9, 2.0),
    ]
    assert agent.best_error == 2.0


def test_whole_run_depends_on_the_seed_alone() -> None:
    runs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed * 7)
        agent = make(seed=seed, steps=5)
        torch.rand(5)
        agent.fit()
        runs.append(agent.circuit.state_dict())
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_validation_sequences_are_the_same_at_every_evaluation() -> None:
    agent = make()
    assert agent.evaluate() == agent.evaluate()


def test_evaluation_does_not_disturb_training() -> None:
    often, never = make(steps=6, evaluate_every=1), make(steps=6, evaluate_every=100)
    often.fit()
    never.fit()
    assert same(often.circuit.state_dict(), never.circuit.state_dict())


def test_truncation_cuts_the_gradient_and_nothing_else() -> None:
    def gradients(truncate: int | None) -> tuple[float, list[Tensor]]:
        agent = make(truncate=truncate)
        batch = agent.env.sample(4, torch.Generator().manual_seed(5))
        loss, _ = agent._backward(agent.circuit, batch, agent.env.normaliser(batch))
        assert batch.inputs.shape[0] > 2
        return float(loss), [parameter.grad for parameter in agent.circuit.parameters() if parameter.grad is not None]

    whole_loss, whole = gradients(None)
    long_loss, long = gradients(1000)
    cut_loss, cut = gradients(2)
    assert long_loss == whole_loss
    assert cut_loss == pytest.approx(whole_loss, rel=1e-5)
    assert same(long, whole)
    assert not all(torch.allclose(*pair) for pair in zip(cut, whole, strict=True))

    # By hand: the state is cut off after every two steps.
    agent = make()
    batch = agent.env.sample(4, torch.Generator().manual_seed(5))
    outputs, state = [], None
    for start in range(0, batch.inputs.shape[0], 2):
        answered, state = agent.circuit(batch.inputs[start : start + 2], state)
        state = papertape.detach(state)
        outputs.append(answered)
    agent.env.loss(torch.cat(outputs), batch).backward()
    expected = [parameter.grad for parameter in agent.circuit.parameters() if parameter.grad is not None]
    for left, right in zip(cut, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


def test_bad_steps_are_skipped_counted_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Keep()
    agent = make(steps=8, recorder=kept, evaluate_every=100)
    original = agent.env.losses

    def sometimes_bad(outputs: Tensor, batch: Batch) -> Tensor:
        losses = original(outputs, batch)
        return losses * math.nan if agent.step % 3 == 1 else losses

    monkeypatch.setattr(agent.env, "losses", sometimes_bad)
    monkeypatch.setattr(agent.env, "metrics", lambda outputs, batch: {"bits_wrong": 0.0})
    for _ in range(8):
        before = {name: value.clone() for name, value in agent.circuit.state_dict().items()}
        values = agent.train_step()
        moved = not same(before, agent.circuit.state_dict())
        assert moved == math.isfinite(values["objective"])
    assert agent.bad_steps == 3
    assert sum("not finite, step skipped" in message for message in kept.messages) == 3


def test_too_many_bad_steps_stop_with_the_last_good_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Keep()
    agent = make(steps=50, max_bad_steps=4, recorder=kept)
    agent.train_step()
    good = {name: value.clone() for name, value in agent.circuit.state_dict().items()}
    monkeypatch.setattr(agent.env, "losses", lambda outputs, batch: outputs.sum(-1) * math.inf)
    with pytest.raises(TrainingError, match=r"4 steps in a row.*agent\.lr"):
        agent.fit()
    name, state = kept.states[-1]
    assert name == "latest"
    assert same(state["circuit"], good)
    assert all(torch.isfinite(value).all() for value in state["circuit"].values())


def test_stops_at_the_target() -> None:
    kept = Keep()
    agent = make(steps=30, target_error=1000.0, recorder=kept)
    agent.fit()
    assert agent.step == 3
    assert any("target reached after 12 sequences" in message for message in kept.messages)
    assert [name for name, _ in kept.states] == ["best", "latest"]
    agent.fit()
    assert agent.step == 3


class Told(BackpropAgent):
    """Is told what validation says: errors on the training range, on longer sequences and on the lesson."""

    def setup(self) -> None:
        super().setup()
        self.errors: Any = iter(())

    def evaluate(self, stream: Any = "validation") -> dict[str, float]:
        assert stream == "validation"
        trained, beyond = next(self.errors)
        return {"validation/length 1-3/bits_wrong": trained, "validation/length 5/bits_wrong": beyond}


def told(*errors: tuple[float, float], **options: Any) -> Told:
    agent = make(kind=Told, steps=2 * len(errors), evaluate_every=2, recorder=Keep(), **options)
    assert isinstance(agent, Told)
    agent.errors = iter(errors)
    return agent


@pytest.mark.parametrize(
    ("beyond", "best", "end"),
    [
        (None, [2, 6], 8),  # the training range alone: 3, then 1, and 1 is enough once it is at most 0.5
        (2.0, [2, 4, 6], 10),  # the mean of both: 6, 5.5, 3
    ],
)
def test_sets_beyond_the_training_range_decide_only_where_asked_for(
    beyond: float | None, best: list[int], end: int
) -> None:
    errors = [(3.0, 9.0), (4.0, 7.0), (1.0, 5.0), (0.5, 6.0), (0.5, 2.0), (0.0, 0.0)]
    agent = told(*errors, target_error=0.5, target_error_beyond=beyond)
    agent.fit()
    assert isinstance(agent.recorder, Keep)
    assert agent.step == end and agent.target_reached
    assert [state["step"] for name, state in agent.recorder.states if name == "best"] == [*best, end]


def test_of_weights_with_the_same_error_the_later_are_the_best() -> None:
    agent = told((2.0, 0.0), (1.0, 0.0), (1.0, 0.0), (3.0, 0.0), (math.nan, 0.0))
    agent.fit()
    assert isinstance(agent.recorder, Keep)
    assert [state["step"] for name, state in agent.recorder.states if name == "best"] == [2, 4, 6]


def test_an_error_that_is_no_number_reaches_no_target() -> None:
    agent = told((math.nan, 0.0), (0.0, math.nan), target_error=1000.0, target_error_beyond=1000.0)
    agent.fit()
    assert agent.step == 4 and not agent.target_reached


def test_no_step_draws_from_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training, validation and confirmation have sequences of their own, and the test has others."""
    seeds: dict[int, set[str]] = {}
    sample, sets = CopyEnv.sample, CopyEnv.sets

    def watched(self: CopyEnv, batch_size: int, generator: torch.Generator) -> Batch:
        seeds.setdefault(generator.initial_seed(), set()).add(stage)
        return sample(self, batch_size, generator)

    def no_test(self: CopyEnv, stream: Any) -> Any:
        assert stage == "test" or stream == "validation"
        return sets(self, stream)

    monkeypatch.setattr(CopyEnv, "sample", watched)
    monkeypatch.setattr(CopyEnv, "sets", no_test)
    stage, agent = "fit", make(steps=3, target_error=100.0, confirmation_sequences=6, recorder=Keep())
    assert all(name.startswith("validation/") for name in agent.fit())
    assert agent.target_reached
    stage = "test"
    assert all(name.startswith("test/") for name in agent.test())
    assert sorted(map(sorted, seeds.values())) == [["fit"], ["fit"], ["fit"], ["test"]]


def test_target_must_hold_on_more_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target met by luck on a few sequences does not stop the run; met again on many, it does."""
    kept = Keep()
    agent = make(steps=12, target_error=1.0, target_error_beyond=2.0, confirmation_sequences=40, recorder=kept)
    asked = []
    quick = iter([0.0, 5.0, 0.5])
    many = iter([2.5, 1.5, 0.9])

    def on_few(env: Any, circuit: Any, stream: str, **settings: Any) -> dict[str, float]:
        error = next(quick)
        return {f"validation/{name}/bits_wrong": error for name in ("length 1-3", "length 5")}

    def on_many(env: Any, circuit: Any, *, sequences: int, batch_size: int, seed: int) -> dict[str, float]:
        asked.append((env.options.max_length, sequences))
        return {"bits_wrong": next(many)}

    monkeypatch.setattr("papertape.agents.learning.evaluate_all", on_few)
    monkeypatch.setattr("papertape.agents.learning.evaluate", on_many)
    agent.fit()
    assert agent.step == 9
    assert asked == [(5, 40), (5, 40), (3, 40)]
    assert agent.last_validation["validation/length 5/bits_wrong"] == 0.5
    (unconfirmed,) = (text for text in kept.messages if "other sequences" in text)
    assert unconfirmed.startswith("step 3: target met in validation, but not on 40 other sequences")
    assert unconfirmed.endswith("(length 5: bits wrong 2.5)")


def test_begins_again_with_the_first_lesson() -> None:
    """First weights cannot do what the curriculum had moved on to."""
    env = CopyEnv(width=3, max_length=3, test_lengths=[], curriculum={"type": "growing", "threshold": 100.0})  # type: ignore[arg-type)
    circuit = papertape.NTM(5, 3, hidden_size=8, memory_size=6, word_size=4)
    settings = {**SMALL, "steps": 6, "retry_every": 5, "target_error": 0.0}
    agent = BackpropAgent(env, circuit, **settings)  # type: ignore[arg-type]
    while agent.step < 5:
        agent.train_step()
        if agent.step == 3:
            agent.judge()
    assert env.curriculum.level == 1
    agent.train_step()
    assert env.curriculum.level == 0


def test_begins_again_when_the_target_is_out_of_reach() -> None:
    settings = {"steps": 10, "retry_every": 4, "target_error": 0.0, "warmup_steps": 2, "evaluate_every": 3}
    states = {}

    class Watch(Keep):
        def progress(self, step: int, total: int, values: Mapping[str, float]) -> None:
            states[step] = {name: value.clone() for name, value in agent.circuit.state_dict().items()}

    agent = make(**settings)
    agent.recorder = watch = Watch()
    first = {name: value.clone() for name, value in agent.circuit.state_dict().items()}
    agent.fit()
    assert [message for message in watch.messages if "begins again" in message] == [
        f"step {step}: target not reached, begins again with the first weights" for step in (4, 8)
    ]

    # The fifth step is the first one of a fresh agent that goes on with the data.
    again = make(**settings)
    assert same(again.circuit.state_dict(), first)
    for _ in range(4):
        again.env.sample(4, again.generator)
    again.train_step()
    assert same(again.circuit.state_dict(), states[5])
    assert agent.learning_rate(4) == agent.learning_rate(0) < agent.learning_rate(1)

    # Stopped in the second try and taken up.
    stopped, resumed = make(**settings), make(**settings)
    while stopped.step < 6:
        stopped.train_step()
    resumed.load_state_dict(stopped.state_dict())
    while resumed.step < 10:
        resumed.train_step()
    assert same(resumed.circuit.state_dict(), states[10])


def test_stops_when_asked_and_goes_on() -> None:
    kept = Keep()
    agent = make(steps=6, recorder=kept)

    class Stop(Keep):
        def progress(self, step: int, total: int, values: Mapping[str, float]) -> None:
            agent.stop_requested = step == 4

    agent.recorder = stop = Stop()
    agent.fit()
    assert agent.step == 4
    assert stop.states[-1][0] == "latest"
    assert stop.states[-1][1]["step"] == 4
    agent.stop_requested, agent.recorder = False, kept
    agent.fit()
    assert agent.step == 6


def test_a_signal_while_processes_agree_is_kept_for_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """All answer no before it; this process alone must not stop at this step, nor forget it."""
    agent = make(steps=6)
    answers = []

    def agree(flag: bool) -> bool:
        agent.stop_requested = True
        answers.append(flag)
        return flag

    monkeypatch.setattr(agent.processes, "any", agree)
    agent.fit()
    assert answers == [False, True]
    assert agent.step == 1


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [0.5, 1.0, 1.0, 1.0]), ("linear", [0.5, 1.0, 1.0, 0.6]), ("cosine", [0.5, 1.0, 1.0, 0.6])],
)
def test_learning_rate(schedule: str, expected: list[float]) -> None:
    agent = make(steps=6, lr=1.0, final_lr=0.2, warmup_steps=2, schedule=schedule)
    assert [agent.learning_rate(step) for step in (0, 1, 2, 4)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("retry_every", "expected"),
    [(9, [1.0, 0.8, 0.6, 0.4, 0.2]), (3, [1.0, 2 / 3, 1 / 3, 1.0, 0.5]), (5, [1.0, 0.8, 0.6, 0.4, 0.2])],
)
def test_the_learning_rate_falls_in_every_try_however_short(retry_every: int, expected: list[float]) -> None:
    agent = make(steps=5, lr=1.0, schedule="linear", retry_every=retry_every, target_error=0.0)
    assert [agent.learning_rate(step) for step in range(5)] == pytest.approx(expected)


def test_learning_rate_starts_anew() -> None:
    agent = make(steps=100, lr=1.0, warmup_steps=2, schedule="linear", cycle_steps=4)
    rates = [agent.learning_rate(step) for step in range(2, 12)]
    assert rates == pytest.approx([1.0, 0.75, 0.5, 0.25, 1.0, 0.75, 0.5, 0.25, 1.0, 0.75])


def test_gradients_are_clipped() -> None:
    agent = make(clip_norm=1e-3, clip_value=None)
    agent.train_step()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in agent.circuit.parameters() if p.grad is not None))
    assert norm == pytest.approx(1e-3, rel=1e-2)
    agent = make(clip_norm=None, clip_value=1e-4)
    agent.train_step()
    assert max(float(p.grad.abs().max()) for p in agent.circuit.parameters() if p.grad is not None) <= 1.0001e-4


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_gradient_that_is_not_finite_is_not_clipped_to_one_that_is(bad: float) -> None:
    agent = make(clip_value=1.0)
    before = copy.deepcopy(agent.circuit.state_dict())
    next(agent.circuit.parameters()).register_hook(lambda gradient: torch.full_like(gradient, bad))
    assert not math.isfinite(agent.train_step()["gradient_norm"])
    assert agent.bad_steps == 1 and same(agent.circuit.state_dict(), before)


def test_the_norm_that_is_told_is_that_before_clipping() -> None:
    plain, clipped = make(clip_value=None).train_step(), make(clip_value=1e-4, clip_norm=1e-5).train_step()
    assert clipped["gradient_norm"] == plain["gradient_norm"] > 1e-3


@pytest.mark.parametrize("limit", [None, 1e-3, 0.9999, 1.0, 1.0001, 1e6])
def test_the_norm_is_clipped_as_pytorch_does(limit: float | None) -> None:
    agent, twin = make(clip_norm=None, clip_value=None), make()
    agent.train_step()
    parameters = list(agent.circuit.parameters())
    for own, other in zip(parameters, twin.circuit.parameters(), strict=True):
        other.grad = None if own.grad is None else own.grad.clone()
    if limit is not None:
        limit *= agent.bounded(agent.torch_optimiser)
    agent.clip_norm = limit
    expected = torch.nn.utils.clip_grad_norm_(twin.circuit.parameters(), limit or math.inf)
    assert agent.bounded(agent.torch_optimiser) == float(expected)
    for own, other in zip(parameters, twin.circuit.parameters(), strict=True):
        assert torch.equal(own.grad, other.grad)


def rmsprop(
    gradients: list[list[float]], lr: float, smoothing: float, momentum: float, epsilon: float, kind: str
) -> list[float]:
    """What two weights of 1 and -2 become, by the equations of TensorFlow or of Graves (2013, eqs. 38 to 41)."""
    weights = [1.0, -2.0]
    for i in range(2):
        square, mean, update = 1.0 if kind == "tensorflow" else 0.0, 0.0, 0.0
        for gradient in gradients:
            square = smoothing * square + (1 - smoothing) * gradient[i] ** 2
            mean = smoothing * mean + (1 - smoothing) * gradient[i]
            spread = square - (0.0 if kind == "tensorflow" else mean**2)
            update = momentum * update - lr * gradient[i] / math.sqrt(spread + epsilon)
            weights[i] += update
    return weights


GRADIENTS = [[math.sin(step), math.cos(3 * step) + step] for step in range(6)]


@pytest.mark.parametrize("given", [None, {"smoothing": 0.8, "momentum": 0.5, "epsilon": 1e-3}])
@pytest.mark.parametrize("kind", ["tensorflow", "graves"])
def test_rmsprop_with_epsilon_inside_the_root(kind: str, given: dict[str, float] | None) -> None:
    """Also with nothing but the name given: DeepMind's settings of the DNC, and those of the NTM paper."""
    published = {
        "tensorflow": {"lr": 1e-4, "smoothing": 0.9, "momentum": 0.0, "epsilon": 1e-10},
        "graves": {"lr": 1e-4, "smoothing": 0.95, "momentum": 0.9, "epsilon": 1e-4},
    }[kind]
    agent = make(optimiser={"type": f"{kind}-rmsprop", **(given or {})})
    settings = {**published, **(given or {})}
    assert {name: agent.torch_optimiser.param_groups[0][name] for name in settings} == settings
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimiser = agent.optimiser.make([weight], published["lr"])
    for gradient in GRADIENTS:
        weight.grad = torch.tensor(gradient, dtype=torch.float64)
        optimiser.step()
    assert weight.tolist() == pytest.approx(rmsprop(GRADIENTS, **settings, kind=kind), rel=1e-12)


def test_a_variance_that_rounds_below_zero_is_none() -> None:
    """Equal gradients that are large, in float32: the squares differ from the squared average by more than epsilon."""
    weight = torch.nn.Parameter(torch.zeros(50))
    optimiser = GravesRMSprop().make([weight], 1e-4)
    for _ in range(400):
        weight.grad = torch.linspace(1e3, 1e4, 50)
        optimiser.step()
        assert weight.isfinite().all()


@pytest.mark.parametrize(
    ("optimiser", "expected"),
    [
        ("adam", torch.optim.Adam([torch.zeros(1)])),
        ("adamw", torch.optim.AdamW([torch.zeros(1)])),
        ("rmsprop", torch.optim.RMSprop([torch.zeros(1)])),
        ("sgd", torch.optim.SGD([torch.zeros(1)])),
    ],
)
def test_optimisers_of_torch_have_its_settings(optimiser: str, expected: torch.optim.Optimizer) -> None:
    made = make(optimiser=optimiser).torch_optimiser
    assert type(made) is type(expected)
    assert {**made.defaults, "fused": None} == {**expected.defaults, "fused": None}
    given: dict[str, Any] = {
        "adam": {"betas": [0.5, 0.6], "epsilon": 0.1},
        "adamw": {"betas": [0.5, 0.6], "epsilon": 0.1},
        "rmsprop": {"smoothing": 0.7, "momentum": 0.6, "epsilon": 0.1},
        "sgd": {"momentum": 0.6},
    }[optimiser]
    block = {"type": optimiser, "weight_decay": 0.2, **given}
    group = make(optimiser=block, lr=0.5).torch_optimiser.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.2)
    names = {"epsilon": "eps", "smoothing": "alpha"}
    for name, value in given.items():
        assert group[names.get(name, name)] == (tuple(value) if name == "betas" else value)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"type": "adam", "momentum": 0.9}, "optimiser.momentum: unknown option; optimiser.type .*rmsprop.* has it"),
        (
            {"type": "graves-rmsprop", "betas": [0.9, 0.9]},
            "optimiser.betas: .*; optimiser.type adam or adamw has it",
        ),
        ({"type": "adam", "betas": [0.9, 1.0]}, r"optimiser.betas.1: got 1.0; allowed: less than 1"),
        ("adamx", "optimiser.type: got 'adamx'; did you mean 'adam'"),
        ({"momentum": 0.9}, "optimiser.type: missing"),
    ],
)
def test_what_an_optimiser_does_not_have_is_refused(block: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(optimiser=block)


def test_the_learning_rate_is_the_agents_or_the_published_one() -> None:
    assert make(optimiser="graves-rmsprop").learning_rate(0) == 1e-4
    assert make(optimiser="rmsprop").learning_rate(0) == 1e-2
    assert make(optimiser="rmsprop", lr=0.5).learning_rate(0) == 0.5
    with pytest.raises(ValueError, match=r"final_lr: got 0.001; allowed is at most lr \(0.0001\)"):
        make(optimiser="graves-rmsprop", final_lr=1e-3)


class Signs(Optimiser):
    """An optimiser from elsewhere: steps of the same length along the sign of each gradient, less and less."""

    published_lr = 0.25
    decay: float = 0.5

    def make(self, parameters: Any, lr: float) -> torch.optim.Optimizer:
        decay = self.decay

        class Signed(torch.optim.Optimizer):
            @torch.no_grad()
            def step(self, closure: Any = None) -> None:  # type: ignore[override]
                for group in self.param_groups:
                    for parameter in group["params"]:
                        count = self.state[parameter].get("count", 0)
                        parameter.sub_(parameter.grad.sign() * group["lr"] * decay**count)
                        self.state[parameter]["count"] = count + 1

        return Signed(parameters, {"lr": lr})


def test_an_optimiser_from_elsewhere() -> None:
    agent = make(optimiser=Signs(decay=0.1), steps=4)
    assert agent.learning_rate(0) == 0.25
    state = agent.circuit.state_dict()["output.bias"].clone()
    agent.train_step()
    assert torch.allclose((agent.circuit.state_dict()["output.bias"] - state).abs(), torch.tensor(0.25))
    again = make(seed=0, optimiser=Signs(decay=0.1), steps=4)
    again.load_state_dict(copy.deepcopy(agent.state_dict()))
    for one in (agent, again):
        one.fit()
    assert same(agent.state_dict(), again.state_dict())
    with pytest.raises(ValueError, match=r"agent\.optimiser\.type: 'Signs' -> 'adam'"):
        make().load_state_dict(agent.state_dict())


def test_an_optimiser_that_makes_none_is_named() -> None:
    class Wrong(Signs):
        def make(self, parameters: Any, lr: float) -> Any:
            return [*parameters]

    with pytest.raises(TypeError, match=r"Wrong\.make: returns a list; expected a torch Optimizer"):
        make(optimiser=Wrong())


def dropping(seed: int = 0, recorder: Recorder | None = None, **options: Any) -> BackpropAgent:
    """An agent whose circuit drops half of the outputs of its first layer."""
    env = CopyEnv(width=3, max_length=3, test_lengths=[5])
    torch.manual_seed(1)
    circuit = papertape.NTM(5, 3, hidden_size=8, num_layers=2, dropout=0.5, memory_size=6, word_size=4)
    return BackpropAgent(env, circuit, **{**SMALL, **options}, seed=seed, recorder=recorder)


def test_dropout_follows_from_the_seed_and_is_resumed_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    unbroken = dropping(steps=6, recorder=Keep())
    torch.set_rng_state(state)
    unbroken.fit()
    assert torch.equal(torch.get_rng_state(), state)
    watched, other = dropping(steps=6, evaluate_every=1), dropping(seed=1, steps=6)
    torch.rand(7)
    for agent in (watched, other):
        agent.fit()
    assert same(watched.circuit.state_dict(), unbroken.circuit.state_dict())
    assert not same(other.circuit.state_dict(), unbroken.circuit.state_dict())
    first, second = dropping(steps=6), dropping(steps=6)
    while first.step < 3:
        first.train_step()
    first.judge()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    torch.rand(3)
    second.fit()
    assert same(second.state_dict(), unbroken.state_dict())


def test_dropout_drops_in_training_other_units_at_each_step() -> None:
    """The same batch at the same weights is answered in another way at the next step, and by all units when judged."""
    agent = dropping(lr=1e-30)
    batch = agent.env.sample(4, torch.Generator().manual_seed(5))
    losses = []
    for _ in range(3):
        agent.circuit.train()
        with agent.own_randomness(0):
            losses.append(float(agent._backward(agent.circuit, batch, agent.env.normaliser(batch))[0]))
        agent.step += 1
    assert len(set(losses)) == 3
    agent.circuit.eval()
    assert len({float(agent._backward(agent.circuit, batch, agent.env.normaliser(batch))[0]) for _ in range(2)}) == 1


class Ahead(torch.nn.Module):
    """A plain module with a state: layers of one step each, with the last answer fed back."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(5 + 3, 3)

    def forward(self, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        state = inputs.new_zeros(inputs.shape[1], 3) if state is None else state
        answers = []
        for x in inputs:
            state = self.layer(torch.cat([x, state.tanh()], 1))
            answers.append(state)
        return torch.stack(answers), state


@pytest.mark.parametrize("truncate", [None, 2])
def test_any_module_can_be_trained(truncate: int | None) -> None:
    torch.manual_seed(0)
    module = Ahead()
    agent = BackpropAgent(
        CopyEnv(width=3, max_length=3, test_lengths=[5]), module, **SMALL, steps=40, lr=0.03, truncate=truncate
    )
    before = agent.evaluate()["validation/length 1-3/loss"]
    after = agent.fit()["validation/length 1-3/loss"]
    assert after < before
    batch = agent.env.sample(2, torch.Generator().manual_seed(0))
    assert torch.equal(module(batch.inputs)[0], agent.circuit(batch.inputs)[0])


def test_a_module_that_answers_otherwise_is_named() -> None:
    env = CopyEnv(width=3)
    with pytest.raises(ValueError, match=r"circuit: Linear answers inputs \[2, 3, 5\] by shape \[2, 3, 4\]; expected"):
        BackpropAgent(env, torch.nn.Linear(5, 4))
    with pytest.raises(ValueError, match=r"circuit: Linear answers inputs \[2, 3, 5\] by an error: RuntimeError: mat1"):
        BackpropAgent(env, other := torch.nn.Linear(3, 3))
    assert other.training
    with pytest.raises(ValueError, match="circuit: got a str; expected a Circuit or any other torch.nn.Module"):
        BackpropAgent(env, "ntm")


def test_parts_that_do_not_go_together() -> None:
    circuit = papertape.NTM(5, 3)
    with pytest.raises(ValueError, match="env: got a TMazeWorld; expected a Env"):
        BackpropAgent(TMazeWorld(), circuit)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="circuit: got a Tape, which has no gradient; BackpropAgent needs one"):
        BackpropAgent(CopyEnv(width=3), papertape.Tape(5, 3))
    circuit.autocast = torch.bfloat16
    with pytest.raises(ValueError, match="its autocast is torch.bfloat16; allowed with EvolutionAgent: float32,"):
        EvolutionAgent(CopyEnv(width=3), circuit)
    with pytest.raises(ValueError, match="its backend is 'native'; allowed with MixedAgent: auto, eager"):
        MixedAgent(CopyEnv(width=3), papertape.NTM(5, 3, backend="native"))


def test_circuit_that_does_not_fit() -> None:
    env = CopyEnv(width=3)
    with pytest.raises(ValueError, match="input_size: the circuit has 6, the env 5"):
        BackpropAgent(env, papertape.NTM(6, 3))
    with pytest.raises(ValueError, match="output_size: the circuit has 4, the env 3"):
        BackpropAgent(env, papertape.NTM(5, 4))
    with pytest.raises(ValueError, match="batch_first: got True"):
        BackpropAgent(env, papertape.NTM(5, 3, batch_first=True))


def test_foreign_checkpoints() -> None:
    agent = make()
    state = agent.state_dict()
    with pytest.raises(ValueError, match=r"weight 'controller\.inputs\.0\.weight' has shape \[32, 9\]; this"):
        make(circuit="dnc").load_state_dict(state)
    with pytest.raises(ValueError, match="entry 'optimiser' is missing"):
        agent.load_state_dict({name: value for name, value in state.items() if name != "optimiser"})
    with pytest.raises(ValueError, match="entry 'population' is unknown"):
        agent.load_state_dict({**state, "population": 1})
    circuit = {name: value for name, value in state["circuit"].items() if name != "output.bias"}
    with pytest.raises(ValueError, match=r"weight 'output\.bias' is missing"):
        agent.load_state_dict({**state, "circuit": circuit})


@pytest.mark.parametrize("kind", ["backprop", "evolution"])
def test_goes_on_from_another_kind_of_device(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Generators of a GPU keep 16 bytes, that of the CPU 5,056; neither takes those of the other."""
    env = CopyEnv(width=2, max_length=2)

    def build() -> Any:
        circuit = papertape.NTM(env.input_size, env.output_size, hidden_size=4, memory_size=6, word_size=4)
        if kind == "backprop":
            return BackpropAgent(env, circuit, steps=2, batch_size=2)
        return EvolutionAgent(env, circuit, generations=2, batch_size=2, strategy={"type": "snes", "population": 4})

    first = build()
    first.fit()
    state = first.state_dict()
    for own in (state, state.get("strategy", {})):
        own["generator"] = torch.arange(16, dtype=torch.uint8)
    again = build()
    again.load_state_dict(copy.deepcopy(state))
    again.train_step()
    assert again.step == 3
    assert caplog.text.count("saved on another kind of device than cpu; goes on with other random numbers") == 1


@pytest.mark.parametrize("kind", [BackpropAgent, EvolutionAgent, MixedAgent])
def test_env_and_circuit_on_different_devices_are_refused(kind: Any) -> None:
    env = CopyEnv(width=2, max_length=2)
    circuit = papertape.NTM(env.input_size, env.output_size, device="meta")
    with pytest.raises(ValueError, match="circuit: is on meta, the env on cpu; allowed is one device"):
        kind(env, circuit)
