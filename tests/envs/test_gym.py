"""gymnasium's environments as worlds, against gymnasium itself."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from papertape.envs import GymOptions, GymWorld

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
    world = GymWorld(GymOptions())
    assert (world.input_size, world.output_size, world.max_steps, world.target) == (4, 2, 500, 475.0)
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
    world = GymWorld(GymOptions())
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
    world = GymWorld(GymOptions(max_steps=20, target=15.0))
    episodes = world.play(balance, 2, generator())
    assert episodes.returns.tolist() == [[20.0, 20.0]]
    assert world.metrics(episodes) == {"reward": 20.0, "steps": 20.0, "shortfall": 0.0}
    step = world.reset(2, generator()) and [world.step(torch.tensor([0, 1])) for _ in range(20)][-1]
    assert not (step.terminated & step.truncated).any()


@pytest.mark.parametrize("vectorization", ["async", "vector_entry_point"])
def test_other_ways_to_run_side_by_side(vectorization: str) -> None:
    world = GymWorld(GymOptions(vectorization=vectorization, max_steps=60))
    first = world.play(clumsy, 2, generator())
    assert torch.equal(first.returns, world.play(clumsy, 2, generator()).returns)
    assert first.returns.shape == (1, 2) and (first.returns > 5).all()
    if vectorization == "async":
        assert torch.equal(first.returns, GymWorld(GymOptions(max_steps=60)).play(clumsy, 2, generator()).returns)
    world.close()


def test_environments_are_kept_between_resets_of_one_size() -> None:
    world = GymWorld(GymOptions())
    world.reset(2, generator())
    held = world._envs
    world.reset(1, generator(), copies=2)
    assert world._envs is held
    world.reset(3, generator())
    assert world._envs is not held
    world.close()
    with pytest.raises(RuntimeError, match="no reset"):
        world.step(torch.zeros(3, dtype=torch.long))


class Echo(gymnasium.Env):
    """Shows the last observation given and remembers the last action."""

    def __init__(self, observations: Any, actions: Any) -> None:
        self.observation_space, self.action_space = observations, actions
        self.observation_space.seed(0)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action), action
        return self.observation_space.sample(), float(np.sum(action)), False, False, {}


def echo(observations: Any, actions: Any) -> GymWorld:
    spaces = gymnasium.spaces
    observations = observations or spaces.Box(-1, 1, (2,))
    return GymWorld(
        GymOptions(max_steps=3, target=0.0),
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
    ],
)
def test_outputs_become_actions(actions: Any, outputs: list, decided: list) -> None:
    world = echo(None, actions)
    assert world.output_size == len(outputs[0])
    found = world.decide(torch.tensor(outputs))
    torch.testing.assert_close(found, torch.tensor(decided, dtype=found.dtype))
    world.reset(2, generator())
    rewards = world.step(found).rewards
    torch.testing.assert_close(rewards, torch.tensor(decided, dtype=torch.float64).reshape(2, -1).sum(-1))
    assert world.play(lambda observations: torch.tensor(outputs), 2, generator()).lengths.tolist() == [[3, 3]]


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
        ({"arguments": {"wheels": 3}}, "gymnasium says: .*wheels"),
        ({"id": "FrozenLake-v1", "vectorization": "vector_entry_point"}, "gymnasium says: .*vector entry point"),
        ({"id": "Pendulum-v1"}, "target: got null, but gymnasium knows no reward_threshold of Pendulum-v1"),
    ],
)
def test_environments_that_do_not_serve_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GymWorld(GymOptions(**options))


@pytest.mark.parametrize("options", [{"id": ""}, {"max_steps": 0}, {"vectorization": "threads"}, {"arguments": 3}])
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        GymOptions(**options)


def test_without_gymnasium_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ImportError, match=r"gymnasium is not installed; pip install \"gymnasium>=1.0\""):
        GymWorld(GymOptions())


def test_both_numbers_below_one_are_refused() -> None:
    world = GymWorld(GymOptions())
    for count in ({"episodes": 0}, {"episodes": 1, "copies": 0}):
        with pytest.raises(ValueError, match=f"{list(count)[-1]}: got 0"):
            world.reset(generator=generator(), **count)
