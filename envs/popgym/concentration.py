"""Concentration: turn cards over two at a time and find the pairs (POPGym)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ...core.registry import register
from ...core.tensor_world import Outcome, at, one_hot
from ...core.trace_field import Channels
from ..pictures import DARK, HIDDEN, OPEN, ORANGE, RED, Colour, board
from . import cards
from .game import PopgymWorld

NONE = -1
"""In place of a card where none is turned over."""


class _Situation(NamedTuple):
    kinds: Tensor
    """Of the cards in their places, ``[B, N]``."""
    found: Tensor
    """Whether a card lies face up for good, ``[B, N]``."""
    shown: Tensor
    """Whether a card was turned over in this turn and can still be seen, ``[B, N]``."""
    first: Tensor
    """Place of the first card of this turn while the second is to come, else :data:`NONE`, ``[B]``."""
    time: Tensor
    """Steps taken, ``[B]``."""


@register("env", "concentration")
class ConcentrationWorld(PopgymWorld[_Situation]):
    """Pairs of a colour in 1 or 2 decks, or of a rank in one, all cards face down to begin with.

    Observations ``[B, N·(K + 1)]``: at each of N places which of K kinds is seen there, or the back of a card, one-hot.
    Actions: the place of a card to turn over. Two in turn that match stay and give 2 / N; two others are both seen once
    more and take 2 / T, and so does one that lies open already as the second, or half of it as the first. An episode
    ends when all are found, or is cut off after T steps, about two for each card.
    """

    decks_and_kinds: ClassVar[dict[str, tuple[int, tuple[str, ...], Callable[[Tensor], Tensor]]]] = {
        "easy": (1, cards.COLOURS, cards.colours),
        "medium": (2, cards.COLOURS, cards.colours),
        "hard": (1, cards.RANKS, cards.ranks),
    }
    previous_action: bool = True

    def setup(self) -> None:
        """Count the cards and the steps."""
        self.decks, self.kinds, self._kind = self.decks_and_kinds[self.difficulty]
        self.cards = self.decks * cards.DECK
        self.steps = math.ceil(2 * self.cards - self.cards / (2 * self.cards - 1))
        super().setup()

    def senses(self) -> Sequence[Channels]:
        """A card after the other."""
        return [Channels("cards", self.cards * (len(self.kinds) + 1))]

    def output_channels(self) -> Sequence[Channels]:
        """Which card to turn over."""
        return [Channels("card", self.cards, choice=True)]

    def begin(self, episodes: int, generator: torch.Generator) -> _Situation:
        """Shuffle; see :meth:`TensorWorld.begin`."""
        kinds = self._kind(cards.shuffled(self.decks, episodes, generator))
        none = torch.zeros_like(kinds, dtype=torch.bool)
        time = torch.zeros_like(kinds[:, 0])
        return _Situation(kinds, none, none, torch.full_like(time, NONE), time)

    def act(self, situation: _Situation, actions: Tensor) -> Outcome:
        """Turn a card over; see :meth:`TensorWorld.act`."""
        kinds, found, _, first, time = situation
        place = torch.arange(self.cards, device=kinds.device)
        shown = (place == actions.unsqueeze(-1)) | (place == first.unsqueeze(-1))
        second = first != NONE
        open_before = at(found, actions)
        same_kind = at(kinds, actions) == at(kinds, first.clamp(min=0))
        pair = second & ~open_before & same_kind & (actions != first)
        lost = torch.where(second, 2.0, 1.0).double() / self.steps * (~pair & (second | open_before))
        rewards = pair.double() / (self.cards // 2) - lost
        found = found | (shown & pair.unsqueeze(-1))
        first = torch.where(second | open_before, NONE, actions)
        over = found.all(1)
        return Outcome(_Situation(kinds, found, shown, first, time + 1), rewards, over, time + 1 >= self.steps)

    def observe(self, situation: _Situation) -> Tensor:
        """What lies face up; see :meth:`TensorWorld.observe`."""
        back = len(self.kinds)
        return one_hot(torch.where(situation.found | situation.shown, situation.kinds, back), back + 1).flatten(1)

    def picture(self) -> Tensor | None:
        """Cards in rows of 13, of ranks with those of this turn in another colour; see :meth:`World.picture`."""
        if self.state is None:
            return None
        rows = (part[0].view(-1, len(cards.RANKS)).tolist() for part in self.situation[:3])
        return board([[self._square(*card) for card in zip(*row, strict=True)] for row in zip(*rows, strict=True)])

    def _square(self, kind: int, found: bool, shown: bool) -> tuple[Colour, str]:
        name = self.kinds[kind]
        colour = {"black": DARK, "red": RED}.get(name, ORANGE if shown else OPEN)
        return (colour, name) if found or shown else (HIDDEN, "")
