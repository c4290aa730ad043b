"""Repeat previous: say at each card which suit the one k - 1 cards before it was (POPGym)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ...core.registry import register
from ...core.tensor_world import Outcome, at, one_hot
from ...core.trace_field import Channels
from . import cards
from .game import PopgymWorld, for_and_against


class _Situation(NamedTuple):
    suits: Tensor
    """In the order in which they are shown, ``[B, N]``."""
    time: Tensor
    """Cards that have been answered, ``[B]``."""


@register("env", "repeat-previous")
class RepeatPreviousWorld(PopgymWorld[_Situation]):
    """The suit of the k-th card from the end, the one that is seen counted: k is 4, 32 or 64, of 1, 2 or 3 decks.

    Observations ``[B, 4]``: the suit of a card, one-hot. Actions: a suit. Of N cards all but the last are answered, and
    from the k-th on an answer gives 1 / (N - k) if right, else takes it.
    """

    decks_and_k: ClassVar[dict[str, tuple[int, int]]] = {"easy": (1, 4), "medium": (2, 32), "hard": (3, 64)}

    def setup(self) -> None:
        """Count the cards."""
        super().setup()
        self.decks, self.k = self.decks_and_k[self.difficulty]
        self.cards = self.decks * cards.DECK

    def senses(self) -> Sequence[Channels]:
        """The suit of a card."""
        return [Channels("suit", len(cards.SUITS), cards.SUITS)]

    def output_channels(self) -> Sequence[Channels]:
        """The suit of an earlier one."""
        return [Channels("suit of an earlier card", len(cards.SUITS), cards.SUITS, choice=True)]

    def begin(self, episodes: int, generator: torch.Generator) -> _Situation:
        """Shuffle; see :meth:`TensorWorld.begin`."""
        suits = cards.suits(cards.shuffled(self.decks, episodes, generator))
        return _Situation(suits, torch.zeros_like(suits[:, 0]))

    def act(self, situation: _Situation, actions: Tensor) -> Outcome:
        """Judge the answer and show the next card; see :meth:`TensorWorld.act`."""
        asked, time = situation.time + 1 - self.k, situation.time + 1
        right = actions == at(situation.suits, asked.clamp(min=0))
        rewards = for_and_against(right, 1 / (self.cards - self.k)) * (asked >= 0)
        over = time >= self.cards - 1
        return Outcome(situation._replace(time=time), rewards, over, torch.zeros_like(over))

    def observe(self, situation: _Situation) -> Tensor:
        """The card; see :meth:`TensorWorld.observe`."""
        return one_hot(at(situation.suits, situation.time), len(cards.SUITS))
