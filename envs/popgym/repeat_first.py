"""Repeat first: say at each card which suit the first one was (POPGym)."""

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


@register("env", "repeat-first")
class RepeatFirstWorld(PopgymWorld[_Situation]):
    """The suit of the first card, said again at every card of 1, 8 or 16 decks.

    Observations ``[B, 4]``: the suit of a card, one-hot. Actions: a suit. Of N cards all but the last are answered;
    each gives 1 / (N - 1) if right, else takes it.
    """

    decks: ClassVar[dict[str, int]] = {"easy": 1, "medium": 8, "hard": 16}

    def setup(self) -> None:
        """Count the cards."""
        super().setup()
        self.cards = self.decks[self.difficulty] * cards.DECK

    def senses(self) -> Sequence[Channels]:
        """The suit of a card."""
        return [Channels("suit", len(cards.SUITS), cards.SUITS)]

    def output_channels(self) -> Sequence[Channels]:
        """The suit of the first."""
        return [Channels("suit of the first card", len(cards.SUITS), cards.SUITS, choice=True)]

    def begin(self, episodes: int, generator: torch.Generator) -> _Situation:
        """Shuffle; see :meth:`TensorWorld.begin`."""
        suits = cards.suits(cards.shuffled(self.decks[self.difficulty], episodes, generator))
        return _Situation(suits, torch.zeros_like(suits[:, 0]))

    def act(self, situation: _Situation, actions: Tensor) -> Outcome:
        """Judge the answer and show the next card; see :meth:`TensorWorld.act`."""
        time = situation.time + 1
        rewards = for_and_against(actions == situation.suits[:, 0], 1 / (self.cards - 1))
        over = time >= self.cards - 1
        return Outcome(situation._replace(time=time), rewards, over, torch.zeros_like(over))

    def observe(self, situation: _Situation) -> Tensor:
        """The card; see :meth:`TensorWorld.observe`."""
        return one_hot(at(situation.suits, situation.time), len(cards.SUITS))
