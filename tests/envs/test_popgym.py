"""Memory tasks after POPGym: against plain Python, against the package popgym, and players whose return is known."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from popgym_loops import LOOPS
from torch import Tensor

from papertape.core.registry import entries
from papertape.envs import (
    BattleshipWorld,
    ConcentrationWorld,
)
from papertape.envs.popgym import PopgymWorld, cards

WORLDS = {
    name: world for name, world in entries("env").items() if world.__module__.startswith("papertape.envs.popgym.")
}
DIFFICULTIES = ("easy", "medium", "hard")
EACH = pytest.mark.parametrize(("name", "difficulty"), list(itertools.product(sorted(WORLDS), DIFFICULTIES)))
BATCH = 5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(situation: Any) -> list[Any]:
    """One situation of plain numbers for each episode."""
    leaves = [leaf.tolist() for leaf in situation]
    return [type(situation)(*row) for row in zip(*leaves, strict=True)]


class Game:
    """A game of popgym's, with the interface of the loops; one of them goes along, and knows what is good."""

    def __init__(self, env: Any, loop: Any) -> None:
        from gymnasium.spaces import flatten

        self.env, self.loop = env, loop
        self.good = loop.good
        self.flat = lambda observation: np.float32(flatten(env.observation_space, observation)).tolist()
        self.observation = self.flat(env.reset()[0])

    def step(self, action: Any) -> tuple[float, bool, bool]:
        self.loop.step(action)
        observation, reward, ended, cut, _ = self.env.step(np.array(action))
        self.observation = self.flat(observation)
        return float(reward), bool(ended), bool(cut)


def compare(world: PopgymWorld, games: list[Any], first: Tensor) -> None:
    """Play to the end, with players from the careless to the perfect, and compare each step."""
    random, zeros = generator(7), [0.0] * world.input_size
    torch.testing.assert_close(first, torch.tensor([game.observation for game in games]), atol=1e-6, rtol=1e-5)
    results = [(0.0, False, False)] * BATCH
    while not all(ended or cut for _, ended, cut in results):
        actions = world.decide(torch.randn(BATCH, world.output_size, generator=random))
        for b, chance in enumerate(torch.rand(BATCH, generator=random).tolist()):
            if not any(results[b][1:]) and chance < b / (BATCH - 1):
                actions[b] = torch.as_tensor(games[b].good())
        step, seen = world.step(actions), []
        for b, action in enumerate(actions.tolist()):
            over = any(results[b][1:])
            results[b] = (0.0, *results[b][1:]) if over else games[b].step(action)
            seen.append(zeros if over or results[b][1] else games[b].observation)
        rewards, ended, cut = map(list, zip(*results, strict=True))
        assert step.rewards.tolist() == pytest.approx(rewards, abs=1e-9)
        assert step.terminated.tolist() == ended
        assert step.truncated.tolist() == [one and not other for one, other in zip(cut, ended, strict=True)]
        torch.testing.assert_close(step.observations, torch.tensor(seen), atol=1e-6, rtol=1e-5)
    after = world.step(actions)
    assert (after.rewards == 0).all() and (after.observations == 0).all() and (after.terminated | after.truncated).all()


@EACH
def test_against_plain_python(name: str, difficulty: str) -> None:
    world = WORLDS[name](difficulty=difficulty, previous_action=False)
    first, info = world.reset(BATCH, generator(3))
    assert info == {}
    games = [LOOPS[name](row, difficulty) for row in rows(world.situation)]
    compare(world, games, first)


def told(world: PopgymWorld, row: Any, decks: list[np.ndarray]) -> Any:
    """Stands for the generator of a game of popgym's, and gives what ours has drawn for an episode."""
    orders = iter(decks if isinstance(world, ConcentrationWorld) else [deck[::-1] for deck in decks])
    noise, luck = iter(getattr(row, "noise", ())), iter(getattr(row, "luck", ()))

    def shuffle(deck: np.ndarray) -> None:
        deck[:] = next(orders)

    return SimpleNamespace(
        shuffle=shuffle,
        uniform=lambda low, high, size=None: np.array(row.body),
        normal=lambda mean, deviation: np.array(next(noise)),
        random=lambda size=None, dtype=None: np.array(row.chances if size else next(luck), dtype=dtype),
        choice=lambda places, size, replace: places[np.array(row.mines)],
    )


@EACH
def test_against_popgym(name: str, difficulty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    envs = pytest.importorskip("popgym.envs", reason="popgym is not installed")
    from gymnasium.spaces import flatdim
    from popgym.wrappers import PreviousAction

    drawn: list[np.ndarray] = []
    shuffled = cards.shuffled
    monkeypatch.setattr(cards, "shuffled", lambda *given: drawn.append(shuffled(*given)) or drawn[-1])
    world = WORLDS[name](difficulty=difficulty, previous_action=False)
    first, _ = world.reset(BATCH, generator(4))
    published = getattr(envs, WORLDS[name].__name__.removesuffix("World") + difficulty.capitalize())
    games = []
    for b, row in enumerate(rows(world.situation)):
        env = published()
        if not isinstance(world, BattleshipWorld):
            env._np_random = told(world, row, [decks[b].numpy() for decks in drawn])
        games.append(Game(env, LOOPS[name](row, difficulty)))
        if isinstance(world, BattleshipWorld):
            env.board = np.array(row.ships, dtype=np.int8).reshape(env.board.shape)
    assert world.input_size == flatdim(env.observation_space)
    assert world.output_size == flatdim(env.action_space)
    assert world.changed(previous_action=True).input_size == flatdim(PreviousAction(env).observation_space)
    compare(world, games, first)


def test_which_observations_need_the_last_action() -> None:
    envs = pytest.importorskip("popgym.envs", reason="popgym is not installed")
    for world in WORLDS.values():
        published = getattr(envs, world.__name__.removesuffix("World"))
        assert world().previous_action == published.obs_requires_prev_action, world
