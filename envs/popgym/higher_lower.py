"""Higher or lower: guess whether the next card ranks above or below this one (POPGym)."""

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

HIGHER = 0
"""The action that guesses higher."""


class _Situation(NamedTuple):
    ranks: Tensor
    """In the order in which they are shown, ``[B, N]``."""
    time: Tensor
    """Cards that have been answered, ``[B]``."""


@register("env", "higher-lower")
class HigherLowerWorld(PopgymWorld[_Situation]):
    """Whether the next card of 1, 2 or 3 decks is higher; whoever remembers which have come guesses better.

    Observations ``[B, 13]``: the rank of a card, one-hot. Actions: higher, lower. Of N cards all but the last are
    answered; each gives 1 / N if right, nothing if the next rank is the same, else takes it. The best return depends on
    the cards and is below 1.
    """

    decks: ClassVar[dict[str, int]] = {"easy": 1, "medium": 2, "hard": 3}

    def setup(self) -> None:
        """Count the cards."""
        super().setup()
        self.cards = self.decks[self.difficulty] * cards.DECK

    def senses(self) -> Sequence[Channels]:
        """The rank of a card."""
        return [Channels("rank", len(cards.RANKS), cards.RANKS)]

    def output_channels(self) -> Sequence[Channels]:
        """A guess."""
        return [Channels("next card", 2, ("higher", "lower"), choice=True)]

    def begin(self, episodes: int, generator: torch.Generator) -> _Situation:
        """Shuffle; see :meth:`TensorWorld.begin`."""
        ranks = cards.ranks(cards.shuffled(self.decks[self.difficulty], episodes, generator))
        return _Situation(ranks, torch.zeros_like(ranks[:, 0]))

    def act(self, situation: _Situation, actions: Tensor) -> Outcome:
        """Show the next card and judge the guess; see :meth:`TensorWorld.act`."""
        last = self.cards - 1
        time = (situation.time + 1).clamp(max=last)
        before, after = at(situation.ranks, situation.time), at(situation.ranks, time)
        rewards = for_and_against((after > before) == (actions == HIGHER), 1 / self.cards) * (after != before)
        over = time >= last
        return Outcome(situation._replace(time=time), rewards, over, torch.zeros_like(over))

    def observe(self, situation: _Situation) -> Tensor:
        """The card; see :meth:`TensorWorld.observe`."""
        return one_hot(at(situation.ranks, situation.time), len(cards.RANKS))
