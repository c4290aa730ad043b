"""Mine sweeper: uncover all squares without a mine, each seen only once (POPGym)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ...core.registry import register
from ...core.tensor_world import Outcome, at, one_hot
from ...core.trace_field import Channels
from ..pictures import DARK, HIDDEN, OPEN, board
from .game import PopgymWorld


class _Situation(NamedTuple):
    mines: Tensor
    """Whether there is one, ``[B, S·S]``."""
    near: Tensor
    """Mines on each square and the eight around it, ``[B, S·S]``."""
    uncovered: Tensor
    """``[B, S·S]``."""
    seen: Tensor
    """The number on the last square, ``[B]``."""
    time: Tensor
    """Steps taken, ``[B]``."""


@register("env", "minesweeper")
class MineSweeperWorld(PopgymWorld[_Situation]):
    """Squares 4, 6 or 8 a side with 2, 6 or 10 mines, of which one sees how many are next to the last square.

    Observations ``[B, M + 1]``, at most 10 channels: how many mines were on the last square and the eight around it,
    one-hot, then which square it was. Actions ``[B, 2]``: row and column of a square. Of N squares without a mine each
    gives 1 / N. One that is uncovered already takes 0.5 / (N - 2). A mine takes 0.5 + 1 / N and ends the episode; it
    also ends when all N are uncovered, and is cut off after N steps, in popgym up to 1.0.6 one later.
    """

    sides_and_mines: ClassVar[dict[str, tuple[int, int]]] = {"easy": (4, 2), "medium": (6, 6), "hard": (8, 10)}
    previous_action: bool = True

    def setup(self) -> None:
        """Count the squares."""
        self.side, self.mines = self.sides_and_mines[self.difficulty]
        self.safe = self.side**2 - self.mines
        super().setup()

    def senses(self) -> Sequence[Channels]:
        """The number on the last square."""
        size = min(self.mines + 1, 10)
        return [Channels("mines near", size, tuple(map(str, range(size))))]

    def output_channels(self) -> Sequence[Channels]:
        """What to uncover."""
        sides = {axis: tuple(f"{axis} {number}" for number in range(1, self.side + 1)) for axis in ("row", "column")}
        return [Channels(axis, self.side, labels, choice=True) for axis, labels in sides.items()]

    def begin(self, episodes: int, generator: torch.Generator) -> _Situation:
        """Lay the mines; see :meth:`TensorWorld.begin`."""
        device, squares = generator.device, self.side**2
        chance = torch.rand(episodes, squares, dtype=torch.float64, generator=generator, device=device)
        mines = chance.argsort(1) < self.mines
        around = functional.conv2d(
            mines.float().view(-1, 1, self.side, self.side), torch.ones(1, 1, 3, 3, device=device), padding=1
        )
        zero = torch.zeros(episodes, dtype=torch.long, device=device)
        return _Situation(mines, around.flatten(1).round().long(), torch.zeros_like(mines), zero, zero)

    def act(self, situation: _Situation, actions: Tensor) -> Outcome:
        """Uncover a square; see :meth:`TensorWorld.act`."""
        square = actions[:, 0] * self.side + actions[:, 1]
        mine, again = at(situation.mines, square), at(situation.uncovered, square)
        uncovered = situation.uncovered.scatter(1, square.unsqueeze(-1), True) & ~situation.mines
        rewards = (~(mine | again)).double() / self.safe - mine.double() * (0.5 + 1 / self.safe)
        rewards = rewards - again.double() * 0.5 / (self.safe - 2)
        over = mine | (uncovered | situation.mines).all(1)
        time = situation.time + 1
        after = situation._replace(uncovered=uncovered, seen=at(situation.near, square), time=time)
        return Outcome(after, rewards, over, time >= self.safe)

    def observe(self, situation: _Situation) -> Tensor:
        """The number; see :meth:`TensorWorld.observe`."""
        return one_hot(situation.seen, min(self.mines + 1, 10))

    def picture(self) -> Tensor | None:
        """Numbers where it is uncovered, mines dark; see :meth:`World.picture`."""
        if self.state is None:
            return None
        mines, near, uncovered = (part[0].view(self.side, self.side).tolist() for part in self.situation[:3])
        return board(
            [
                [
                    (OPEN, str(number)) if known else (DARK if mine else HIDDEN, "")
                    for mine, number, known in zip(*row, strict=True)
                ]
                for row in zip(mines, near, uncovered, strict=True)
            ]
        )
