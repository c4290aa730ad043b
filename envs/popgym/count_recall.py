"""Count recall: say how often a kind of card has come so far (POPGym)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ...core.registry import register
from ...core.tensor_world import Outcome, at, one_hot
from ...core.trace_field import Channels
from . import cards
from .game import PopgymWorld, for_and_against


class _Situation(NamedTuple):
    dealt: Tensor
    """Kinds in the order in which they are shown, ``[B, N]``."""
    asked: Tensor
    """Kinds that are asked for, ``[B, N]``."""
    counts: Tensor
    """How often what is asked for has been dealt by then, ``[B, N]``."""
    time: Tensor
    """Cards that have been answered, ``[B]``."""


@register("env", "count-recall")
class CountRecallWorld(PopgymWorld[_Situation]):
    """A card is dealt and another one shown, whose like is to be counted: colours, suits or ranks, of 1, 2 or 4 decks.

    Observations ``[B, 2·K]``: the kind of the card dealt and that of the card asked for, each one-hot; 2 colours, 4
    suits or 13 ranks. Actions: how often the kind asked for has been dealt, this time included, up to as many as there
    are. Of N cards all but the last are answered; each gives 1 / (N - 1) if right, else takes it. In popgym up to
    1.0.6, the largest count was no action.
    """

    decks_and_kinds: ClassVar[dict[str, tuple[int, tuple[str, ...], Callable[[Tensor], Tensor]]]] = {
        "easy": (1, cards.COLOURS, cards.colours),
        "medium": (2, cards.SUITS, cards.suits),
        "hard": (4, cards.RANKS, cards.ranks),
    }

    def setup(self) -> None:
        """Count the cards."""
        self.decks, self.kinds, self._kind = self.decks_and_kinds[self.difficulty]
        self.cards = self.decks * cards.DECK
        super().setup()

    def senses(self) -> Sequence[Channels]:
        """Two cards."""
        return [Channels("dealt", len(self.kinds), self.kinds), Channels("asked for", len(self.kinds), self.kinds)]

    def output_channels(self) -> Sequence[Channels]:
        """A number."""
        largest = self.cards // len(self.kinds)
        return [Channels("count", largest + 1, tuple(map(str, range(largest + 1))), choice=True)]

    def begin(self, episodes: int, generator: torch.Generator) -> _Situation:
        """Shuffle, and count; see :meth:`TensorWorld.begin`."""
        dealt, asked = (self._kind(cards.shuffled(self.decks, episodes, generator)) for _ in range(2))
        counts = one_hot(dealt, len(self.kinds)).long().cumsum(1).gather(2, asked.unsqueeze(-1)).squeeze(-1)
        return _Situation(dealt, asked, counts, torch.zeros_like(dealt[:, 0]))

    def act(self, situation: _Situation, actions: Tensor) -> Outcome:
        """Judge the answer and deal the next cards; see :meth:`TensorWorld.act`."""
        last = self.cards - 1
        rewards = for_and_against(actions == at(situation.counts, situation.time), 1 / last)
        time = (situation.time + 1).clamp(max=last)
        over = time >= last
        return Outcome(situation._replace(time=time), rewards, over, torch.zeros_like(over))

    def observe(self, situation: _Situation) -> Tensor:
        """Both cards; see :meth:`TensorWorld.observe`."""
        both = torch.stack([at(situation.dealt, situation.time), at(situation.asked, situation.time)], -1)
        return one_hot(both, len(self.kinds)).flatten(1)
