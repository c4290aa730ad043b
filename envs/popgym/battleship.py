"""Battleship: find ships on a board of which only the last shot's success is seen (POPGym)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ...core.registry import register
from ...core.tensor_world import Outcome, at, one_hot
from ...core.trace_field import Channels
from ..pictures import BLUE, DARK, HIDDEN, OPEN, board
from .game import PopgymWorld

SHIPS = (2, 3, 3, 4)
"""Squares of each ship."""


class _Situation(NamedTuple):
    ships: Tensor
    """Whether there is one, ``[B, S·S]``."""
    shot: Tensor
    """Whether it was shot at, ``[B, S·S]``."""
    hit: Tensor
    """Whether the last shot was a hit, ``[B]``."""
    time: Tensor
    """Shots fired, ``[B]``."""


@register("env", "battleship")
class BattleshipWorld(PopgymWorld[_Situation]):
    """Ships of 2, 3, 3 and 4 squares, across or down, on a board of 8, 10 or 12 squares a side.

    Observations ``[B, 2]``: whether the last shot was a miss or a hit, one-hot, and then where it went. Actions ``[B,
    2]``: row and column of a shot. A hit gives 1 / 12. A miss, or another shot at the same square, takes 1 / W of W
    squares without a ship. An episode ends when all ships are sunk, or is cut off after as many shots as there are
    squares.
    """

    sides: ClassVar[dict[str, int]] = {"easy": 8, "medium": 10, "hard": 12}
    previous_action: bool = True

    def setup(self) -> None:
        """List all places of each ship."""
        self.side = self.sides[self.difficulty]
        self.squares = self.side**2
        self._places = {size: _places(self.side, size) for size in set(SHIPS)}
        super().setup()

    def senses(self) -> Sequence[Channels]:
        """The last shot."""
        return [Channels("shot", 2, ("miss", "hit"))]

    def output_channels(self) -> Sequence[Channels]:
        """Where to shoot."""
        sides = {axis: tuple(f"{axis} {number}" for number in range(1, self.side + 1)) for axis in ("row", "column")}
        return [Channels(axis, self.side, labels, choice=True) for axis, labels in sides.items()]

    def begin(self, episodes: int, generator: torch.Generator) -> _Situation:
        """Place one ship after the other where it touches no square of another; see :meth:`TensorWorld.begin`."""
        ships = torch.zeros(episodes, self.squares, device=generator.device)
        for size in SHIPS:
            places = self._places[size].to(generator.device)
            free = (ships @ places.T == 0).float()
            ships = ships + places[torch.multinomial(free, 1, generator=generator).squeeze(-1)]
        none = torch.zeros_like(ships, dtype=torch.bool)
        return _Situation(ships > 0, none, none[:, 0], none[:, 0].long())

    def act(self, situation: _Situation, actions: Tensor) -> Outcome:
        """Fire; see :meth:`TensorWorld.act`."""
        square = actions[:, 0] * self.side + actions[:, 1]
        hit = at(situation.ships, square) & ~at(situation.shot, square)
        shot = situation.shot.scatter(1, square.unsqueeze(-1), True)
        parts = sum(SHIPS)
        rewards = hit.double() / parts - (~hit).double() / (self.squares - parts)
        sunk = (shot | ~situation.ships).all(1)
        return Outcome(
            _Situation(situation.ships, shot, hit, situation.time + 1),
            rewards,
            sunk,
            situation.time + 1 >= self.squares,
        )

    def observe(self, situation: _Situation) -> Tensor:
        """Whether the last shot was a hit; see :meth:`TensorWorld.observe`."""
        return one_hot(situation.hit.long(), 2)

    def picture(self) -> Tensor | None:
        """Ships dark, hits blue, misses light; see :meth:`World.picture`."""
        if self.state is None:
            return None
        ships, shot = (part[0].view(self.side, self.side).tolist() for part in self.situation[:2])
        colours = {(False, False): HIDDEN, (True, False): DARK, (False, True): OPEN, (True, True): BLUE}
        return board(
            [[(colours[square], "") for square in zip(*rows, strict=True)] for rows in zip(ships, shot, strict=True)]
        )


def _places(side: int, size: int) -> Tensor:
    """The squares of every place that a ship of a size can have, ``[P, S·S]``."""
    lines = torch.eye(side, device="cpu").unfold(0, size, 1).sum(-1)  # [side - size + 1, side]: everywhere in a line
    across = torch.einsum("ri,lj->rlij", torch.eye(side, device="cpu"), lines).flatten(0, 1)
    return torch.cat([across, across.transpose(1, 2)]).flatten(1)
