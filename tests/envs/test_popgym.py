"""Memory tasks after POPGym: against plain Python, against the package popgym, and players whose return is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from popgym_loops import LOOPS
from torch import Tensor

from papertape.core.registry import entries
from papertape.envs import GymWorld, PopgymWorld
from papertape.envs.popgym import (
    BattleshipWorld,
    ConcentrationWorld,
    MineSweeperWorld,
    MultiarmedBanditWorld,
    NoisyPositionOnlyCartPoleWorld,
    PositionOnlyCartPoleWorld,
    PositionOnlyPendulumWorld,
    cards,
)

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
    """Play to the end, with players from the careless to the perfect, and compare every step."""
    random, zeros = generator(7), [0.0] * world.input_size
    torch.testing.assert_close(first, torch.tensor([game.observation for game in games]), atol=1e-6, rtol=1e-5)
    results = [(0.0, False, False)] * BATCH
    steps, seen, expected = [], [], []
    while not all(ended or cut for _, ended, cut in results):
        actions = world.decide(torch.randn(BATCH, world.output_size, generator=random))
        for b, chance in enumerate(torch.rand(BATCH, generator=random).tolist()):
            if not any(results[b][1:]) and chance < b / (BATCH - 1):
                actions[b] = torch.as_tensor(games[b].good())
        steps.append(world.step(actions))
        seen.append([])
        for b, action in enumerate(actions.tolist()):
            over = any(results[b][1:])
            results[b] = (0.0, *results[b][1:]) if over else games[b].step(action)
            seen[-1].append(zeros if over or results[b][1] else games[b].observation)
        expected.append(list(results))
    observations, rewards, terminated, truncated = (torch.stack(part) for part in list(zip(*steps, strict=True))[:4])
    paid, ended, cut = torch.tensor(expected, dtype=torch.float64).unbind(-1)
    torch.testing.assert_close(observations, torch.tensor(seen), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(rewards, paid, atol=1e-9, rtol=0)
    assert torch.equal(terminated, ended.bool()) and torch.equal(truncated, cut.bool() & ~ended.bool())
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


def perfect(world: PopgymWorld, situation: Any) -> Callable[[Tensor], Tensor]:
    """A player who knows everything, as the ``answer`` of :meth:`World.play`."""
    games = [LOOPS[world.options.type](row, world.difficulty) for row in rows(situation)]
    over = [False] * len(games)

    def answer(observations: Tensor) -> Tensor:
        outputs = torch.zeros(len(games), world.output_size)
        for b, game in enumerate(games):
            if not over[b]:
                action = game.good()
                for group, choice in enumerate(action if isinstance(action, tuple) else (action,)):
                    outputs[b, sum(world._groups[:group]) + choice] = 1
                _, *ends = game.step(action)
                over[b] = any(ends)
        return outputs

    return answer


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
@pytest.mark.parametrize(
    "name",
    ["autoencode", "battleship", "concentration", "count-recall", "minesweeper", "repeat-first", "repeat-previous"],
)
def test_who_knows_all_gets_everything(name: str, difficulty: str) -> None:
    world = WORLDS[name](difficulty=difficulty)
    world.reset(3, generator(5))
    episodes = world.play(perfect(world, world.situation), 3, generator(5))
    assert episodes.returns.tolist() == [pytest.approx([1.0] * 3)]
    assert world.metrics(episodes)["shortfall"] == pytest.approx(0.0, abs=1e-9)


def test_who_never_misses_a_wrong_answer_loses_everything() -> None:
    world = WORLDS["repeat-first"](difficulty="easy")
    world.reset(4, generator(5))
    first = world.situation.suits[:, 0]
    episodes = world.play(lambda seen: torch.eye(4)[(first + 1) % 4], 4, generator(5))
    assert episodes.returns.tolist() == [pytest.approx([-1.0] * 4)] and (episodes.lengths == 51).all()
    assert world.metrics(episodes) == {"reward": pytest.approx(-1.0), "steps": 51.0, "shortfall": pytest.approx(2.0)}


@pytest.mark.parametrize(
    ("name", "steps"), [("repeat-first", 51), ("minesweeper", 14), ("position-only-pendulum", 200)]
)
def test_the_last_action_is_seen(name: str, steps: int) -> None:
    plain, world = WORLDS[name](previous_action=False), WORLDS[name](previous_action=True)
    assert world.input_size == plain.input_size + plain.output_size
    assert [group.size for group in world.input_channels()][-len(world.output_channels()) :] == [
        group.size for group in world.output_channels()
    ]
    first, alone = world.reset(6, generator())[0], plain.reset(6, generator())[0]
    assert torch.equal(first, torch.cat([alone, torch.zeros(6, world.output_size)], -1))
    random = generator(1)
    for _ in range(40):
        outputs = torch.randn(6, world.output_size, generator=random)
        actions = world.decide(outputs)
        step, other = world.step(actions), plain.step(actions)
        assert torch.equal(step.observations[:, : plain.input_size], other.observations)
        last = step.observations[:, plain.input_size :]
        for row in (~step.terminated & ~step.truncated).nonzero().flatten().tolist():
            if name == "position-only-pendulum":
                assert float(last[row]) == pytest.approx(float(actions[row]), abs=1e-6)
            else:
                chosen = outputs[row].split(world._groups)
                parts = last[row].split(world._groups)
                assert [int(part.argmax()) for part in parts] == [int(part.argmax()) for part in chosen]
                assert all(sorted(part.tolist()) == [0.0] * (len(part) - 1) + [1.0] for part in parts)


@EACH
def test_episodes_differ_and_copies_do_not(name: str, difficulty: str) -> None:
    world = WORLDS[name](difficulty=difficulty)
    state = torch.get_rng_state()
    world.reset(3, generator(), copies=2)
    twice = [leaf.view(2, 3, -1) for leaf in world.situation]
    assert all(torch.equal(*leaf) for leaf in twice)
    world.reset(3, generator())
    assert all(torch.equal(leaf.reshape(3, -1), both[0]) for leaf, both in zip(world.situation, twice, strict=True))
    assert not all(torch.equal(leaf[0], leaf[1]) for leaf in world.situation)
    world.reset(3, generator(1))
    assert not all(torch.equal(leaf.reshape(3, -1), both[0]) for leaf, both in zip(world.situation, twice, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", sorted(WORLDS))
def test_dropped_and_new_episodes_leave_the_others_as_they_are(name: str) -> None:
    alone, world = WORLDS[name](), WORLDS[name]()
    alone.reset(4, generator()), world.reset(4, generator())
    random = generator(1)

    def both(rows_kept: list[int], count: int, mine: list[int]) -> None:
        actions = world.decide(torch.randn(count, world.output_size, generator=random))
        whole = world.decide(torch.zeros(4, world.output_size))
        whole[rows_kept] = actions[mine]
        step, other = world.step(actions), alone.step(whole)
        for part in ("observations", "rewards", "terminated", "truncated"):
            assert torch.equal(getattr(step, part)[mine], getattr(other, part)[rows_kept])

    both([0, 1, 2, 3], 4, [0, 1, 2, 3])
    world.keep(torch.tensor([1, 2, 3]))
    both([1, 2, 3], 3, [0, 1, 2])
    first = world.renew(torch.tensor([False, True, False]), generator(9))
    assert first.shape == (3, world.input_size) and not first[[0, 2]].any()
    both([1, 3], 3, [0, 2])


def test_decks_are_shuffled() -> None:
    decks = cards.shuffled(2, 4000, generator())
    assert torch.equal(decks.sort(1).values, torch.arange(104).expand(4000, 104))
    for kind, names, share in ((cards.suits, cards.SUITS, 1 / 4), (cards.colours, cards.COLOURS, 1 / 2)):
        places = torch.stack([(kind(decks) == number).double().mean(0) for number in range(len(names))])
        torch.testing.assert_close(places, torch.full_like(places, share), atol=0.04, rtol=0)
    assert torch.equal(torch.bincount(cards.ranks(decks[0])), torch.full((13,), 8))
    follows = (decks[:, 1:] > decks[:, :-1]).double().mean(0)
    torch.testing.assert_close(follows, torch.full_like(follows, 0.5), atol=0.04, rtol=0)


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_ships_lie_anywhere_apart(difficulty: str) -> None:
    world = BattleshipWorld(difficulty=difficulty)
    world.reset(3000, generator())
    assert (world.situation.ships.sum(1) == 12).all()
    random, tried = Random(1), torch.zeros(world.side**2, dtype=torch.float64)
    for _ in range(3000):  # popgym's rule: a start and a direction, until the ship fits
        board: set[int] = set()
        for size in (2, 3, 3, 4):
            ship: set[int] = set()
            while not ship or ship & board:
                y, x, down, sign = (random.randrange(count) for count in (world.side, world.side, 2, 2))
                far = (y if down else x) + (2 * sign - 1) * (size - 1)
                if 0 <= far < world.side:
                    steps = [(2 * sign - 1) * step for step in range(size)]
                    ship = {(y + step * down) * world.side + x + step * (1 - down) for step in steps}
            board |= ship
        tried[list(board)] += 1 / 3000
    shares = world.situation.ships.double().mean(0)
    torch.testing.assert_close(shares, tried, atol=5 * (2 * 0.25 * 0.75 / 3000) ** 0.5, rtol=0)


def test_mines_lie_anywhere() -> None:
    world = MineSweeperWorld(difficulty="hard")
    world.reset(3000, generator())
    assert (world.situation.mines.sum(1) == 10).all()
    shares = world.situation.mines.double().mean(0)
    torch.testing.assert_close(shares, torch.full_like(shares, 10 / 64), atol=0.04, rtol=0)


def test_noise_and_luck_are_spread_as_told() -> None:
    for difficulty, deviation in (("easy", 0.1), ("medium", 0.2), ("hard", 0.3)):
        noisy = NoisyPositionOnlyCartPoleWorld(difficulty=difficulty)
        noisy.reset(50, generator())
        assert noisy.situation.noise.shape == (50, 201, 2)
        assert float(noisy.situation.noise.std()) == pytest.approx(deviation, rel=0.03)
        assert float(noisy.situation.noise.mean()) == pytest.approx(0, abs=0.01)
    body = noisy.situation.body
    assert body.abs().max() < 0.05 and float(body.std()) == pytest.approx(0.1 / 12**0.5, rel=0.15)
    pendulum = PositionOnlyPendulumWorld()
    pendulum.reset(2000, generator())
    angle, speed = pendulum.situation.body.unbind(-1)
    assert 3.1 < angle.abs().max() < 3.142 and float(angle.std()) == pytest.approx(2 * 3.1416 / 12**0.5, rel=0.05)
    assert 0.99 < speed.abs().max() < 1 and float(speed.std()) == pytest.approx(2 / 12**0.5, rel=0.05)
    bandit = MultiarmedBanditWorld()
    bandit.reset(500, generator())
    best = bandit.situation.chances.argmax(1)
    episodes = bandit.play(lambda seen: torch.eye(10)[best], 500, generator())
    assert float(episodes.returns.mean()) == pytest.approx(2 * 10 / 11 - 1, abs=0.02)  # the mean of the best of ten
    assert (episodes.lengths == 200).all()


def test_torques_are_bounded_and_drawn_near_an_output() -> None:
    world = PositionOnlyPendulumWorld()
    assert [tuple(part) for part in world.action_parts()] == [("normal", 1)]
    torques = world.decide(torch.tensor([[-100.0], [0.0], [1.0], [100.0]]))
    assert torques.flatten().tolist() == pytest.approx([-2.0, 0.0, 4 / (1 + 2.718281828**-1) - 2, 2.0])
    assert [tuple(part) for part in BattleshipWorld().action_parts()] == [("categorical", 8)] * 2


@pytest.mark.parametrize(
    ("world", "actions", "allowed"),
    [
        (ConcentrationWorld, torch.tensor([0, 52]), r"the whole numbers 0 to 51 in shape \[2\]"),
        (BattleshipWorld, torch.tensor([[0, 8], [0, 0]]), r"the whole numbers 0 to 7 and 0 to 7 in shape \[2, 2\]"),
        (BattleshipWorld, torch.tensor([0, 0]), r"the whole numbers 0 to 7 and 0 to 7 in shape \[2, 2\]"),
        (PositionOnlyCartPoleWorld, torch.zeros(2), r"the whole numbers 0 to 1 in shape \[2\]"),
        (PositionOnlyPendulumWorld, torch.zeros(2, 1).long(), r"finite floating-point numbers in shape \[2, 1\]"),
        (PositionOnlyPendulumWorld, torch.full((2, 1), torch.nan), r"finite floating-point numbers in shape \[2, 1\]"),
    ],
)
def test_wrong_actions_are_refused(world: type[PopgymWorld], actions: Tensor, allowed: str) -> None:
    made = world()
    with pytest.raises(RuntimeError, match="^step: there was no reset before"):
        made.step(actions)
    with pytest.raises(RuntimeError, match="^situation: there was no reset before"):
        _ = made.situation
    made.reset(2, generator())
    with pytest.raises(ValueError, match=rf"^actions: got torch\.\w+ of shape .*; allowed are {allowed}"):
        made.step(actions)


def test_pictures_show_what_goes_on() -> None:
    shapes = {
        "battleship": (96, 96),
        "concentration": (48, 156),
        "minesweeper": (48, 48),
        "position-only-cartpole": (60, 132),
        "position-only-pendulum": (60, 60),
    }
    for name, shape in shapes.items():
        world = WORLDS[name]()
        assert world.picture() is None
        world.reset(2, generator())
        before = world.picture()
        assert before is not None and before.shape == (*shape, 3) and before.dtype == torch.uint8
        for _ in range(8 if "only" in name else 1):
            world.step(world.decide(torch.ones(2, world.output_size)))
        after = world.picture()
        assert after is not None and not torch.equal(before, after), name
        # Only the square that was chosen, the first one, looks otherwise.
        if name in ("battleship", "concentration", "minesweeper"):
            assert torch.equal(before[12:], after[12:]) and torch.equal(before[:, 12:], after[:, 12:]), name


@pytest.mark.filterwarnings("ignore:.*WARN:UserWarning")  # gymnasium finds fault with how some of them are written
def test_the_environments_of_the_package_are_worlds_too() -> None:
    envs = pytest.importorskip("popgym.envs", reason="popgym is not installed")
    ours = {world.__name__.removesuffix("World"): world for world in WORLDS.values()}
    for published, spec in envs.ALL.items():
        world = GymWorld(id=f"popgym:{spec['id']}", max_steps=1000, target=1.0)
        seen, _ = world.reset(2, generator())
        step = world.step(world.decide(torch.randn(2, world.output_size, generator=generator())))
        assert seen.shape == step.observations.shape == (2, world.input_size) and step.rewards.abs().max() <= 1
        (difficulty,) = (word for word in DIFFICULTIES if published.__name__.endswith(word.title()))
        name = published.__name__.removesuffix(difficulty.title())
        if name in ours:
            same = ours[name](difficulty=difficulty, previous_action=False)
            assert (world.input_size, world.output_size) == (same.input_size, same.output_size)
        world.close()
