"""gymnasium's spaces as channels: which outputs make an action, and how many channels an observation has."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.trace_field import Channels
from ..core.world import ActionPart

Squash = Literal["sigmoid", "tanh", "clip", "sample"]
"""How an output becomes a number within bounds; see :class:`~papertape.envs.GymWorld`."""

MOST_WHOLE_NUMBERS = 2**24
"""Between the bounds of an action: all are within reach of an output in single precision."""
LARGEST_WHOLE_NUMBER = 2**53
"""Up to here double precision holds every whole number."""
MOST_CHANNELS = 2**20
"""Of an observation or of an output."""
LARGEST_LOG_STD = 20.0


class Choices(NamedTuple):
    """Whole numbers in a row, one of which is chosen."""

    size: int
    start: int


class Binaries(NamedTuple):
    """Numbers that are 0 or 1."""

    size: int


class Numbers(NamedTuple):
    """Numbers between bounds, which are finite; where a space has none, the largest numbers of its type."""

    low: np.ndarray
    """``[size]`` in float64, as :attr:`high`."""
    high: np.ndarray
    bounded: np.ndarray
    """On both sides, bool ``[size]``."""
    whole: bool

    @property
    def size(self) -> int:
        """How many."""
        return len(self.low)


Piece = Choices | Binaries | Numbers


class Refused(ValueError):  # noqa: N818 (it is caught by the world, which says what for)
    """A space that cannot be put into channels; says which is found and what is allowed."""


def _leaves(space: Any) -> Iterator[Any]:
    """The spaces that a Dict or a Tuple is made of, in the order in which gymnasium flattens it; any other is one."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict | spaces.Tuple):
        for part in space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces:
            yield from _leaves(part)
    else:
        yield space


def _pieces(leaf: Any) -> list[Piece]:
    from gymnasium import spaces

    if isinstance(leaf, spaces.Discrete):
        return [Choices(int(leaf.n), int(leaf.start))]
    if isinstance(leaf, spaces.MultiDiscrete):
        return list(map(Choices, leaf.nvec.flatten().tolist(), leaf.start.flatten().tolist()))
    if isinstance(leaf, spaces.MultiBinary):
        return [Binaries(math.prod(leaf.shape))]
    if not isinstance(leaf, spaces.Box):
        allowed = "Box, Discrete, MultiDiscrete and MultiBinary, and Dict and Tuple of these"
        raise Refused(f"{type(leaf).__name__} in it; allowed are {allowed}")
    if np.isnan(leaf.low).any() or np.isnan(leaf.high).any():
        raise Refused("bounds that are no numbers; allowed are numbers and infinity")
    whole = not np.issubdtype(leaf.dtype, np.floating)
    bounded = (leaf.bounded_below & leaf.bounded_above).flatten()
    low, high = (bound.astype(np.float64).flatten() for bound in (leaf.low, leaf.high))
    if not whole:
        # Without a bound, the largest that its type can hold.
        most = float(min(np.finfo(leaf.dtype).max, np.finfo(np.float64).max))
        low, high = low.clip(-most, most), high.clip(-most, most)
    return [Numbers(low, high, bounded, whole)]


def _check_size(size: int) -> int:
    if not 1 <= size <= MOST_CHANNELS:
        raise Refused(f"{size:,} channels; allowed are from 1 to {MOST_CHANNELS:,}")
    return size


def observation_channels(space: Any) -> list[Channels]:
    """Channels of an observation, flattened as gymnasium does: choices one-hot.

    Raises:
        Refused: the space is of a kind that has none, or has far too many or none at all.
    """
    found: list[int] = []
    pieces = [piece for leaf in _leaves(space) for piece in _pieces(leaf)]
    _check_size(sum(piece.size for piece in pieces))
    # Each number has units of its own, and is drawn on its own.
    for piece in pieces:
        found += [1] * piece.size if isinstance(piece, Numbers) else [piece.size]
    names = ["observation"] if len(found) == 1 else [f"observation {number}" for number in range(1, len(found) + 1)]
    return list(map(Channels, names, found))


class Actions:
    """Turns outputs into actions of a space, as numbers side by side."""

    def __init__(self, space: Any, squash: Squash) -> None:
        """
        Args:
            space: of gymnasium.
            squash: how outputs become numbers within bounds.

        Raises:
            Refused: not every action of the space would be within reach of an output.
        """
        from gymnasium import spaces

        self.pieces = [piece for leaf in _leaves(space) for piece in _pieces(leaf)]
        self.squash = squash
        self.single = isinstance(space, spaces.Discrete)
        """Whether an action is one choice, a number without a row of its own."""
        self.whole = all(not isinstance(piece, Numbers) or piece.whole for piece in self.pieces)
        for leaf in _leaves(space):
            if isinstance(leaf, spaces.Box):
                _check_whole_numbers(leaf)
        self.channels = [self._channels_of(piece) for piece in self.pieces]
        self.output_size = _check_size(sum(self.channels))
        self._bounds = {
            at: tuple(torch.from_numpy(part) for part in (piece.low, piece.high, piece.bounded))
            for at, piece in enumerate(self.pieces)
            if isinstance(piece, Numbers)
        }

    def _channels_of(self, piece: Piece) -> int:
        return piece.size * (2 if self.squash == "sample" and isinstance(piece, Numbers) else 1)

    def parts(self) -> list[ActionPart]:
        """How an agent draws them; see :meth:`World.action_parts`."""
        kinds: dict[type, Any] = {Choices: "categorical", Binaries: "bernoulli", Numbers: "normal"}
        return [ActionPart(kinds[type(piece)], piece.size) for piece in self.pieces]

    def names(self) -> list[Channels]:
        """What the channels of an output are."""
        found = []
        for number, (piece, size) in enumerate(zip(self.pieces, self.channels, strict=True), start=1):
            name = "action" if len(self.pieces) == 1 else f"action {number}"
            if isinstance(piece, Choices):
                end = ":" if len(self.pieces) > 1 else ""
                labels = tuple(f"{name}{end} {piece.start + value}" for value in range(size))
                found.append(Channels(name + end, size, labels, choice=True))
            else:
                found.append(Channels(name, size))
        return found

    def decide(self, outputs: Tensor, noise: Tensor | None = None) -> Tensor:
        """Actions from outputs ``[B, O]``: ``[B]`` for one choice, else ``[B, A]``; whole if all are, or in float64.

        Args:
            outputs: finite or not.
            noise: ``[B, O]`` in float64, between 0 and 1; with it choices, answers and numbers are drawn.
        """
        found = []
        parts = outputs.split(self.channels, dim=-1)
        drawn = [None] * len(parts) if noise is None else noise.split(self.channels, dim=-1)
        for at, (piece, part, chance) in enumerate(zip(self.pieces, parts, drawn, strict=True)):
            if isinstance(piece, Choices):
                logits = part if chance is None else part.double() - (-chance.log()).log()
                found.append((logits.argmax(-1) + piece.start).unsqueeze(-1))
            elif isinstance(piece, Binaries):
                found.append((part > (0 if chance is None else torch.logit(chance))).long())
            else:
                low, high, bounded = (bound.to(part.device) for bound in self._bounds[at])
                found.append(self._numbers(part.double(), low, high, bounded, piece.whole, chance))
        if self.single:
            return found[0].squeeze(-1)
        return found[0] if len(found) == 1 else torch.cat([part.to(self.dtype) for part in found], -1)

    @property
    def dtype(self) -> torch.dtype:
        """Of what :meth:`decide` gives."""
        return torch.long if self.whole else torch.float64

    def _numbers(
        self, given: Tensor, low: Tensor, high: Tensor, bounded: Tensor, whole: bool, chance: Tensor | None
    ) -> Tensor:
        """Outputs ``[B, A]`` (means and log standard deviations where drawn) to numbers between bounds."""
        if self.squash == "sample":
            given, spread = given.chunk(2, -1)
            if chance is not None:
                normal = math.sqrt(2) * torch.erfinv(2 * chance[..., : given.shape[-1]] - 1)
                given = given + spread.clamp(-LARGEST_LOG_STD, LARGEST_LOG_STD).exp() * normal
        if whole:
            low, high = (bound.clamp(-LARGEST_WHOLE_NUMBER, LARGEST_WHOLE_NUMBER) for bound in (low, high))
        chosen = torch.round(given) if whole else given
        if self.squash in ("sigmoid", "tanh"):
            share = torch.sigmoid(given if self.squash == "sigmoid" else 2 * given)  # tanh x = 2 sigmoid 2x - 1
            within = low + torch.floor(share * (high - low + 1)) if whole else low * (1 - share) + high * share
            chosen = torch.where(bounded, within, chosen)
        # What is not a number would be any, once it is whole.
        chosen = torch.where(chosen.isnan(), low, chosen).clamp(low, high)
        return chosen.long() if whole else chosen


def _check_whole_numbers(space: Any) -> None:
    """Raise Refused if an action is one of more whole numbers than outputs can tell apart."""
    if np.issubdtype(space.dtype, np.floating):
        return
    ends = zip(*(map(int, bound.flatten().tolist()) for bound in (space.low, space.high)), strict=True)
    known = zip(space.bounded_below.flatten().tolist(), space.bounded_above.flatten().tolist(), strict=True)
    for (low, high), (below, above) in zip(ends, known, strict=True):
        # Where there is no end, no output is too large or too small; one that there is must be within reach.
        too_many = below and above and high - low >= MOST_WHOLE_NUMBERS
        if too_many or any(there and abs(end) > LARGEST_WHOLE_NUMBER for end, there in ((low, below), (high, above))):
            raise Refused(
                f"whole numbers from {low if below else '-infinity'} to {high if above else 'infinity'}; allowed are "
                f"at most {MOST_WHOLE_NUMBERS:,} of them, or any where an end is missing, with no end beyond "
                f"{LARGEST_WHOLE_NUMBER:,}"
            )


def as_floats(found: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Numbers of any type as those of a circuit; finite ones stay so, the largest there are if need be."""
    kind = np.dtype(str(dtype).removeprefix("torch."))
    if found.dtype.kind == "f" and found.dtype.itemsize > kind.itemsize:
        most = np.finfo(kind).max
        found = np.where(np.isfinite(found), found.clip(-most, most), found)
    return found.astype(kind)
