"""Decks of cards, as numbers."""

from __future__ import annotations

import torch
from torch import Tensor

DECK = 52
"""Cards of a deck."""
SUITS = ("spades", "diamonds", "clubs", "hearts")
COLOURS = ("black", "red")
RANKS = ("ace", *map(str, range(2, 11)), "jack", "queen", "king")


def shuffled(decks: int, episodes: int, generator: torch.Generator) -> Tensor:
    """Cards of so many decks together, each episode's in an order of its own, ``[episodes, 52·decks]``."""
    chance = torch.rand(episodes, decks * DECK, dtype=torch.float64, generator=generator, device=generator.device)
    return chance.argsort(1)


def suits(cards: Tensor) -> Tensor:
    """Places in :data:`SUITS`."""
    return cards % len(SUITS)


def colours(cards: Tensor) -> Tensor:
    """Places in :data:`COLOURS`."""
    return cards % len(COLOURS)


def ranks(cards: Tensor) -> Tensor:
    """Places in :data:`RANKS`."""
    return cards // len(SUITS) % len(RANKS)
