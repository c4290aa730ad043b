"""Streams: envs by turns, with channels for all of them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from papertape.agents import BackpropAgent, SelfModifyingAgent
from papertape.circuits import FeedForwardCircuit
from papertape.core.recorder import Recorder
from papertape.core.streams import Stream
from papertape.envs import AssociativeRecallEnv, CopyEnv, RepeatCopyEnv, StreamEnv
from papertape.main import main
from papertape.utils.comparison import outcome
from papertape.utils.run import load_agent_state, read_metrics

STREAMS: tuple[Stream, ...] = ("validation", "test")
PARITY, MATCH = ({"type": name, "max_n": 3} for name in ("n-parity", "n-delayed-match-to-sample"))
SMALL = {"width": 3, "max_length": 2, "test_lengths": [4]}


def make(**options: Any) -> StreamEnv:
    envs = [CopyEnv(**SMALL), RepeatCopyEnv(width=3, max_length=2, max_repeats=2), CopyEnv(**SMALL, min_length=2)]
    return StreamEnv(envs=envs, **{"every": 4, "pad": True, **options})


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, [0, 0, 1, 1, 2, 2, 0, 0, 1]), ({"again": False}, [0, 0, 1, 1, 2, 2, 2, 2, 2]), ({"every": 2}, [0, 1, 2] * 3)],
)
def test_envs_come_in_turn(options: dict[str, Any], expected: list[int]) -> None:
    env, found = make(**options), []
    for _ in expected:
        found.append(env.task_number)
        env.move_on(2)
    assert found == expected


def test_an_env_is_judged_on_what_it_draws_itself() -> None:
    stream = StreamEnv(envs=["parity-check", "even-pairs"])
    for name, env in (("parity-check", stream.envs[0]), ("even-pairs", stream.envs[1])):
        for label, judged in env.sets("validation").items():
            alone = list(judged.drawn(128, 16, torch.Generator().manual_seed(3)))
            here = list(stream.sets("validation")[f"{name} {label}"].drawn(128, 16, torch.Generator().manual_seed(3)))
            assert [batch.inputs.shape[0] for batch in here] == [batch.inputs.shape[0] for batch in alone]
            for one, other in zip(here, alone, strict=True):
                assert all(torch.equal(part, known) for part, known in zip(one, other, strict=True))


def test_random_order_depends_on_the_seed_of_the_tasks_and_the_place() -> None:
    def order(seed: int) -> list[int]:
        env, found = make(order="random", every=3, task_seed=seed), []
        for _ in range(300):
            found.append(env.task_number)
            env.move_on(1)
        return found

    found = order(0)
    assert found == order(0) != order(1)
    assert all(len(set(found[start : start + 3])) == 1 for start in range(0, 300, 3))
    assert min(found.count(task) for task in range(3)) > 60


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 60), st.booleans())
def test_batches_losses_and_metrics_are_those_of_the_env_whose_turn_it_is(seen: int, tagged: bool) -> None:
    env = make(tag_channels=tagged)
    env.move_on(seen)
    task = seen // 4 % 3
    own = env.envs[task]
    batch = env.sample(5, torch.Generator().manual_seed(seen))
    plain = own.sample(5, torch.Generator().manual_seed(seen))
    assert env.input_size == max(one.input_size for one in env.envs) + 3 * tagged
    widths = own.input_size, own.output_size
    assert torch.equal(batch.inputs[..., : widths[0]], plain.inputs)
    assert torch.equal(batch.targets[..., : widths[1]], plain.targets)
    tags = batch.inputs[..., env.input_size - 3 :] if tagged else batch.inputs[..., :0]
    for tag in tags.flatten(0, 1).tolist() if tagged else []:
        assert tag == [float(index == task) for index in range(3)]
    assert not batch.inputs[..., widths[0] : env.input_size - 3 * tagged].any()
    outputs = torch.randn(*batch.mask.shape, env.output_size, generator=torch.Generator().manual_seed(0))
    given_outputs = outputs[..., : widths[1]]
    for judged in ("losses", "loss", "right", "errors"):
        assert torch.equal(getattr(env, judged)(outputs, batch), getattr(own, judged)(given_outputs, plain))
    expected = own.metrics(given_outputs, plain)
    assert env.metrics(outputs, batch) == {**expected, "error": expected["bits_wrong"]}


def test_sets_are_of_each_env_and_stay() -> None:
    env = make(tag_channels=True)
    env.move_on(5)
    sets = env.sets("test")
    labels = ["copy 1 length 1-2", "copy 1 length 4", "copy 2 length 2", "copy 2 length 4"]
    assert [name for name in sets if name.startswith("copy")] == labels
    assert [name for name in sets if name.startswith("repeat-copy")] != []
    last = sets["copy 2 length 4"]
    state = copy.deepcopy(env.state_dict())
    last.move_on(100)
    batch = last.sample(2, torch.Generator().manual_seed(0))
    assert batch.inputs[0, 0, -3:].tolist() == [0, 0, 1]
    assert len(batch.mask) == len(
        CopyEnv(**{**SMALL, "min_length": 4, "max_length": 4}).sample(2, torch.Generator()).mask
    )
    assert env.state_dict() == state
    assert (last.task_number, env.task_number) == (2, 1)


def test_what_is_trained_on_is_the_first_set_of_each_env() -> None:
    first = ["copy 1 length 1-2", "repeat-copy length 1-2, repeats 1-2", "copy 2 length 2"]
    for stream in STREAMS:
        assert make().training_range(stream) == first


class Told(BackpropAgent):
    """Is told the errors of its two envs, each on its training range and beyond, and on other sequences."""

    def setup(self) -> None:
        super().setup()
        self.errors: Any = iter(())

    def evaluate(self, stream: Any = "validation", circuit: Any = None) -> dict[str, float]:
        found = zip(self.env.sets(stream), next(self.errors), strict=True)
        return {f"{stream}/{name}/error": error for name, error in found}


class Keep(Recorder):
    def __init__(self) -> None:
        self.best: list[int] = []
        self.messages: list[str] = []

    def checkpoint(self, name: str, state: Any) -> bool:
        self.best += [state["step"]] if name == "best" else []
        return True

    def message(self, text: str) -> None:
        self.messages.append(text)


def told(*errors: tuple[float, ...], **options: Any) -> tuple[Told, Keep]:
    kept, env = Keep(), StreamEnv(envs=[CopyEnv(**SMALL), CopyEnv(**SMALL)], every=1000)
    circuit = FeedForwardCircuit(env.input_size, env.output_size, hidden_sizes=[4])
    agent = Told(env, circuit, batch_size=2, steps=len(errors), evaluate_every=1, recorder=kept, **options)
    agent.errors = iter(errors)
    return agent, kept


@pytest.mark.parametrize(
    ("beyond", "best", "end"),
    [
        (None, [1, 3, 4], 4),  # means of the first and the third: 4, 4.5, 2, 1
        (2.0, [1, 3, 5], 5),  # of all four: 6.5, 6.75, 5, 5.25, 1.25
    ],
)
def test_a_stream_is_judged_by_all_of_its_envs(beyond: float | None, best: list[int], end: int) -> None:
    errors = [(0.0, 9.0, 8.0, 9.0), (0.0, 9.0, 9.0, 9.0), (0.0, 8.0, 4.0, 8.0), (0.5, 9.5, 1.5, 9.5)]
    agent, kept = told(*errors, (1.0, 1.0, 1.0, 2.0), target_error=1.0, target_error_beyond=beyond)
    agent.fit()
    assert (agent.step, agent.target_reached, kept.best) == (end, True, best)


def test_the_target_of_a_stream_is_confirmed_over_all_of_its_envs(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, kept = told((1.0,) * 4, (1.0,) * 4, target_error=1.0, confirmation_sequences=4)
    many = iter([0.0, 3.0, 0.5, 1.5])
    monkeypatch.setattr("papertape.agents.learning.evaluate", lambda *task, **settings: {"error": next(many)})
    agent.fit()
    assert agent.step == 2 and agent.target_reached
    where = "(copy 1 length 1-2, copy 2 length 1-2: error 1.5)"
    assert kept.messages[0] == f"step 1: target met in validation, but not on 4 other sequences {where}"


def test_curricula_rise_in_their_own_turn_and_are_saved() -> None:
    growing = {"type": "copy", "max_length": 3, "curriculum": {"type": "growing"}}
    env = StreamEnv(envs=[growing, growing], every=2)
    env.move_on(2)
    lesson = env.lesson()
    assert lesson is not None
    assert len(lesson.sample(2, torch.Generator()).mask) == 4
    assert env.advance(0.0)
    state = copy.deepcopy(env.state_dict())
    assert state == {"seen": 2, "envs": [{"level": 0}, {"level": 1}]}
    again = StreamEnv(envs=[growing, growing], every=2)
    again.load_state_dict(state)
    assert again.state_dict() == state
    with pytest.raises(ValueError, match="env state: got 2 envs; this stream has 1"):
        StreamEnv(envs=[growing]).load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"envs": ["copy", "repeat-copy"]},
            "envs.1: has output_size 9; the first has 8, allowed is the same for all, or",
        ),
        (
            {"envs": ["copy", "mqar"], "pad": True},
            "envs.1: has token inputs; the first has no token inputs, allowed is",
        ),
        ({"envs": ["copy", "t-maze"], "pad": True}, "envs.1: got a TMazeWorld; allowed are envs that hand out batches"),
        ({"envs": ["copy", "slowly-changing"], "pad": True}, "envs.1: got a SlowlyChangingEnv; allowed are envs"),
        ({"envs": ["mqar"], "tag_channels": True}, "tag_channels: got True; inputs are tokens, which have no channels"),
        ({"order": "random", "again": False}, "again: got False; in random order there is no last env"),
        ({"envs": [{"type": "copy", "wide": 3}]}, "envs.0.wide: unknown option"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        StreamEnv(**options)


def test_tokens_of_any_vocabulary() -> None:
    env = StreamEnv(envs=["induction-heads", "mqar"], pad=True, every=1)
    for _ in range(2):
        batch = env.sample(3, torch.Generator().manual_seed(0))
        env.check_batch(batch, 3)
        outputs = torch.zeros(*batch.mask.shape, env.output_size)
        assert float(env.loss(outputs, batch)) > 0
        env.move_on(1)


@pytest.mark.parametrize("kind", [BackpropAgent, SelfModifyingAgent])
def test_agents_move_on_by_what_they_learned_and_resume_bit_for_bit(kind: Any) -> None:
    def agent() -> Any:
        env = StreamEnv(envs=[CopyEnv(**SMALL), AssociativeRecallEnv(width=3)], pad=True, tag_channels=True, every=6)
        torch.manual_seed(0)
        circuit = FeedForwardCircuit(env.input_size, env.output_size, hidden_sizes=[4])
        often = {} if kind is BackpropAgent else {"check_every": 5, "trial_steps": 3, "policy": "random"}
        return kind(env, circuit, batch_size=4, steps=50, seed=1, evaluate_every=7, evaluation_sequences=4, **often)

    whole, half, again = agent(), agent(), agent()
    for _ in range(23):
        whole.train_step()
    for _ in range(11):
        half.train_step()
    half.evaluate()
    assert half.env.state_dict()["seen"] == 44
    again.load_state_dict(copy.deepcopy(half.state_dict()))
    for _ in range(12):
        again.train_step()
    for name, value in whole.circuit.state_dict().items():
        assert torch.equal(value, again.circuit.state_dict()[name])
    assert again.env.state_dict() == whole.env.state_dict()


def test_a_stream_by_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = {
        "env": {"type": "stream", "envs": [PARITY, MATCH], "every": 8, "tag_channels": True},
        "circuit": {"type": "lstm", "hidden_size": 4},
        "agent": {"type": "backprop", "steps": 6, "batch_size": 4, "evaluate_every": 3, "evaluation_sequences": 4},
        "plots": "off",
        "device": "cpu",
        "threads": 1,
    }
    Path("run.yaml").write_text(yaml.safe_dump(run))
    assert main(["train", "run.yaml", "name=one", "env.every=5"]) == 0
    assert load_agent_state(Path("runs/one"))["env"]["seen"] == 24
    assert main(["train", "--resume", "one", "agent.steps=8"]) == 0
    assert load_agent_state(Path("runs/one"))["env"]["seen"] == 32
    assert main(["test", "one"]) == 0
    rows = [row for row in read_metrics(Path("runs/one/metrics.jsonl")) if any("validation" in key for key in row)]
    trained = StreamEnv(envs=[PARITY, MATCH]).training_range("validation")
    of_each = [[row[f"validation/{name}/error"] for name in trained] for row in rows]
    curve = outcome(Path("runs/one"), "one", {}, {}, "").curve
    assert curve == [(row["answered"], sum(errors) / 2) for row, errors in zip(rows, of_each, strict=True)]
    assert len(curve) == 3
