"""One sequence with its answer and what the heads did: what pictures of the memory are made from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...core.trace_field import TraceField

if TYPE_CHECKING:
    from torch import Tensor

    from ...core.env import Batch
    from ...core.trace import Trace


Array: TypeAlias = NDArray[np.float32]
"""What pictures are drawn from: arrays of float32."""

USED = 0.05
"""A slot counts as used from this weight on; pictures are cropped to used slots."""


class Seen(NamedTuple):
    """One field of a trace."""

    values: Array
    """``[T, …]``, with the axes that the field has after time and batch."""
    field: TraceField

    @property
    def axes(self) -> list[str]:
        """Letters of the axes after time."""
        return self.field.axes.split()


class Episode(NamedTuple):
    """One sequence with its answer and what the heads did: float32 numpy arrays, ready to be pickled.

    T steps, I inputs, O outputs; None for what is not there.
    """

    name: str
    """What the sequence is, such as ``length 40``."""
    inputs: Array | None = None
    """``[T, I]``"""
    targets: Array | None = None
    """``[T, O]``"""
    outputs: Array | None = None
    """``[T, O]``, probabilities where there are targets."""
    mask: Array | None = None
    """``[T]``: 1 where the output counts."""
    seen: Mapping[str, Seen] = {}
    """What the heads and the memory did, each field of the trace by its name."""

    @property
    def steps(self) -> int:
        """T."""
        parts = (self.inputs, self.targets, self.outputs, *(seen.values for seen in self.seen.values()))
        return next(len(part) for part in parts if part is not None)

    @property
    def judged(self) -> bool:
        """Whether any output counts; none does in a world, which gives rewards instead of targets."""
        return self.mask is not None and bool(self.mask.any())

    def of_kind(self, *kinds: str) -> dict[str, Seen]:
        """The fields of some kinds, by name."""
        return {name: seen for name, seen in self.seen.items() if seen.field.kind in kinds}


def plain(tensor: Tensor, steps: int | None = None, sequence: int = 0) -> Array:
    """One sequence of ``[T, B, …]`` as numbers of its own that nobody can change, ``[T, …]``."""
    array: Array = tensor[:steps, sequence].detach().float().cpu().numpy().copy()
    array.flags.writeable = False
    return array


def episode_from(name: str, batch: Batch, outputs: Tensor, trace: Trace) -> Episode:
    """The first sequence of a batch, cut off after its last counted step, on the CPU.

    Args:
        name: what the sequence is.
        batch: time first, as an env hands it out.
        outputs: logits, ``[T, B, O]``.
        trace: what the heads did, time first.
    """
    counted = np.flatnonzero(plain(batch.mask))
    steps = int(counted[-1]) + 1 if len(counted) else len(batch.mask)
    return Episode(
        name,
        plain(batch.inputs, steps),
        plain(batch.targets, steps),
        plain(outputs.sigmoid(), steps),
        plain(batch.mask, steps),
        {field: Seen(plain(tensor, steps), trace.fields[field]) for field, tensor in trace.items()},
    )


def wrong_bits(episode: Episode) -> NDArray[np.bool_]:
    """Which counted outputs fall on the wrong side of one half, ``[T, O]``; none where there are no targets."""
    if episode.outputs is None or episode.targets is None or episode.mask is None:
        return np.zeros((episode.steps, 0), np.bool_)
    wrong: NDArray[np.bool_] = (episode.outputs > 0.5) != (episode.targets > 0.5)
    return wrong & (episode.mask[:, None] > 0)


class Slots(NamedTuple):
    """The slots that a picture shows, counted round the memory's end: -2 is the last but one."""

    first: int
    last: int
    total: int

    @property
    def indices(self) -> NDArray[np.int_]:
        """Of each slot shown, within the memory."""
        return np.arange(self.first, self.last + 1) % self.total

    @property
    def label(self) -> str:
        """For a title; empty where all slots are shown."""
        if self.last - self.first + 1 == self.total:
            return ""
        return f", slots {self.first % self.total}–{self.last % self.total} of {self.total}"


def slot_axes(episode: Episode) -> dict[str, Slots]:
    """The axes that are slots, by their letters, with the slots that are used.

    They are those of each memory, and those that are called N.
    """
    memories = episode.of_kind("memory").values()
    letters = dict.fromkeys(seen.axes[-2] for seen in memories)
    letters |= dict.fromkeys(axis for seen in episode.seen.values() for axis in seen.axes if axis == "N")
    return {letter: used_slots(episode, letter) for letter in letters}


def used_slots(episode: Episode, letter: str = "N") -> Slots:
    """The shortest stretch of slots (round the memory's end if need be) with all that a weighting used, or all.

    Args:
        episode: has an axis of slots.
        letter: of that axis.
    """
    fields = [seen for seen in episode.seen.values() if letter in seen.axes]
    total = next(seen.values.shape[1 + seen.axes.index(letter)] for seen in fields)
    weights = [seen.values for seen in fields if seen.field.kind == "weighting" and seen.axes[-1] == letter]
    everything = Slots(0, total - 1, total)
    if not weights or total <= 32:
        return everything
    used = np.flatnonzero(np.max([part.reshape(-1, total).max(axis=0) for part in weights], axis=0) > USED)
    if not len(used):
        return everything
    gaps = np.diff(used, append=used[0] + total)
    widest = int(gaps.argmax())
    length = total - int(gaps[widest]) + 1
    if length > 0.6 * total:
        return everything
    last = int(used[widest])
    first = last - length + 1
    if first < 0:
        return Slots(first - 2, last + 2, total)
    return Slots(max(first - 2, 0), min(last + 2, total - 1), total)
