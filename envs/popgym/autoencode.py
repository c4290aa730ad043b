"""Autoencode: watch cards go by, then say their suits in reverse order (POPGym)."""

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
    """Steps taken, ``[B]``."""


@register("env", "autoencode")
class AutoencodeWorld(PopgymWorld[_Situation]):
    """The suits of 1, 2 or 3 decks, to be said backwards once the last card has come.

    Observations ``[B, 6]``: whether it is time to recite or to watch, one-hot, and the suit of a card, one-hot; with
    the last card it is time to recite, and while one does, the suit is always the first one. Actions: a suit. Each of
    the N cards that are recited gives 1 / N if right, else takes it.
    """

    decks: ClassVar[dict[str, int]] = {"easy": 1, "medium": 2, "hard": 3}

    def setup(self) -> None:
        """Count the cards."""
        super().setup()
        self.cards = self.decks[self.difficulty] * cards.DECK

    def senses(self) -> Sequence[Channels]:
        """What to do, and the suit of a card."""
        return [Channels("phase", 2, ("recite", "watch")), Channels("suit", len(cards.SUITS), cards.SUITS)]

    def output_channels(self) -> Sequence[Channels]:
        """The suit that is recited."""
        return [Channels("suit recited", len(cards.SUITS), cards.SUITS, choice=True)]

    def begin(self, episodes: int, generator: torch.Generator) -> _Situation:
        """Shuffle; see :meth:`TensorWorld.begin`."""
        suits = cards.suits(cards.shuffled(self.decks[self.difficulty], episodes, generator))
        return _Situation(suits, torch.zeros_like(suits[:, 0]))

    def act(self, situation: _Situation, actions: Tensor) -> Outcome:
        """Judge what is recited, or show the next card; see :meth:`TensorWorld.act`."""
        time, last = situation.time + 1, self.cards - 1
        asked = 2 * last - situation.time  # the last card in step `last`, the first one in step 2 * last
        right = actions == at(situation.suits, asked.clamp(0, last))
        rewards = for_and_against(right, 1 / self.cards) * (asked <= last)
        over = time > 2 * last
        return Outcome(situation._replace(time=time), rewards, over, torch.zeros_like(over))

    def observe(self, situation: _Situation) -> Tensor:
        """The phase and the card; see :meth:`TensorWorld.observe`."""
        last = self.cards - 1
        suit = at(situation.suits, situation.time.clamp(max=last)) * (situation.time <= last)
        return torch.cat([one_hot((situation.time < last).long(), 2), one_hot(suit, len(cards.SUITS))], -1)
