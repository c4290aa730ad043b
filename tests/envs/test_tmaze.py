"""T-mazes: against a walk in plain Python, and with searchers whose score is known."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from papertape.envs import TMazeWorld
from papertape.envs.tmaze import END, HOME, JUNCTION, REWARD


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def walk(options: TMazeWorld, goals: list[int], actions: list[int]) -> list[tuple[list[float], float, bool, int, int]]:
    """One episode, action by action: observation after it, reward, whether it is over, avoidable misses and hits."""
    junctions = 1 if options.maze == "single" else 2
    maze = ["home"]
    for place in ["junction"] * junctions + ["end"]:
        maze += ["corridor"] * options.corridor + [place]
    trial, place, turns, avoidable, hits, tried, found = 0, 0, "", 0, 0, 0, False
    seen = []
    for action in actions:
        reward, back = 0.0, False
        if trial < options.trials:
            if maze[place] == "end":
                back = True
            elif (maze[place] == "junction") != (action != 1):
                reward, back, avoidable = options.crash_reward, True, avoidable + 1
            else:
                turns += {0: "0", 1: "", 2: "1"}[action]
                place += 1
                if maze[place] == "end" and int(turns, 2) == goals[trial]:
                    reward, hits, found = options.high_reward, hits + 1, True
                elif maze[place] == "end":
                    reward = options.low_reward
                    avoidable += found or tried >= 2**junctions - 1
                    tried += 1
        if back:
            trial, place, turns = trial + 1, 0, ""
            if trial < options.trials and goals[trial] != goals[trial - 1]:
                found, tried = False, 0
        observation = [0.0] * 4
        if trial < options.trials:
            observation[HOME], observation[JUNCTION] = maze[place] == "home", maze[place] == "junction"
            if maze[place] == "end":
                observation[END] = 1
                observation[REWARD] = options.high_reward if int(turns, 2) == goals[trial] else options.low_reward
        seen.append((observation, reward, trial >= options.trials, avoidable, hits))
    return seen


@pytest.mark.parametrize("maze", ["single", "double"])
@pytest.mark.parametrize("corridor", [0, 1, 3])
def test_against_a_walk_in_plain_python(maze: str, corridor: int) -> None:
    world = TMazeWorld(maze=maze, corridor=corridor, trials=9, min_stay=2, max_stay=4)
    batch = 40
    first, info = world.reset(batch, generator(1))
    assert torch.equal(first, torch.tensor([1.0, 0, 0, 0]).repeat(batch, 1))
    assert all((value == 0).all() for value in info.values())
    goals = world.situation.goals.tolist()
    random, steps, actions, observations = generator(2), [], [], first
    for _ in range(9 * (corridor + 1) * 3 + 12):
        # Mostly sensible moves, so that ends are reached, and some crashes.
        turn = 2 * torch.randint(2, (batch,), generator=random)
        action = torch.where(observations[:, JUNCTION] == 1, turn, 1)
        wild = torch.randint(3, (batch,), generator=random)
        action = torch.where(torch.rand(batch, generator=random) < 0.05, wild, action)
        steps.append(world.step(action))
        actions.append(action)
        observations = steps[-1].observations
    for b in range(batch):
        expected = walk(world, goals[b], [int(action[b]) for action in actions])
        for step, (observation, reward, over, avoidable, hits) in zip(steps, expected, strict=True):
            torch.testing.assert_close(step.observations[b], torch.tensor(observation))
            assert float(step.rewards[b]) == pytest.approx(reward)
            assert bool(step.terminated[b]) == over and not step.truncated[b]
            assert int(step.info["avoidable_misses"][b]) == avoidable
            assert int(step.info["rewarded_trials"][b]) == hits
    assert steps[-1].terminated.all()


class Searcher:
    """Goes where the reward was last, and when it is gone tries the other ends one by one: never an avoidable miss."""

    def __init__(self, num_ends: int, batch: int) -> None:
        self.depth = 1 if num_ends == 2 else 2
        self.num_ends = num_ends
        self.aim = [0] * batch
        self.turn = [0] * batch

    def __call__(self, observations: Tensor) -> Tensor:
        outputs = torch.zeros(len(observations), 3)
        for b, observation in enumerate(observations.tolist()):
            action = 1
            if observation[HOME]:
                self.turn[b] = 0
            if observation[END] and observation[REWARD] < 1:
                self.aim[b] = (self.aim[b] + 1) % self.num_ends
            if observation[JUNCTION]:
                action = 2 * (self.aim[b] >> (self.depth - 1 - self.turn[b]) & 1)
                self.turn[b] += 1
            outputs[b, action] = 1
        return outputs


@pytest.mark.parametrize("maze", ["single", "double"])
def test_a_perfect_memory_has_no_avoidable_miss(maze: str) -> None:
    world = TMazeWorld(maze=maze, trials=30)
    metrics = world.metrics(world.play(Searcher(world.num_ends, 20), 20, generator()))
    assert metrics["avoidable_misses"] == 0
    missed = 30 - metrics["rewarded_trials"]
    assert 0 < missed < 30 / 5 * (world.num_ends - 1)
    assert metrics["reward"] == pytest.approx(metrics["rewarded_trials"] + 0.1 * missed, rel=1e-5)
    assert metrics["steps"] == 30 * (world.end + 1)


@pytest.mark.parametrize("maze", ["single", "double"])
def test_no_fixed_way_does_without_misses(maze: str) -> None:
    world = TMazeWorld(maze=maze, trials=200)
    shares = []
    for turn in (0, 2):
        outputs = torch.eye(3)

        def answer(observations: Tensor, turn: int = turn, outputs: Tensor = outputs) -> Tensor:
            return outputs[torch.where(observations[:, JUNCTION] == 1, turn, 1)]

        metrics = world.metrics(world.play(answer, 50, generator()))
        shares.append(metrics["rewarded_trials"] / 200)
        assert metrics["avoidable_misses"] > 50
    assert shares == pytest.approx([1 / world.num_ends] * 2, abs=0.04)


@pytest.mark.parametrize("maze", ["single", "double"])
def test_the_reward_stays_and_moves_as_told(maze: str) -> None:
    world = TMazeWorld(maze=maze, trials=60, min_stay=3, max_stay=6)
    world.reset(300, generator())
    goals = world.situation.goals
    assert goals.unique().tolist() == list(range(world.num_ends))
    first = torch.bincount(goals[:, 0], minlength=world.num_ends) / 300
    torch.testing.assert_close(first, torch.full_like(first, 1 / world.num_ends), atol=0.1, rtol=0)
    stays = set()
    for row in goals.tolist():
        length = 1
        for before, after in pairwise(row):
            if before == after:
                length += 1
            else:
                stays.add(length)
                length = 1
        assert length <= 6
    assert stays == {3, 4, 5, 6}


def test_copies_meet_the_same_episodes() -> None:
    world = TMazeWorld(maze="double")
    world.reset(5, generator(), copies=3)
    goals = world.situation.goals.view(3, 5, -1)
    assert (goals == goals[:1]).all()
    world.reset(5, generator())
    assert torch.equal(world.situation.goals, goals[0])
    world.reset(5, generator(1))
    assert not torch.equal(world.situation.goals, goals[0])
    state = torch.get_rng_state()
    world.reset(5, generator())
    assert torch.equal(torch.get_rng_state(), state)


def test_sets_beyond_training_are_longer_lives() -> None:
    world = TMazeWorld(maze="double", trials=7, test_trials=[9])
    sets = world.sets("test")
    assert list(sets) == ["trials 7", "trials 9"]
    variant = sets["trials 9"]
    assert variant.play(Searcher(4, 2), 2, generator()).lengths.tolist() == [[9 * (world.end + 1)] * 2]


def test_steps_before_a_reset_and_wrong_actions_are_refused() -> None:
    world = TMazeWorld()
    with pytest.raises(RuntimeError, match="no reset"):
        world.step(torch.zeros(3, dtype=torch.long))
    world.reset(3, generator())
    for actions in (torch.zeros(2, dtype=torch.long), torch.tensor([0, 1, 3]), torch.zeros(3)):
        with pytest.raises(ValueError, match=r"actions: got .* allowed are the whole numbers 0 to 2 in shape \[3\]"):
            world.step(actions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"maze": "triple"}, "maze"),
        ({"corridor": -1}, "corridor"),
        ({"trials": 0}, "trials"),
        ({"min_stay": 0}, "min_stay"),
        ({"min_stay": 11}, "min_stay: got 11; allowed is at most max_stay, which is 10"),
        ({"low_reward": 1.0}, "low_reward: got 1.0; allowed is from crash_reward, which is -0.4, to less than"),
        ({"crash_reward": 0.5}, "low_reward: got 0.1; allowed is from crash_reward, which is 0.5"),
        ({"test_trials": [0]}, r"test_trials\.0"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        TMazeWorld(**options)
