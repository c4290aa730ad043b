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
from ..core.trace_field import Channels
from ..core.world import Step, World, check_episodes

LEFT, STRAIGHT, RIGHT = range(3)
"""Actions."""
HOME, JUNCTION, END, REWARD = range(4)
"""Channels of an observation."""


CELL = 12
"""Pixels of a place in a picture of the maze, with a line to the next."""
FLOOR, HERE, GOAL, OTHER = (222, 222, 222), (31, 111, 139), (255, 159, 28), (170, 170, 170)
"""Colours of a picture: the way, where the circuit is, the end with the reward, the others."""


class _State(NamedTuple):
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
class TMazeWorld(World):
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
        self.input_size, self.output_size = 4, 3
        self.num_ends = 2 if self.maze == "single" else 4
        self.segment = self.corridor + 1
        self.end = self.segment * (2 if self.maze == "single" else 3)

    def reset(self, episodes: int, generator: torch.Generator, *, copies: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw where the reward is in each trial; see :meth:`World.reset`."""
        check_episodes(episodes, copies)
        goals = self._draw_goals(episodes, generator).to(self.device).repeat(copies, 1)
        zeros = torch.zeros_like(goals[:, 0])
        self.state = _State(goals, zeros, zeros, zeros, zeros.bool(), zeros, zeros, zeros)
        return self._observations(self.state), self._info(self.state)

    def step(self, actions: Tensor) -> Step:
        """Move on, turn or crash; see :meth:`World.step`.

        Args:
            actions: 0 left, 1 straight, 2 right, ``[B]``.

        Raises:
            RuntimeError: there was no reset before.
            ValueError: actions of another shape, or other numbers.
        """
        if self.state is None:
            raise RuntimeError("step: there was no reset before")
        goals, trial, place, path, found, missed, avoidable, hits = self.state
        if actions.shape != trial.shape or actions.is_floating_point() or ((actions < 0) | (actions > 2)).any():
            raise ValueError(
                f"actions: got {actions.dtype} of shape {list(actions.shape)}; "
                f"allowed are the whole numbers 0 to 2 in shape {list(trial.shape)}"
            )
        over, last = trial >= self.trials, self.trials - 1
        leaving = place == self.end
        turned = actions != STRAIGHT
        at_junction = self._at_junction(place)
        crashed = ~over & ~leaving & (turned != at_junction)
        path = torch.where(turned & at_junction, 2 * path + (actions == RIGHT), path)
        place = torch.where(leaving | crashed, 0, place + 1)
        arrived = ~over & (place == self.end)

        goal = goals.gather(1, trial.clamp(max=last).unsqueeze(-1)).squeeze(-1)
        hit = arrived & (path == goal)
        miss = arrived & ~hit
        avoidable = avoidable + (crashed | (miss & (found | (missed >= self.num_ends - 1))))
        missed, found, hits = missed + miss, found | hit, hits + hit
        rewards = hit.double() * self.high_reward + miss * self.low_reward + crashed * self.crash_reward

        next_trial = ~over & (leaving | crashed)
        trial = trial + next_trial
        moved = next_trial & (goals.gather(1, trial.clamp(max=last).unsqueeze(-1)).squeeze(-1) != goal)
        found, missed = found & ~moved, missed.masked_fill(moved, 0)
        path = path.masked_fill(next_trial, 0)
        self.state = _State(goals, trial, place, path, found, missed, avoidable, hits)
        terminated = trial >= self.trials
        return Step(
            self._observations(self.state),
            rewards,
            terminated,
            torch.zeros_like(terminated),
            self._info(self.state),
        )

    def input_channels(self) -> Sequence[Channels]:
        """What is seen."""
        return [Channels("senses", self.input_size, ("home", "junction", "end", "reward"))]

    def output_channels(self) -> Sequence[Channels]:
        """Where to go."""
        return [Channels("action", self.output_size, ("left", "straight", "right"), choice=True)]

    def picture(self) -> Tensor | None:
        """The maze from above, home at the bottom; see :meth:`World.picture`."""
        if self.state is None:
            return None
        last = self.trials - 1
        trial, place, path = (int(part[0]) for part in self.state[1:4])
        goal = int(self.state.goals[0, min(trial, last)])
        turns = self.end // self.segment - 1
        cells = {}
        for end in range(self.num_ends):
            for steps, cell in enumerate(self._way(end, turns)):
                cells[cell] = FLOOR if steps < self.end else (GOAL if end == goal else OTHER)
        taken = max(0, (place - 1) // self.segment)
        cells[self._way(path << (turns - taken), turns)[min(place, self.end)]] = HERE
        across, up = zip(*cells, strict=True)
        picture = torch.full(((max(up) - min(up) + 1) * CELL, (max(across) - min(across) + 1) * CELL, 3), 255).byte()
        for (x, y), colour in cells.items():
            top, left = (max(up) - y) * CELL, (x - min(across)) * CELL
            picture[top : top + CELL - 1, left : left + CELL - 1] = torch.tensor(colour, dtype=torch.uint8)
        return picture

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

    def _observations(self, state: _State) -> Tensor:
        over = state.trial >= self.trials
        at_end = state.place == self.end
        goal = state.goals.gather(1, state.trial.clamp(max=self.trials - 1).unsqueeze(-1)).squeeze(-1)
        amount = torch.where(state.path == goal, self.high_reward, self.low_reward)
        senses = (state.place == 0, self._at_junction(state.place), at_end, at_end * amount)
        return torch.stack([sense.to(torch.get_default_dtype()) for sense in senses], dim=-1) * ~over.unsqueeze(-1)

    def _info(self, state: _State) -> dict[str, Tensor]:
        return {"avoidable_misses": state.avoidable, "rewarded_trials": state.hits}
