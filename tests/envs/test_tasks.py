"""What holds for every task that is registered, and what is refused of one that breaks the contract."""

from __future__ import annotations

import copy
import math
import pickle
import re
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from pydantic import Field
from torch import Tensor

import papertape
from papertape.agents.evaluation import evaluate
from papertape.core.component import options_of
from papertape.core.env import Batch, Env
from papertape.core.registry import entries
from papertape.core.world import Step, World
from papertape.envs import CopyEnv, DataError, SequenceEnv, TMazeWorld, XorEnv

TASKS = {name: task for name, task in entries("env").items() if task.__module__.startswith("papertape.envs.")}


def make(name: str, **options: Any) -> Any:
    if name == "gym" and find_spec("gymnasium") is None:
        pytest.skip("gymnasium is not installed")
    try:
        return TASKS[name](**options)
    except DataError:
        pytest.skip("the images are missing and cannot be downloaded")


def test_all_are_here() -> None:
    assert sorted(TASKS) == [
        *("arithmetic", "associative-recall", "autoencode", "battleship", "binary-addition"),
        *("binary-multiplication", "brackets", "bucket-sort", "compute-sqrt", "concentration", "copy"),
        *("count-recall", "cued-t-maze", "cycle-navigation", "duplicate-string", "dynamic-ngrams"),
        *("even-pairs", "gym", "higher-lower", "images", "induction-heads", "letters", "minesweeper"),
        *("missing-duplicate", "modular-arithmetic", "modular-arithmetic-brackets", "mqar"),
        *("multiarmed-bandit", "n-delayed-match-to-sample", "n-parity", "noisy-position-only-cartpole"),
        *("noisy-position-only-pendulum", "nth-farthest", "odds-first", "one-shot", "parity-check"),
        *("permuted-images", "position-only-cartpole", "position-only-pendulum", "priority-sort"),
        *("repeat-copy", "repeat-first", "repeat-previous", "reverse-string", "selective-copying"),
        *("slowly-changing", "solve-equation", "stack-manipulation", "stream", "t-maze"),
        *("velocity-only-cartpole", "word-problem", "xor"),
    ]


@pytest.mark.parametrize("name", TASKS)
def test_each_is_built_without_arguments_and_keeps_its_contract(name: str) -> None:
    task = make(name)
    assert task.device == torch.device("cpu")
    task.check()
    options = task.options.model_dump()
    assert options.pop("type") == name and "device" not in options and "make" not in options
    again = task.changed()
    assert again.options == task.options and again.device == task.device
    assert (again.input_size, again.output_size) == (task.input_size, task.output_size)
    assert options_of(TASKS[name]).model_validate({"type": name, **options}) == options_of(TASKS[name])(type=name)
    task.close(), again.close()


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if issubclass(task, Env)])
def test_an_answer_that_is_no_number_is_no_share_of_right_ones(name: str) -> None:
    env = make(name)
    circuit = papertape.GRU(env.input_size, env.output_size, hidden_size=2)
    options = {"sequences": 2, "batch_size": 2, "seed": 0}
    assert not math.isnan(evaluate(env, circuit, **options)[env.error_metric])
    with torch.no_grad():
        next(circuit.parameters()).fill_(torch.nan)
    assert math.isnan(evaluate(env, circuit, **options)[env.error_metric])


@pytest.mark.parametrize("kind", ["env", "curriculum"])
def test_every_option_is_described(kind: str) -> None:
    for name, entry in entries(kind).items():
        options = options_of(entry).model_fields.items()
        bare = [option for option, field in options if option != "type" and not field.description]
        assert not bare, f"{name}: {bare}"


@pytest.mark.parametrize("name", TASKS)
def test_an_unknown_option_is_named_with_the_nearest(name: str) -> None:
    _, first, *_ = options_of(TASKS[name]).model_fields  # after its type
    with pytest.raises(TypeError, match=f"unknown argument '{first}x'; did you mean '{first}'"):
        make(name, **{f"{first}x": 1})
    with pytest.raises(TypeError, match=r"got 1 arguments by place; allowed: none"):
        TASKS[name](object())


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_a_device_is_given_by_name_or_as_itself(device: Any) -> None:
    assert CopyEnv(device=device).device == torch.device("cpu")


@pytest.mark.parametrize("device", ["gpu", 1.5, None, "cuda:x"])
def test_a_device_that_is_none_is_refused(device: Any) -> None:
    with pytest.raises(
        ValueError, match=f"^device: got {re.escape(repr(device))}; allowed: a torch.device or its name"
    ):
        CopyEnv(device=device)


def test_options_stay_what_they_were_in_copies_and_sets() -> None:
    env = CopyEnv(width=3, max_length=6, curriculum={"type": "growing", "start": 2})
    env.advance(0.0)
    for other in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        assert other.options == env.options and other.state_dict() == {"level": 1}
        assert torch.equal(
            other.sample(4, torch.Generator().manual_seed(0)).inputs,
            env.sample(4, torch.Generator().manual_seed(0)).inputs,
        )
    lesson = env.lesson()
    assert isinstance(lesson, CopyEnv) and (lesson.width, lesson.max_length, lesson.lengths) == (3, 3, "sequence")
    assert env.max_length == 6


class Steps(Env):
    """Hands out what it is told to."""

    made: Any = Field(exclude=True, description="maps the number of sequences to what is handed out")

    def setup(self) -> None:
        self.input_size, self.output_size = 3, 1

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        return self.made(batch_size)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda b: zeros(4, b, 3), "returns a Tensor; expected a Batch of three tensors"),
        (
            lambda b: Batch(zeros(b, 4, 3), zeros(b, 4, 1), zeros(b, 4)),
            "inputs of 3 .* shape [3, 4, 3]; .* [3, 3, 3], time first",
        ),
        (
            lambda b: Batch(zeros(4, 2, 3), zeros(4, 2, 1), zeros(4, 2)),
            "inputs of 3 .* shape [4, 2, 3]; .* [4, 3, 3], time first",
        ),
        (
            lambda b: Batch(zeros(4, b, 3), zeros(4, b), zeros(4, b)),
            "targets of 3 .* [4, 3]; expected floats of shape [4, 3, 1]",
        ),
        (lambda b: Batch(zeros(4, b, 3), zeros(4, b, 1), zeros(4, b, 1)), "mask of 3 .* [4, 3, 1]; expected .* [4, 3]"),
        (lambda b: Batch(zeros(4, b, 3).long(), zeros(4, b, 1), zeros(4, b)), "inputs of 3 sequences: torch.int64"),
        (lambda b: Batch(zeros(4, b, 3), None, zeros(4, b)), "returns a Batch; expected a Batch of three tensors"),
        (lambda b: Batch(zeros(), zeros(4, b, 1), zeros(4, b)), "inputs of 3 sequences: torch.float32 of shape []"),
    ],
)
def test_a_batch_that_breaks_the_contract_is_named(made: Any, message: str) -> None:
    with pytest.raises(TypeError, match="Steps.sample: " + re.escape(message).replace(r"\.\*", ".*")):
        Steps(made=made).check()


def test_a_batch_that_keeps_the_contract() -> None:
    def good(batch_size: int) -> Batch:
        return Batch(zeros(4, batch_size, 3), zeros(4, batch_size, 1), zeros(4, batch_size) + 1)

    Steps(made=good).check()

    class Aimless(Steps):
        error_metric = "beauty"

    with pytest.raises(TypeError, match="Aimless: error_metric is 'beauty'; expected one of loss, bits_wrong"):
        Aimless(made=good).check()


class Still(World):
    """Hands out what it is told to."""

    error_metric = "shortfall"
    observed: Any = Field(lambda count: (count, 4), exclude=True, description="shape of the observations")
    rewarded: Any = Field(lambda count: (count,), exclude=True, description="shape of the rewards")

    def setup(self) -> None:
        self.input_size, self.output_size = 4, 2

    def reset(self, episodes: int, generator: torch.Generator, *, copies: int = 1) -> Any:
        return zeros(*self.observed(episodes * copies)), {"shortfall": zeros(episodes * copies)}

    def step(self, actions: Tensor) -> Step:
        count = len(actions)
        over = torch.ones(count, dtype=torch.bool)
        return Step(zeros(count, 4), zeros(*self.rewarded(count)), over, over, {"shortfall": zeros(count)})


def test_episodes_that_break_the_contract_are_named() -> None:
    Still().check()
    with pytest.raises(TypeError, match=r"Still.reset: observations of 2 episodes.* \[4, 6\]; .* \[6, 4\]"):
        Still(observed=lambda count: (4, count)).check()
    with pytest.raises(TypeError, match=r"Still.step: rewards of 2 episodes.* \[6, 1\]; expected .*\[6\]"):
        Still(rewarded=lambda count: (count, 1)).check()


@pytest.mark.parametrize("size", [None, 0, 2.0, True])
def test_a_task_without_sizes_is_refused(size: Any) -> None:
    class Sizeless(XorEnv):
        def setup(self) -> None:
            super().setup()
            self.output_size = size

    with pytest.raises(TypeError, match=rf"Sizeless: output_size is {size}; expected a whole number of at least 1"):
        Sizeless()


def test_a_world_without_an_error_metric_is_refused() -> None:
    class Aimless(World):
        input_size = output_size = 2
        reset = TMazeWorld.reset
        step = TMazeWorld.step

    with pytest.raises(TypeError, match="Aimless: has no error_metric"):
        Aimless()


def test_a_generated_task_of_ones_own_has_curriculum_and_sets() -> None:
    class Echo(SequenceEnv):
        min_delay: int = Field(1, ge=1, description="shortest delay")
        max_delay: int = Field(5, ge=1, description="longest delay")

        @staticmethod
        def ranges(options: Any) -> dict[str, tuple[int, int]]:
            return {"delay": (options.min_delay, options.max_delay)}

        def setup(self) -> None:
            self.input_size = self.output_size = 1

        def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
            delay = self.draw(batch_size, generator)["delay"]
            words = self.bits(int(delay.max()) + 1, batch_size, 1, generator=generator)
            return Batch(words, words, torch.ones_like(words[..., 0]))

    env = Echo(max_delay=3, curriculum={"type": "growing"})
    env.check()
    assert list(env.sets("test")) == ["delay 1-3"]
    assert env.sample(1, torch.Generator()).inputs.shape[0] == 2 and env.advance(0.0)
    with pytest.raises(ValueError, match="^min_delay: got 4; allowed is at most max_delay, which is 3"):
        Echo(min_delay=4, max_delay=3)


def test_a_task_says_which_options_mean_something_else_in_another() -> None:
    assert TASKS["dynamic-ngrams"].Options.own_meaning == {"min_length", "max_length", "test_lengths"}
    assert CopyEnv.Options.own_meaning == frozenset()
