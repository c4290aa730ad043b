"""The T-maze with a sign at its start: against a walk in plain Python, and with walkers whose score is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from papertape.envs import CuedTMazeWorld
from papertape.envs.cued_tmaze import EAST, NORTH, SOUTH


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Walk:
    """One episode in plain Python, on a map."""

    def __init__(self, south: bool, corridor: int, limit: int) -> None:
        self.free = {(x, 0) for x in range(corridor + 1)} | {(corridor, 1), (corridor, -1)}
        self.goal = (corridor, -1 if south else 1)
        self.corridor, self.left, self.at = corridor, limit, (0, 0)

    def seen(self) -> list[float]:
        if self.at == (0, 0):
            return [1.0, 1.0, 0.0] if self.goal[1] < 0 else [0.0, 1.0, 1.0]
        return [0.0, 1.0, 0.0] if self.at == (self.corridor, 0) else [1.0, 0.0, 1.0]

    def step(self, action: int) -> tuple[float, bool, bool]:
        x, y = self.at
        across, up = [(0, 1), (1, 0), (0, -1), (-1, 0)][action]
        after = (x + across, y + up)
        self.left -= 1
        if after not in self.free:
            return -0.1, False, not self.left
        self.at = after
        if after[1]:
            return (4.0 if after == self.goal else -0.1), True, False
        return 0.0, False, not self.left


@pytest.mark.parametrize("corridor", [1, 2, 5])
def test_against_a_walk_in_plain_python(corridor: int) -> None:
    world = CuedTMazeWorld(corridor=corridor, patience=2.3)
    batch, random = 60, generator(2)
    observations, info = world.reset(batch, generator(1))
    walks = [Walk(south, corridor, -int(-2.3 * (corridor + 1) // 1)) for south in world.situation.south.tolist()]
    assert torch.equal(observations, torch.tensor([walk.seen() for walk in walks])) and (info["missed"] == 1).all()
    over, gone, ends = [False] * batch, 0, {"ended": 0, "cut": 0, "reached": 0}
    while not all(over):
        wild = torch.randint(4, (batch,), generator=random)
        actions = torch.where(torch.rand(batch, generator=random) < 0.5, EAST, wild)
        step = world.step(actions)
        gone += 1
        for b, walk in enumerate(walks):
            before = (0.0, bool(step.terminated[b]), bool(step.truncated[b]))
            reward, ended, cut = before if over[b] else walk.step(int(actions[b]))
            assert (float(step.rewards[b]), bool(step.terminated[b]), bool(step.truncated[b])) == (reward, ended, cut)
            assert step.observations[b].tolist() == ([0.0] * 3 if ended or over[b] else walk.seen())
            assert int(step.info["missed"][b]) == (walk.at != walk.goal)
            ends["ended"] += ended and not over[b]
            ends["cut"] += cut and not over[b]
            ends["reached"] += reward == 4.0
            over[b] = ended or cut
    assert gone == world.limit and all(ends.values())


class Walker:
    """Goes to the junction, and there where the sign has said, or where it is told."""

    def __init__(self, turn: int | None = None) -> None:
        self.turn = turn

    def __call__(self, seen: Tensor) -> Tensor:
        north, junction = (seen == torch.tensor([0.0, 1, 1])).all(1), (seen == torch.tensor([0.0, 1, 0])).all(1)
        if north.any() or not hasattr(self, "sign"):
            self.sign = torch.where(north, NORTH, SOUTH)
        turn = self.sign if self.turn is None else torch.full_like(self.sign, self.turn)
        return torch.eye(4)[torch.where(junction, turn, EAST)]


@pytest.mark.parametrize("corridor", [1, 10, 500])
def test_a_memory_of_one_bit_finds_the_goal_at_any_distance(corridor: int) -> None:
    world = CuedTMazeWorld(corridor=corridor)
    assert world.metrics(world.play(Walker(), 50, generator())) == {"reward": 4.0, "steps": corridor + 1, "missed": 0.0}
    for turn in (NORTH, SOUTH):
        missed = world.metrics(world.play(Walker(turn), 400, generator()))["missed"]
        assert missed == pytest.approx(0.5, abs=0.1)


def test_sets_beyond_training_are_longer_corridors() -> None:
    world = CuedTMazeWorld(corridor=3, test_corridors=[7, 9])
    sets = world.sets("validation")
    assert list(sets) == ["corridor 3", "corridor 7", "corridor 9"]
    assert sets["corridor 9"].play(Walker(), 2, generator()).lengths.tolist() == [[10, 10]]


def test_the_maze_is_drawn_from_above() -> None:
    world = CuedTMazeWorld(corridor=4)
    assert world.picture() is None
    world.reset(1, generator())
    begun = world.picture()
    world.step(torch.tensor([EAST]))
    moved = world.picture()
    assert begun is not None and moved is not None and begun.shape == moved.shape == (36, 60, 3)
    changed = (begun != moved).any(-1).nonzero()
    assert changed.min(0).values.tolist() == [12, 0] and changed.max(0).values.tolist() == [22, 22]
    long = CuedTMazeWorld(corridor=1000)
    long.reset(1, generator())
    drawn = long.picture()
    assert drawn is not None and drawn.shape == (36, 41 * 12, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corridor": 0}, "corridor"),
        ({"patience": 0.5}, "patience"),
        ({"other_reward": 4.0}, "other_reward: got 4.0; allowed is less than goal_reward, which is 4.0"),
        ({"test_corridors": [0]}, r"test_corridors\.0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        CuedTMazeWorld(**options)
