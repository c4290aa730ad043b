"""gymnasium's environments as worlds, against gymnasium itself."""

from __future__ import annotations

import functools
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from papertape.agents import EvolutionAgent
from papertape.agents.learning import TrainingError
from papertape.circuits import FeedForwardCircuit
from papertape.core import install
from papertape.core.distributed import Processes
from papertape.core.recorder import Recorder
from papertape.core.world import Episodes, WorldError
from papertape.envs import GymWorld
from papertape.utils.vector_environments import Separate, Workers, cores

gymnasium = pytest.importorskip("gymnasium")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def balance(observations: Tensor) -> Tensor:
    """A pole is balanced by following its fall."""
    fall = observations[:, 2] + observations[:, 3]
    return torch.stack([-fall, fall], dim=-1)


def clumsy(observations: Tensor) -> Tensor:
    """Falls after some 40 steps."""
    return torch.stack([-observations[:, 2], observations[:, 2]], dim=-1)


def test_same_returns_as_gymnasium_alone() -> None:
    world = GymWorld()
    assert (world.input_size, world.output_size, world.step_limit, world.solved_at) == (4, 2, 500, 475.0)
    episodes = world.play(clumsy, 4, generator(3), copies=2)
    assert torch.equal(episodes.returns[0], episodes.returns[1])
    seeds = torch.randint(2**31, (4,), generator=generator(3)).tolist()
    for seed, returned, length in zip(seeds, episodes.returns[0], episodes.lengths[0], strict=True):
        env = gymnasium.make("CartPole-v1")
        observation, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            action = int(clumsy(torch.as_tensor(observation).unsqueeze(0)).argmax())
            observation, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        assert float(returned) == total == float(length)
    assert len(set(episodes.returns[0].tolist())) > 1
    assert world.metrics(episodes)["shortfall"] == pytest.approx(475 - float(episodes.returns.mean()))
    world.close()


def test_an_episode_that_is_over_stays_so_with_zero_rewards() -> None:
    world = GymWorld()
    world.reset(3, generator())
    ended = torch.zeros(3, dtype=torch.bool)
    for _ in range(30):
        step = world.step(torch.zeros(3, dtype=torch.long))
        assert torch.equal(step.rewards, (~ended).float())
        ended |= step.terminated | step.truncated
        assert torch.equal(step.terminated, ended)
        assert (step.observations[ended] == 0).all() and (step.observations[~ended] != 0).any(-1).all()
    assert ended.all()


def test_solved_and_cut_off() -> None:
    world = GymWorld(max_steps=20, target=15.0)
    episodes = world.play(balance, 2, generator())
    assert episodes.returns.tolist() == [[20.0, 20.0]]
    assert world.metrics(episodes) == {"reward": 20.0, "steps": 20.0, "shortfall": 0.0}
    step = world.reset(2, generator()) and [world.step(torch.tensor([0, 1])) for _ in range(20)][-1]
    assert not (step.terminated & step.truncated).any()


@pytest.mark.parametrize("vectorization", ["async", "vector_entry_point"])
def test_other_ways_to_run_side_by_side(vectorization: str) -> None:
    world = GymWorld(vectorization=vectorization, max_steps=60)
    first = world.play(clumsy, 2, generator())
    assert torch.equal(first.returns, world.play(clumsy, 2, generator()).returns)
    assert first.returns.shape == (1, 2) and (first.returns > 5).all()
    if vectorization == "async":
        assert torch.equal(first.returns, GymWorld(max_steps=60).play(clumsy, 2, generator()).returns)
    world.close()


def test_environments_are_kept_between_resets() -> None:
    world = GymWorld()
    world.reset(2, generator())
    assert isinstance(world._episodes, Separate)
    held = list(world._episodes.envs)
    world.reset(1, generator(), copies=2)
    assert world._episodes.envs == held
    world.reset(3, generator())
    assert world._episodes.envs[:2] == held
    world.close()
    for call in (
        lambda: world.step(torch.zeros(3, dtype=torch.long)),
        lambda: world.keep(torch.zeros(1, dtype=torch.long)),
        lambda: world.renew(torch.ones(3, dtype=torch.bool), generator()),
    ):
        with pytest.raises(RuntimeError, match="no reset"):
            call()


def test_the_step_that_cuts_an_episode_off_shows_its_last_observation() -> None:
    env = gymnasium.make("CartPole-v1")
    seed = int(torch.randint(2**31, (1,), generator=generator()))
    env.reset(seed=seed)
    expected = [env.step(0)[0] for _ in range(4)][-1]
    for mode in [*autoreset_modes(), None]:
        keywords = {} if mode is None else {"vector_kwargs": {"autoreset_mode": mode}}
        makers = [None] if mode is None else [None, lambda count, mode=mode: _async(count, mode)]
        for maker in makers:
            world = GymWorld(arguments={} if maker else keywords, max_steps=4, target=1.0, make=maker)
            world.reset(1, generator())
            steps = [world.step(torch.zeros(1, dtype=torch.long)) for _ in range(5)]
            assert steps[3].truncated.all() and (steps[4].observations == 0).all()
            torch.testing.assert_close(steps[3].observations[0], torch.as_tensor(expected))
            world.close()


def _async(count: int, mode: Any) -> Any:
    return gymnasium.vector.AsyncVectorEnv(
        [lambda: gymnasium.make("CartPole-v1", max_episode_steps=4)] * count, autoreset_mode=mode
    )


@pytest.mark.parametrize("kind", ["sync", "workers", "disabled"])
def test_single_episodes_are_dropped_and_begun_anew(kind: str) -> None:
    options: dict[str, Any] = {"workers": {"vectorization": "async", "workers": 2}}.get(kind, {})
    if kind == "disabled":
        modes = {mode.value: mode for mode in autoreset_modes()}
        if not modes:
            pytest.skip("this gymnasium knows no modes")
        vector = gymnasium.vector.AsyncVectorEnv
        options = {
            "make": lambda count: vector(
                [lambda: gymnasium.make("CartPole-v1")] * count, autoreset_mode=modes["Disabled"]
            ),
            "max_steps": 500,
            "target": 475.0,
        }
    world, whole = GymWorld(**options), GymWorld()
    world.reset(5, generator(1))
    whole.reset(5, generator(1))
    assert world.renewable
    right = torch.ones(5, dtype=torch.long)
    for _ in range(5):
        world.step(right)
        whole.step(right)
    rows = torch.tensor([0, 1, 4])
    world.keep(rows)
    found, expected = world.step(right[rows]), whole.step(right)
    assert torch.equal(found.observations, expected.observations[rows])
    assert torch.equal(found.rewards, expected.rewards[rows])
    over = torch.tensor([True, False, True])
    first = world.renew(over, generator(2))
    fresh, other = GymWorld(), torch.ones(2, dtype=torch.long)
    assert torch.equal(first[over], fresh.reset(2, generator(2))[0]) and (first[~over] == 0).all()
    for _ in range(9):
        found = world.step(right[rows])
        assert torch.equal(found.observations[over], (shown := fresh.step(other)).observations)
        assert torch.equal(found.terminated[over], shown.terminated)
        assert torch.equal(found.observations[~over][0], whole.step(right).observations[1])
    world.close()


def test_what_begins_anew_by_itself_cannot_be_renewed() -> None:
    world = GymWorld(vectorization="vector_entry_point")
    world.reset(2, generator())
    assert not world.renewable
    with pytest.raises(RuntimeError, match="renew: the episodes of CartPole-v1 .* expected vectorization sync"):
        world.renew(torch.tensor([True, False]), generator())
    world.close()


class Echo(gymnasium.Env):
    """Shows the last observation given and remembers the last action."""

    def __init__(self, observations: Any, actions: Any) -> None:
        self.observation_space, self.action_space = observations, actions
        self.observation_space.seed(0)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(np.asarray(action)), action
        return self.observation_space.sample(), float(np.sum(action)), False, False, {}


def echo(observations: Any, actions: Any) -> GymWorld:
    spaces = gymnasium.spaces
    observations = observations or spaces.Box(-1, 1, (2,))
    return GymWorld(
        max_steps=3,
        target=0.0,
        make=lambda count: gymnasium.vector.SyncVectorEnv([lambda: Echo(observations, actions)] * count),
    )


@pytest.mark.parametrize(
    ("actions", "outputs", "decided"),
    [
        (gymnasium.spaces.Discrete(3, start=5), [[0.0, 2, 1], [3, 2, 1]], [6, 5]),
        (gymnasium.spaces.MultiDiscrete([2, 3]), [[0.0, 1, 5, 6, 7], [1, 0, 9, 6, 7]], [[1, 2], [0, 0]]),
        (gymnasium.spaces.MultiBinary(3), [[-1.0, 0, 1], [2, 2, -2]], [[0, 0, 1], [1, 1, 0]]),
        (gymnasium.spaces.Box(-2, 6, (2,)), [[0.0, 100], [-100, 0]], [[2, 6], [-2, 2]]),
        (gymnasium.spaces.Box(-np.inf, np.inf, (1,)), [[7.5], [-3]], [[7.5], [-3]]),
        (gymnasium.spaces.Box(0, np.inf, (1,)), [[7.5], [-3]], [[7.5], [0]]),
        (gymnasium.spaces.Box(0, 0.1, (1,), np.float64), [[100.0], [0]], [[0.1], [0.05]]),
        (gymnasium.spaces.Box(-1.5e308, 1.5e308, (1,), np.float64), [[-1000.0], [0]], [[-1.5e308], [0]]),
        (gymnasium.spaces.Box(-2, 2, (), np.int64), [[0.0], [100]], [[0], [2]]),
        (gymnasium.spaces.Box(3, np.inf, (1,), np.int64), [[7.6], [0]], [[8], [3]]),
        (gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.int32), [[7.6], [-7.6]], [[8], [-8]]),
        (
            gymnasium.spaces.Box(np.array([0, 5]), np.array([1, 5]), dtype=np.uint8),
            [[0.1, 9], [-9, -9]],
            [[1, 5], [0, 5]],
        ),
    ],
)
def test_outputs_become_actions(actions: Any, outputs: list, decided: list) -> None:
    world = echo(None, actions)
    assert world.output_size == len(outputs[0])
    found = world.decide(torch.tensor(outputs))
    torch.testing.assert_close(found, torch.tensor(decided, dtype=found.dtype))
    world.reset(2, generator())
    world.check()
    world.reset(2, generator())
    rewards = world.step(found).rewards
    torch.testing.assert_close(rewards, torch.tensor(decided, dtype=torch.float64).reshape(2, -1).sum(-1))
    assert world.play(lambda observations: torch.tensor(outputs), 2, generator()).lengths.tolist() == [[3, 3]]


@pytest.mark.parametrize(
    "space",
    [
        gymnasium.spaces.Box(0, 1, (1,), np.int8),
        gymnasium.spaces.Box(-128, 127, (1,), np.int8),
        gymnasium.spaces.Box(0, 255, (1,), np.uint8),
        gymnasium.spaces.Box(-10, 10, (1,), np.int64),
        gymnasium.spaces.Box(-10, 10, (), np.int32),
        gymnasium.spaces.Box(10**15, 10**15 + 2, (1,), np.uint64),
        gymnasium.spaces.Box(0, 2**24 - 1, (1,), np.int64),
    ],
    ids=str,
)
def test_every_whole_number_has_an_equal_part(space: Any) -> None:
    world = echo(None, space)
    low, high = int(space.low.flatten()[0]), int(space.high.flatten()[0])
    count = high - low + 1
    numbers = torch.arange(count) if count < 1000 else torch.randint(count, (5000,), generator=generator())
    # Where there are many, the ends of a part are all but the same output in single precision.
    for place in (0.1, 0.5, 0.9) if count < 1000 else (0.5,):
        outputs = torch.logit((numbers.double() + place) / count).float().unsqueeze(-1)
        assert torch.equal(world.decide(outputs).flatten(), low + numbers)
    ends = world.decide(torch.tensor([[-1e30], [1e30], [-torch.inf], [torch.inf], [torch.nan]])).flatten()
    assert ends.tolist() == [low, high, low, high, low]


@pytest.mark.parametrize(
    "space",
    [
        gymnasium.spaces.Box(0, 2**24, (1,), np.int64),
        gymnasium.spaces.Box(-(2**31), 2**31 - 1, (2, 2), np.int32),
        gymnasium.spaces.Box(0, 2**64 - 1, (1,), np.uint64),
        gymnasium.spaces.Box(2**60, 2**60 + 1, (1,), np.int64),
        gymnasium.spaces.Box(2**60, np.inf, (1,), np.int64),
        gymnasium.spaces.Box(-np.inf, -(2**60), (1,), np.int64),
    ],
    ids=str,
)
def test_whole_numbers_beyond_what_outputs_tell_apart_are_refused(space: Any) -> None:
    with pytest.raises(
        ValueError, match=r"id: got .*has actions Box.*: whole numbers from .*allowed are at most 16,777,216"
    ):
        echo(None, space)


@pytest.mark.parametrize(
    ("observations", "size"),
    [
        (gymnasium.spaces.Discrete(4, start=2), 4),
        (gymnasium.spaces.Box(0, 255, (2, 3), dtype=np.uint8), 6),
        (gymnasium.spaces.MultiBinary(5), 5),
    ],
)
def test_observations_become_channels(observations: Any, size: int) -> None:
    world = echo(observations, gymnasium.spaces.Discrete(2))
    first, _ = world.reset(6, generator())
    assert world.input_size == size and first.shape == (6, size) and first.dtype == torch.float32
    if isinstance(observations, gymnasium.spaces.Discrete):
        assert torch.equal(first.sum(-1), torch.ones(6)) and (first.max(-1).values == 1).all()


def test_kinds_without_a_tensor_are_refused() -> None:
    spaces = gymnasium.spaces
    with pytest.raises(ValueError, match="which has observations Text"):
        echo(spaces.Text(5), spaces.Discrete(2))
    with pytest.raises(ValueError, match="which has actions Text"):
        echo(None, spaces.Text(5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id": "Nope-v0"}, "id: got 'Nope-v0'; gymnasium says: .*doesn't exist"),
        ({"id": "nowhere_at_all:Foo-v0"}, "id: got .*gymnasium says: No module named"),
        ({"id": "Nope-v0", "arguments": {"wheels": 3}}, "id: got 'Nope-v0'; gymnasium says: .*doesn't exist"),
        ({"arguments": {"wheels": 3}}, "arguments: got {'wheels': 3}; gymnasium says: .*wheels"),
        ({"id": "FrozenLake-v1", "arguments": {"map_name": "3x3"}}, "arguments: got .*gymnasium says: KeyError: '3x3'"),
        ({"id": "FrozenLake-v1", "vectorization": "vector_entry_point"}, "gymnasium says: .*vector entry point"),
    ],
)
def test_environments_that_do_not_serve_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GymWorld(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"id": ""},
        {"max_steps": 0},
        {"vectorization": "threads"},
        {"arguments": 3},
        {"workers": 0, "vectorization": "async"},
        {"workers": 2},
    ],
)
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(options))}: got "):
        GymWorld(**options)


def autoreset_modes() -> list[Any]:
    return [*getattr(gymnasium.vector, "AutoresetMode", ())]


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("mode", [*autoreset_modes(), *(mode.value for mode in autoreset_modes())])
def test_every_mode_of_autoreset_plays_the_same_episodes(mode: Any, vectorization: str) -> None:
    expected = GymWorld().play(clumsy, 4, generator())
    assert len(set(expected.lengths.flatten().tolist())) > 1
    try:
        world = GymWorld(vectorization=vectorization, arguments={"vector_kwargs": {"autoreset_mode": mode}})
    except ValueError as error:
        if isinstance(mode, str) and "autoreset_mode" in str(error):
            pytest.skip("this gymnasium takes no text")
        raise
    for _ in range(2):
        found = world.play(clumsy, 4, generator())
        assert torch.equal(found.lengths, expected.lengths) and torch.equal(found.returns, expected.returns)
    world.close()


@pytest.mark.parametrize("mode", autoreset_modes())
@pytest.mark.parametrize("kind", ["SyncVectorEnv", "AsyncVectorEnv"])
def test_vector_environments_of_ones_own_may_have_any_mode_of_autoreset(kind: str, mode: Any) -> None:
    world = GymWorld(
        max_steps=60,
        target=0.0,
        make=lambda count: getattr(gymnasium.vector, kind)(
            [lambda: gymnasium.make("CartPole-v1")] * count, autoreset_mode=mode
        ),
    )
    found = world.play(clumsy, 3, generator())
    assert torch.equal(found.lengths, GymWorld(max_steps=60).play(clumsy, 3, generator()).lengths)
    world.close()


class Vectors(gymnasium.vector.VectorEnv):
    """Ends after three steps; answers in a way of its own."""

    metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED}
    single_observation_space, single_action_space = gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.Discrete(2)

    def __init__(self, count: int, **changes: Any) -> None:
        self.num_envs, self.changes = count, changes

    def reset(self, *, seed: Any = None, options: dict | None = None) -> tuple[Any, dict]:
        self.steps = 0
        return np.zeros((self.num_envs, 2), np.float32), {}

    def step(self, actions: Any) -> tuple[Any, ...]:
        self.steps += 1
        over = np.full(self.num_envs, self.steps == 3)
        answer = {"rewards": np.ones(self.num_envs), "terminated": over, "truncated": np.zeros_like(over)}
        answer |= {name: change(answer[name]) for name, change in self.changes.items()}
        return np.zeros((self.num_envs, 2), np.float32), *answer.values(), {}


@pytest.mark.parametrize(
    "change", [lambda part: part.astype(int), list, torch.tensor, lambda part: part.astype(object)]
)
def test_what_vector_environments_answer_may_be_numbers_of_any_type(change: Any) -> None:
    world = GymWorld(
        max_steps=9, target=0.0, make=lambda count: Vectors(count, rewards=change, terminated=change, truncated=change)
    )
    assert world.play(clumsy_pair, 4, generator()).returns.tolist() == [[3.0] * 4]


def cartpole() -> Any:
    return gymnasium.make("CartPole-v1")


def clumsy_pair(observations: Tensor) -> Tensor:
    return torch.zeros(len(observations), 2)


@pytest.mark.parametrize("part", ["rewards", "terminated", "truncated"])
@pytest.mark.parametrize(
    ("change", "shape"),
    [(lambda part: part[:, None], r"\[4, 1\]"), (lambda part: part[0], r"\[\]"), (lambda part: part[1:], r"\[3\]")],
)
def test_what_vector_environments_answer_in_another_shape_is_named(part: str, change: Any, shape: str) -> None:
    world = GymWorld(max_steps=9, target=0.0, make=lambda count: Vectors(count, **{part: change}))
    said = rf"^env: Vectors failed at step 1 of an episode: ValueError: got {part} of shape {shape}; expected \[4\]$"
    with pytest.raises(WorldError, match=said):
        world.play(clumsy_pair, 4, generator())


@pytest.mark.parametrize("odd", [None, "1"])
def test_what_vector_environments_pay_that_is_no_number_is_named(odd: Any) -> None:
    world = GymWorld(max_steps=9, target=0.0, make=lambda count: Vectors(count, rewards=lambda part: [odd] * len(part)))
    with pytest.raises(WorldError, match=f"ValueError: got rewards {re.escape(repr([odd] * 2))}; expected numbers$"):
        world.play(clumsy_pair, 2, generator())


@pytest.mark.parametrize("kind", [Vectors, lambda count: gymnasium.vector.SyncVectorEnv([cartpole] * count)])
def test_too_few_environments_are_named(kind: Any) -> None:
    world = GymWorld(max_steps=9, target=0.0, make=lambda count: kind(1))
    with pytest.raises(WorldError, match="at the beginning of an episode: ValueError: make gives 1 environments"):
        world.reset(3, generator())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda count: None, "make: gives a NoneType; expected a vector environment"),
        (lambda count: cartpole(), "make: gives a TimeLimit; expected a vector environment"),
        (lambda: None, "make: TypeError: .* takes 0 positional arguments but 1 was given"),
        (lambda count: 1 / 0, "make: ZeroDivisionError: division by zero"),
    ],
)
def test_what_makes_no_vector_environment_is_said(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        GymWorld(max_steps=9, make=make)


def test_an_unknown_mode_of_autoreset_is_refused() -> None:
    with pytest.raises(ValueError, match="(?i)arguments: got .*; gymnasium says: .*autoreset_?mode"):
        GymWorld(arguments={"vector_kwargs": {"autoreset_mode": "Sometimes"}})


def processes(world: GymWorld) -> list[subprocess.Popen[bytes]]:
    assert isinstance(world._episodes, Workers)
    return world._episodes.processes


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_few_processes_play_the_same_episodes_whatever_their_number(workers: int) -> None:
    world, alone = GymWorld(vectorization="async", workers=workers), GymWorld()
    for episodes, copies in ((1, 1), (3, 2), (1, 1), (2, 4)):
        observations, _ = world.reset(episodes, generator(5), copies=copies)
        assert torch.equal(observations, alone.reset(episodes, generator(5), copies=copies)[0])
        for _ in range(40):
            step, expected = (each.step(each.decide(clumsy(observations))) for each in (world, alone))
            assert torch.equal(step.observations, expected.observations)
            assert torch.equal(step.rewards, expected.rewards)
            assert torch.equal(step.terminated, expected.terminated)
            assert torch.equal(step.truncated, expected.truncated)
            observations = step.observations
    world.close()


def test_a_generation_of_hundreds_is_shared_out_over_processes_that_stay() -> None:
    world = GymWorld(vectorization="async", workers=2, max_steps=3)
    world.play(clumsy, 1, generator())
    (first,) = processes(world)
    world.play(clumsy, 4, generator(), copies=150)
    started = list(processes(world))
    assert len(started) == 2 and started[0] is first
    world.play(clumsy, 100, generator())
    assert processes(world) == started
    world.close()
    assert all(process.returncode == 0 for process in started)
    assert GymWorld(vectorization="async")._episodes.count == cores()  # type: ignore[union-attr]


needs_signals = pytest.mark.skipif(os.name != "posix", reason="kills processes by signals")


@needs_signals
def test_ctrl_c_does_not_reach_the_processes_and_their_death_is_said() -> None:
    world = GymWorld(vectorization="async", workers=1)
    world.reset(2, generator())
    (process,) = processes(world)
    assert os.getsid(process.pid) != os.getsid(0)
    process.kill()
    with pytest.raises(WorldError, match="env: CartPole-v1 failed at step 1 .* a process .* ended with status -9"):
        world.step(torch.zeros(2, dtype=torch.long))
    assert not processes(world)
    assert world.play(clumsy, 2, generator()).lengths.shape == (1, 2)
    world.close()


@needs_signals
def test_processes_that_hang_are_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("papertape.utils.vector_environments.END_SECONDS", 1.0)
    world = GymWorld(vectorization="async", workers=3)
    world.reset(3, generator())
    for process in processes(world):
        process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    world.close()
    assert time.monotonic() - began < 2


KILLED = """
import functools, gymnasium, os, signal, threading, time, torch
from papertape.envs import GymWorld

class Stuck(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}
    def step(self, action):
        time.sleep(600)

def die():
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)

stuck = lambda count: gymnasium.vector.SyncVectorEnv([Stuck] * count)
world = GymWorld(vectorization="async", workers=2, max_steps=9, target=1.0, make=MAKE)
world.reset(2, torch.Generator())
print(*[process.pid for process in world._episodes.processes], flush=True)
threading.Thread(target=die).start()
if world.make:
    world.step(torch.zeros(2, dtype=torch.long))
"""


@needs_signals
@pytest.mark.parametrize("made", ["None", "stuck"])
def test_processes_end_with_a_killed_run(made: str) -> None:
    """Also in the middle of a step that never ends."""
    code = KILLED.replace("MAKE", made)
    killed = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    pids = killed.stdout.split()
    assert len(pids) == 2

    def runs(pid: str) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    deadline = time.monotonic() + 20
    while any(map(runs, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


OWN = """
import gymnasium, sys, torch
import papertape.envs

class Own(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        import own_words
        print("printed by an environment")
        return self.np_random.uniform(-1, 1, 2).astype("float32"), {}
    def step(self, action):
        if action:
            raise ZeroDivisionError("no second action")
        return self.np_random.uniform(-1, 1, 2).astype("float32"), 1.0, False, False, {}

gymnasium.register("Own-v0", entry_point=Own, max_episode_steps=4)
if __name__ == "__main__":
    world = papertape.envs.GymWorld(id="Own-v0", vectorization="async", workers=2, target=1.0)
    lengths = world.play(lambda seen: torch.tensor([[1.0, 0.0]]).expand(3, 2), 3, torch.Generator()).lengths
    assert lengths.tolist() == [[4, 4, 4]], lengths
    try:
        world.play(lambda seen: torch.tensor([[0.0, 1.0]]).expand(3, 2), 3, torch.Generator())
    except papertape.core.world.WorldError as error:
        expected = "env: Own-v0 failed at step 1 of an episode: ZeroDivisionError: no second action"
        assert str(error) == expected, error
    else:
        raise AssertionError
    world.close()
"""


@pytest.mark.slow
def test_environments_of_a_script_and_of_modules_beside_it_reach_the_processes(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(OWN)
    (tmp_path / "own_words.py").write_text("from papertape import NTM\n")
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_gymnasium_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ImportError, match=re.escape(f"gymnasium is not installed; {install.here(install.GYMNASIUM)}")):
        GymWorld()


def test_both_numbers_below_one_are_refused() -> None:
    world = GymWorld()
    for count in ({"episodes": 0}, {"episodes": 1, "copies": 0}):
        with pytest.raises(ValueError, match=f"{list(count)[-1]}: got 0"):
            world.reset(generator=generator(), **count)


def test_rewards_are_shifted_in_training_alone() -> None:
    world = GymWorld(reward_shift=-0.5, max_steps=20)
    assert world.play(balance, 1, generator()).returns.tolist() == [[10.0]]
    (judged,) = world.sets("validation").values()
    assert judged is world.sets("test")["trained"] and judged is not world
    assert judged.play(balance, 1, generator()).returns.tolist() == [[20.0]]
    plain = GymWorld()
    assert plain.sets("test") == {"trained": plain}


def test_the_shortfall_is_that_of_the_mean_as_thresholds_are_meant() -> None:
    """One poor episode among good ones leaves a task solved; a mean that is not a number is no success."""
    world = GymWorld(target=100.0)
    metrics = []
    for last in (120.0, 100.0, math.nan):
        returns = torch.tensor([[90.0, last]], dtype=torch.float64)
        metrics.append(world.metrics(Episodes(returns, torch.ones(1, 2), {})))
    assert [found["shortfall"] for found in metrics[:2]] == [0.0, 5.0]
    assert math.isnan(metrics[2]["shortfall"])


def test_without_a_target_the_shortfall_is_the_negative_return() -> None:
    world = GymWorld(id="Pendulum-v1", max_steps=5)
    assert world.solved_at is None
    played = world.play(lambda seen: torch.zeros(2, 1), 2, generator())
    assert world.metrics(played)["shortfall"] == -world.metrics(played)["reward"] > 0


def test_a_custom_vector_environment_is_shared_out_over_processes() -> None:
    make = functools.partial(gymnasium.make_vec, "CartPole-v1", vectorization_mode="sync")
    world = GymWorld(vectorization="async", workers=2, make=lambda count: make(num_envs=count))
    assert (world.step_limit, world.solved_at) == (500, 475.0)
    found = world.play(clumsy, 3, generator())
    assert torch.equal(found.returns, GymWorld().play(clumsy, 3, generator()).returns)
    world.close()


class Spoilt(gymnasium.Env):
    """Shows no number, or earns none, or fails, in its third step."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, how: str) -> None:
        self.how, self.steps = how, 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.steps += 1
        bad = self.steps == 3
        if bad and self.how == "fails":
            raise ZeroDivisionError("three steps\nare enough")
        if bad and self.how == "stops":
            raise StopIteration
        shown = np.full(1, np.inf if bad and self.how == "shows" else 0, np.float32)
        odd: dict[str, Any] = {
            "earns": np.nan, "earns inf": np.inf, "earns two": np.ones(2), "earns words": "much", "earns digits": "1",
            "earns none": None,
        }  # fmt: skip
        earned = odd.get(self.how, 1.0) if bad else 1.0
        return shown, earned, self.steps == 4, False, {}


def spoilt(how: str) -> GymWorld:
    return GymWorld(
        max_steps=9, target=1.0, make=lambda count: gymnasium.vector.SyncVectorEnv([lambda: Spoilt(how)] * count)
    )


@pytest.mark.parametrize("how", ["shows", "earns", "earns inf"])
def test_what_is_no_finite_number_spoils_the_return(how: str) -> None:
    seen: list[Tensor] = []
    world = spoilt(how)
    played = world.play(lambda shown: torch.zeros(2, 2), 2, generator(), seen=seen.append)
    assert math.isnan(world.metrics(played)["shortfall"]), "no target is reached by it"
    assert played.returns.isnan().all() and played.lengths.tolist() == [[4, 4]]
    assert all(shown.isfinite().all() for shown in seen)


def diverging(count: int, ends: bool) -> Any:
    """CartPole whose episodes of an odd seed show no number in their tenth step, with which they may end."""

    class Diverges(gymnasium.Wrapper):
        def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
            shown, reward, *_, info = super().step(action)
            self.steps += 1
            bad = self.steps == 10 and self.odd
            return shown * (np.nan if bad else 1), reward, ends and self.steps == 10, False, info

        def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
            self.steps, self.odd = 0, bool(seed is not None and seed % 2)
            return super().reset(seed=seed, options=options)

    return gymnasium.vector.SyncVectorEnv([lambda: Diverges(cartpole())] * count)


class Together(gymnasium.vector.VectorWrapper):
    """Steps all episodes at once."""


@pytest.mark.parametrize("kind", [lambda made: made, Together], ids=["apart", "together"])
@pytest.mark.parametrize("ends", [False, True], ids=["cut off", "ended"])
def test_a_last_observation_that_is_no_finite_number_spoils_the_return(kind: Any, ends: bool) -> None:
    world = GymWorld(max_steps=20 if ends else 10, target=1.0, make=lambda count: kind(diverging(count, ends)))
    chance = generator()
    odd = torch.randint(2**31, (6,), generator=generator()) % 2 == 1
    assert odd.any() and not odd.all()
    seen: list[Tensor] = []
    played = world.play(balance, 6, chance, seen=seen.append)
    assert torch.equal(played.returns.isnan(), odd.unsqueeze(0)) and played.lengths.tolist() == [[10] * 6]
    assert all(shown.isfinite().all() for shown in seen)
    shown, _ = world.reset(6, generator())
    for _ in range(10):
        step = world.step(world.decide(balance(shown)))
        shown = step.observations
    assert torch.equal(step.observations.isnan().any(1), odd) and (step.terminated == ends).all()
    assert not world.step(torch.zeros(6, dtype=torch.long)).observations.any()


@pytest.mark.parametrize("shown", [np.float32(0), np.zeros(3, np.float32)], ids=["fewer numbers", "more numbers"])
@pytest.mark.parametrize("at", [0, 1])
def test_observations_of_another_size_than_their_space_are_named(shown: Any, at: int) -> None:
    class Other(gymnasium.Env):
        observation_space, action_space = gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
            return (shown if at == 0 else np.zeros(2, np.float32)), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            return shown, 1.0, False, False, {}

    world = GymWorld(max_steps=9, make=lambda count: gymnasium.vector.SyncVectorEnv([Other] * count))
    when = "step 1" if at else "the beginning"
    said = rf"failed at {when} of an episode: .*got an observation of shape .*; its space is Box"
    with pytest.raises(WorldError, match=said):
        world.play(lambda seen: torch.zeros(2, 2), 2, generator())


def showing(space: Any, first: Any, then: Any) -> Any:
    """Makes environments that show this at first and that afterwards."""

    class Shows(gymnasium.Env):
        observation_space, action_space = space, gymnasium.spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
            return first, {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            return then, 1.0, False, False, {}

    return lambda count: gymnasium.vector.SyncVectorEnv([Shows] * count)


SMALL = gymnasium.spaces.Box(-9, 9, (2,), np.int8)
NESTED = gymnasium.spaces.Dict(a=gymnasium.spaces.Tuple([SMALL]), b=gymnasium.spaces.Discrete(3))


@pytest.mark.parametrize(
    ("space", "good", "bad", "said"),
    [
        (SMALL, np.array([1, 2]), np.array([3, 0.7]), "float64 with 0.7; expected int8"),
        (SMALL, [1, 2], np.array([1, np.nan], np.float32), "float32 with nan; expected int8"),
        (SMALL, np.array([1.0, 2.0]), [300, 2], "int64 with 300; expected int8"),
        (NESTED, {"a": ([1, 2],), "b": 1}, {"a": ([1, 2.5],), "b": 1}, "float64 with 2.5; expected int8"),
        (NESTED, {"a": ([1, 2],), "b": np.int32(1)}, {"a": ([1, 2],), "b": 0.7}, "float64 with 0.7; expected int64"),
        (gymnasium.spaces.MultiBinary(2), [True, False], [1, 0.5], "float64 with 0.5; expected int8"),
    ],
)
@pytest.mark.parametrize("at", [0, 1])
def test_observations_that_are_no_whole_numbers_where_they_are_due_are_named(
    space: Any, good: Any, bad: Any, said: str, at: int
) -> None:
    def played(first: Any, then: Any, **options: Any) -> Tensor:
        world = GymWorld(max_steps=2, make=showing(space, first, then), **options)
        seen: list[Tensor] = []
        world.play(lambda shown: torch.zeros(2, 2), 2, generator(), seen=seen.append)
        world.close()
        return torch.stack(seen)

    assert played(good, good)[:, 0, :2].tolist() == [[1, int(played(good, good)[0, 0, 1])]] * 2
    pair = (good, bad) if at else (bad, good)
    for options in ({}, {"vectorization": "async", "workers": 1}) if space is NESTED and at else ({},):
        when = "step 1" if at else "the beginning"
        message = f"failed at {when} of an episode: .*got an observation of {said}: its space is "
        with pytest.raises(WorldError, match=message):
            played(*pair, **options)


@pytest.mark.parametrize("vectorization", ["sync", "async", "vector_entry_point"])
def test_the_limit_of_an_environment_is_that_with_which_it_was_made(vectorization: Any) -> None:
    longer = GymWorld(arguments={"max_episode_steps": 520}, vectorization=vectorization)
    assert (longer.step_limit, GymWorld(vectorization=vectorization).step_limit) == (520, 500)
    shorter = GymWorld(arguments={"max_episode_steps": 520}, vectorization=vectorization, max_steps=510)
    lengths = shorter.play(balance, 2, generator()).lengths
    assert shorter.step_limit == 510 and lengths.tolist() == [[510, 510]]
    with pytest.raises(
        ValueError, match=r"^max_steps: got 501, but CartPole-v1 .* at 500; .*={max_episode_steps: 501}"
    ):
        GymWorld(vectorization=vectorization, max_steps=501)
    shorter.close()


@pytest.mark.filterwarnings("ignore:.*share an object")
def test_an_environment_without_a_limit_may_be_given_one(monkeypatch: pytest.MonkeyPatch) -> None:
    first, then = np.zeros((2, 2), np.int8)
    spec = gymnasium.envs.registration.EnvSpec("Endless-v0", lambda: showing(SMALL, first, then)(1).envs[0])
    monkeypatch.setitem(gymnasium.registry, "Endless-v0", spec)
    with pytest.raises(ValueError, match="max_steps: got null, but gymnasium knows no limit of Endless-v0"):
        GymWorld(id="Endless-v0")
    world = GymWorld(id="Endless-v0", arguments={"max_episode_steps": 3})
    assert world.play(lambda shown: torch.zeros(2, 2), 2, generator()).lengths.tolist() == [[3, 3]]


def test_the_limit_of_environments_of_ones_own_is_theirs() -> None:
    def make(count: int) -> Any:
        return gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make("CartPole-v1", max_episode_steps=520)] * count)

    assert GymWorld(make=make).step_limit == 520
    with pytest.raises(ValueError, match="^max_steps: got 521, but CartPole-v1 .* allowed is null or at most 520$"):
        GymWorld(make=make, max_steps=521)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("stops", "StopIteration:"),
        ("earns two", r"ValueError: got the reward array\(\[1., 1.\]\); expected a number"),
        ("earns words", "ValueError: got the reward 'much'; expected a number"),
        ("earns digits", "ValueError: got the reward '1'; expected a number"),
        ("earns none", "ValueError: got the reward None; expected a number"),
    ],
)
def test_what_an_environment_does_instead_of_a_step_is_named(how: str, said: str) -> None:
    with pytest.raises(WorldError, match=f"^env: .* failed at step 3 of an episode: {said}$"):
        spoilt(how).play(lambda shown: torch.zeros(2, 2), 2, generator())


def test_an_environment_that_fails_is_named_with_its_step_and_the_run_is_saved() -> None:
    world = spoilt("fails")
    with pytest.raises(WorldError, match="^env: .* failed at step 3 of an episode: ZeroDivisionError: three steps are"):
        world.play(lambda shown: torch.zeros(2, 2), 2, generator())

    class Kept(Recorder):
        def checkpoint(self, name: str, state: dict[str, Any]) -> None:
            states.append((name, state))

    states: list[Any] = []
    circuit = FeedForwardCircuit(1, 2, hidden_sizes=[])
    agent = EvolutionAgent(spoilt("earns"), circuit, strategy="snes", recorder=Kept(), generations=9, batch_size=1)
    agent.env.play = lambda *given, **more: (_ for _ in ()).throw(WorldError("gone"))  # type: ignore[method-assign]
    before = agent.state_dict()
    with pytest.raises(TrainingError, match="^generation 1: gone; saved as of generation 0$"):
        agent.fit()
    ((name, state),) = states
    assert name == "latest" and state["step"] == 0 and torch.equal(state["generator"], before["generator"])
    agent.processes = Processes(1, 2)
    with pytest.raises(TrainingError, match="^generation 1: gone$"):  # the first process saves
        agent._step_or_save()


@pytest.mark.parametrize(
    ("frame", "shown"),
    [
        (np.full((2, 3, 3), 7, np.uint8), 7),
        (np.full((2, 3, 3), 0.2), 51),
        (np.full((2, 3, 3), 51.0, np.float32), 51),
        (np.full((2, 3, 3), 300), 255),
        (np.full((2, 3, 4), 7, np.uint8), 7),
        (np.full((2, 3, 1), 7, np.uint8), 7),
        (np.full((2, 3), True), 255),
        (None, None),
        (np.zeros((0, 0, 3), np.uint8), "uint8 and shape [0, 0, 3]"),
        (np.zeros((2, 3, 2)), "float64 and shape [2, 3, 2]"),
        ("words", "<U5 and shape []"),
    ],
)
def test_frames_of_any_type_are_bytes_in_three_colours(frame: Any, shown: Any) -> None:
    class Drawn(Spoilt):
        render_mode = "rgb_array"

        def render(self) -> Any:
            return frame

    world = GymWorld(max_steps=3, make=lambda count: gymnasium.vector.SyncVectorEnv([lambda: Drawn("")] * count))
    world.reset(2, generator())
    if isinstance(shown, str):
        said = f"a picture of an episode: ValueError: got a frame of {re.escape(shown)}; expected "
        with pytest.raises(WorldError, match=said):
            world.picture()
        return
    picture = world.picture()
    assert frame is None if picture is None else torch.equal(picture, torch.full((2, 3, 3), shown, dtype=torch.uint8))
