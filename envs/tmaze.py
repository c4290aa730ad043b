"""T-maze: remember which end holds the reward, and notice when it moves (after Greve, Jacobsen & Risi 2016).

A discrete maze with the senses of Soltoggio et al. 2008. An episode is a series of trials through the same maze;
nothing at a junction tells left from right, so only memory of earlier trials can.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from ..core.registry import register
from ..core.streams import Stream
from ..core.tensor_world import Outcome, TensorWorld, at
from ..core.trace_field import Channels
from ..core.world import World
from .pictures import WHITE, board

LEFT, STRAIGHT, RIGHT = range(3)
"""Actions."""
HOME, JUNCTION, END, REWARD = range(4)
"""Channels of an observation."""


FLOOR, HERE, GOAL, OTHER = (222, 222, 222), (31, 111, 139), (255, 159, 28), (170, 170, 170)
"""Colours of a picture: the way, where the circuit is, the end with the reward, the others."""


class _Situation(NamedTuple):
    """Where B episodes are; each ``[B]`` but the first."""

    goals: Tensor
    """Number of the end that holds the reward in each trial, ``[B, trials]``."""
    trial: Tensor
    place: Tensor
    """Steps from home."""
    path: Tensor
    """Turns of this trial as binary digits, right is 1."""
    found: Tensor
    """Whether the reward was found since it moved last."""
    missed: Tensor
    """How often another end was reached since it moved last."""
    avoidable: Tensor
    hits: Tensor


@register("env", "t-maze")
class TMazeWorld(TensorWorld[_Situation]):
    """Home, a corridor, a junction (in the double maze a corridor and a junction more), a corridor, an end; and again.

    Observations ``[B, 4]``: at home, at a junction, at an end, the reward found at this end; all zero in a corridor.
    Actions: left, straight, right. A turn in a corridor or at home, or none at a junction, is a crash. At an end any
    action leads back home to the next trial, and so does a crash. Episodes end after the last trial's end was seen.

    Metrics: rewarded trials, and misses that could have been avoided. These are every crash and, since the reward moved
    last, every miss after it was found or after all other ends were tried (one in a single maze, three in a double).
    """

    error_metric: ClassVar[str] = "avoidable_misses"

    maze: Literal["single", "double"] = Field(
        default="single", description="one junction and 2 ends, or one after another and 4 ends"
    )
    corridor: int = Field(default=1, ge=0, description="steps of corridor before each junction and each end")
    trials: int = Field(default=20, ge=1, description="trials of an episode")
    min_stay: int = Field(default=5, ge=1, description="fewest trials after which the reward moves")
    max_stay: int = Field(default=10, ge=1, description="most trials after which the reward moves")
    high_reward: float = Field(default=1.0, description="at the end that holds the reward")
    low_reward: float = Field(default=0.1, description="at every other end")
    crash_reward: float = Field(default=-0.4, description="for walking into a wall, which ends the trial")
    test_trials: list[Annotated[int, Field(ge=1)]] = Field(
        default=[40, 100], description="numbers of trials to be tested on besides those of training"
    )

    @classmethod
    def check_options(cls, options: Any) -> None:
        """Refuse stays that end before they begin, and rewards out of order."""
        super().check_options(options)
        if options.min_stay > options.max_stay:
            raise ValueError(
                f"min_stay: got {options.min_stay}; allowed is at most max_stay, which is {options.max_stay}"
            )
        if not options.crash_reward <= options.low_reward < options.high_reward:
            raise ValueError(
                f"low_reward: got {options.low_reward}; allowed is from crash_reward, which is {options.crash_reward}, "
                f"to less than high_reward, which is {options.high_reward}"
            )

    def setup(self) -> None:
        """Lay out the maze."""
        super().setup()
        self.num_ends = 2 if self.maze == "single" else 4
        self.segment = self.corridor + 1
        self.end = self.segment * (2 if self.maze == "single" else 3)

    def begin(self, episodes: int, generator: torch.Generator) -> _Situation:
        """Draw where the reward is in each trial; see :meth:`TensorWorld.begin`."""
        goals = self._draw_goals(episodes, generator)
        zeros = torch.zeros_like(goals[:, 0])
        return _Situation(goals, zeros, zeros, zeros, zeros.bool(), zeros, zeros, zeros)

    def act(self, situation: _Situation, actions: Tensor) -> Outcome:
        """Move on, turn or crash; see :meth:`TensorWorld.act`."""
        goals, trial, place, path, found, missed, avoidable, hits = situation
        leaving = place == self.end
        turned = actions != STRAIGHT
        at_junction = self._at_junction(place)
        crashed = ~leaving & (turned != at_junction)
        path = torch.where(turned & at_junction, 2 * path + (actions == RIGHT), path)
        place = torch.where(leaving | crashed, 0, place + 1)
        arrived = place == self.end

        goal = self._goal(goals, trial)
        hit = arrived & (path == goal)
        miss = arrived & ~hit
        avoidable = avoidable + (crashed | (miss & (found | (missed >= self.num_ends - 1))))
        missed, found, hits = missed + miss, found | hit, hits + hit
        rewards = hit.double() * self.high_reward + miss.double() * self.low_reward
        rewards = rewards + crashed.double() * self.crash_reward

        next_trial = leaving | crashed
        trial = trial + next_trial
        moved = next_trial & (self._goal(goals, trial) != goal)
        found, missed = found & ~moved, missed.masked_fill(moved, 0)
        path = path.masked_fill(next_trial, 0)
        over = trial >= self.trials
        after = _Situation(goals, trial, place, path, found, missed, avoidable, hits)
        return Outcome(after, rewards, over, torch.zeros_like(over))

    def senses(self) -> Sequence[Channels]:
        """What is seen."""
        return [Channels("senses", 4, ("home", "junction", "end", "reward"))]

    def output_channels(self) -> Sequence[Channels]:
        """Where to go."""
        return [Channels("action", 3, ("left", "straight", "right"), choice=True)]

    def picture(self) -> Tensor | None:
        """The maze from above, home at the bottom; see :meth:`World.picture`."""
        if self.state is None:
            return None
        last = self.trials - 1
        trial, place, path = (int(part[0]) for part in self.situation[1:4])
        goal = int(self.situation.goals[0, min(trial, last)])
        turns = self.end // self.segment - 1
        cells = {}
        for end in range(self.num_ends):
            for steps, cell in enumerate(self._way(end, turns)):
                cells[cell] = FLOOR if steps < self.end else (GOAL if end == goal else OTHER)
        taken = max(0, (place - 1) // self.segment)
        cells[self._way(path << (turns - taken), turns)[min(place, self.end)]] = HERE
        across, up = zip(*cells, strict=True)
        columns, rows = range(min(across), max(across) + 1), range(max(up), min(up) - 1, -1)
        return board([[(cells.get((x, y), WHITE), "") for x in columns] for y in rows])

    def _way(self, end: int, turns: int) -> list[tuple[int, int]]:
        """Places from home to an end, across and up."""
        places, heading = [(0, 0)], (0, 1)
        for segment in range(turns + 1):
            for _ in range(self.segment):
                places.append((places[-1][0] + heading[0], places[-1][1] + heading[1]))
            right = end >> max(turns - 1 - segment, 0) & 1
            heading = (heading[1], -heading[0]) if right else (-heading[1], heading[0])
        return places

    def sets(self, stream: Stream) -> dict[str, World]:
        """The training range first, then more trials: ``trials 40``."""
        return {f"trials {count}": self.changed(trials=count) for count in (self.trials, *self.test_trials)}

    def _draw_goals(self, episodes: int, generator: torch.Generator) -> Tensor:
        """Which end holds the reward in each trial, ``[episodes, trials]``; it never moves to where it is."""
        trials, device = self.trials, generator.device
        stays = torch.randint(self.min_stay, self.max_stay + 1, (episodes, trials), generator=generator, device=device)
        moves = torch.randint(1, self.num_ends, (episodes, trials), generator=generator, device=device)
        moves[:, 0] = torch.randint(self.num_ends, (episodes,), generator=generator, device=device)
        places = moves.cumsum(1) % self.num_ends
        trial = torch.arange(trials, device=device).expand(episodes, trials).contiguous()
        return places.gather(1, torch.searchsorted(stays.cumsum(1), trial, right=True))

    def _at_junction(self, place: Tensor) -> Tensor:
        return (place % self.segment == 0) & (place > 0) & (place < self.end)

    def _goal(self, goals: Tensor, trial: Tensor) -> Tensor:
        return at(goals, trial.clamp(max=self.trials - 1))

    def observe(self, situation: _Situation) -> Tensor:
        """What is seen of a place; see :meth:`TensorWorld.observe`."""
        place, at_end = situation.place, situation.place == self.end
        at_goal = situation.path == self._goal(situation.goals, situation.trial)
        amount = torch.where(at_goal, self.high_reward, self.low_reward)
        senses = (place == 0, self._at_junction(place), at_end, at_end * amount)
        return torch.stack([sense.to(torch.get_default_dtype()) for sense in senses], dim=-1)

    def count(self, situation: _Situation) -> dict[str, Tensor]:
        """Avoidable misses and rewarded trials; see :meth:`TensorWorld.count`."""
        return {"avoidable_misses": situation.avoidable, "rewarded_trials": situation.hits}
