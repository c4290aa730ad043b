"""A T-maze of any length: a sign at the start says which way to turn at the far end (after Bakker 2001)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from ..core.registry import register
from ..core.streams import Stream
from ..core.tensor_world import Outcome, TensorWorld
from ..core.trace_field import Channels
from ..core.world import World
from .pictures import BLUE, HIDDEN, OPEN, ORANGE, WHITE, Colour, board

NORTH, EAST, SOUTH, WEST = range(4)
"""Actions."""
SIGNS = ((0, 1, 1), (1, 1, 0), (1, 0, 1), (0, 1, 0))
"""Observations: at the start with the goal in the north and in the south, in the corridor, at the junction."""
LONGEST = 40
"""Squares of a corridor in a picture; longer ones are drawn shorter."""


class _Situation(NamedTuple):
    """Where B episodes are; each ``[B]``."""

    south: Tensor
    """Whether the goal is in the south."""
    place: Tensor
    """Steps from the start."""
    time: Tensor
    """Steps taken."""
    reached: Tensor
    """Whether the goal was."""


@register("env", "cued-t-maze")
class CuedTMazeWorld(TensorWorld[_Situation]):
    """A corridor that leads east from a sign to a junction, north or south of which is the goal, as the sign has said.

    Observations ``[B, 3]``: 011 at the start if the goal is in the north and 110 if it is in the south, 101 in the
    corridor, 010 at the junction. Actions: north, east, south, west; into a wall is to stand still. North or south from
    the junction ends the episode, with the sign's way a reward of 4, else -0.1, which a step standing still costs too.

    Metrics: the share of episodes that missed the goal, besides reward and steps; 0.5 without a memory. Source: B.
    Bakker: Reinforcement Learning with Long Short-Term Memory, NIPS 2001, where corridors have 5 to 70 steps and no
    limit of time.
    """

    error_metric: ClassVar[str] = "missed"

    corridor: int = Field(default=10, ge=1, description="steps from the sign to the junction")
    patience: float = Field(
        default=5.0, ge=1, description="an episode is cut off after so many times the steps of the shortest way"
    )
    goal_reward: float = Field(default=4.0, description="for the right turn at the junction")
    other_reward: float = Field(default=-0.1, description="for the wrong one")
    still_reward: float = Field(default=-0.1, description="for a step in which one stands still")
    test_corridors: list[Annotated[int, Field(ge=1)]] = Field(
        default=[20, 50, 100], description="corridors to be tested in besides that of training"
    )

    @classmethod
    def check_options(cls, options: Any) -> None:
        """Refuse a goal that is not worth turning to."""
        super().check_options(options)
        if options.other_reward >= options.goal_reward:
            raise ValueError(
                f"other_reward: got {options.other_reward}; allowed is less than goal_reward, which is "
                f"{options.goal_reward}"
            )

    def setup(self) -> None:
        """Measure the way."""
        self.limit = math.ceil(self.patience * (self.corridor + 1))
        super().setup()

    def senses(self) -> Sequence[Channels]:
        """What is seen of a place."""
        return [Channels("senses", 3)]

    def output_channels(self) -> Sequence[Channels]:
        """Where to go."""
        return [Channels("action", 4, ("north", "east", "south", "west"), choice=True)]

    def begin(self, episodes: int, generator: torch.Generator) -> _Situation:
        """Draw where the goals are; see :meth:`TensorWorld.begin`."""
        south = torch.randint(2, (episodes,), generator=generator, device=generator.device).bool()
        zero = torch.zeros_like(south, dtype=torch.long)
        return _Situation(south, zero, zero, torch.zeros_like(south))

    def act(self, situation: _Situation, actions: Tensor) -> Outcome:
        """Go one step; see :meth:`TensorWorld.act`."""
        south, place, time, _ = situation
        over = (place == self.corridor) & ((actions == NORTH) | (actions == SOUTH))
        reached = over & ((actions == SOUTH) == south)
        after = (place + (actions == EAST).long() - (actions == WEST).long()).clamp(0, self.corridor)
        still = ~over & (after == place)
        rewards = reached.double() * self.goal_reward + (over & ~reached).double() * self.other_reward
        rewards = rewards + still.double() * self.still_reward
        return Outcome(_Situation(south, after, time + 1, reached), rewards, over, time + 1 >= self.limit)

    def observe(self, situation: _Situation) -> Tensor:
        """What is seen of a place; see :meth:`TensorWorld.observe`."""
        signs = torch.tensor(SIGNS, dtype=torch.get_default_dtype(), device=situation.place.device)
        start, junction = situation.place == 0, situation.place == self.corridor
        return signs[torch.where(start, situation.south.long(), 2 + junction.long())]

    def count(self, situation: _Situation) -> dict[str, Tensor]:
        """Whether the goal was missed, so far; see :meth:`TensorWorld.count`."""
        return {"missed": (~situation.reached).long()}

    def sets(self, stream: Stream) -> dict[str, World]:
        """The training length first, then others: ``corridor 20``."""
        return {f"corridor {steps}": self.changed(corridor=steps) for steps in (self.corridor, *self.test_corridors)}

    def picture(self) -> Tensor | None:
        """The maze from above, at most 40 squares long; see :meth:`World.picture`."""
        if self.state is None:
            return None
        length = min(self.corridor, LONGEST)
        here = round(int(self.situation.place[0]) * length / self.corridor)
        south, reached = bool(self.situation.south[0]), bool(self.situation.reached[0])
        middle = [(BLUE if place == here and not reached else HIDDEN, "") for place in range(length + 1)]
        aside: list[list[tuple[Colour, str]]] = [[(WHITE, "")] * length + [(OPEN, "")] for _ in range(2)]
        aside[south][-1] = (BLUE if reached else ORANGE, "")
        return board([aside[0], middle, aside[1]])
