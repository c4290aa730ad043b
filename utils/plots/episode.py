"""One sequence with its answer and what the heads did: what pictures of the memory are made from."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from ...core.circuit import Trace
    from ...core.env import Batch


Array: TypeAlias = NDArray[np.float32]

USED = 0.05
"""A slot counts as used from this weight on; pictures are cropped to used slots."""


class Episode(NamedTuple):
    """One sequence with its answer and what the heads did: float32 numpy arrays, ready to be pickled.

    T steps, I inputs, O outputs, R read heads, H write heads, N slots, W word size; None where a circuit lacks a part.
    """

    name: str
    """What the sequence is, such as ``length 40``."""
    inputs: Array
    """``[T, I]``"""
    targets: Array
    """``[T, O]``"""
    outputs: Array
    """Probabilities, ``[T, O]``"""
    mask: Array
    """``[T]``: 1 where the output counts."""
    read_weights: Array | None = None
    """``[T, R, N]``"""
    write_weights: Array | None = None
    """``[T, H, N]``"""
    memory: Array | None = None
    """Contents after each step, ``[T, N, W]``"""
    reads: Array | None = None
    """``[T, R, W]``"""
    add: Array | None = None
    """``[T, H, W]``"""
    erase: Array | None = None
    """``[T, H, W]``"""
    usage: Array | None = None
    """``[T, N]``"""
    allocation_weights: Array | None = None
    """``[T, H, N]``"""
    free_gates: Array | None = None
    """``[T, R]``"""
    allocation_gates: Array | None = None
    """``[T, H]``"""
    write_gates: Array | None = None
    """``[T, H]``"""
    read_modes: Array | None = None
    """Shares of backward (H), content (1) and forward (H), ``[T, R, 1 + 2H]``"""

    @property
    def titles(self) -> tuple[str, str, str]:
        """Of inputs, targets and outputs; where no step counts it was played in a world, with rewards as targets."""
        return ("input", "target", "output") if self.mask.any() else ("observation", "reward", "output")


def episode_from(name: str, batch: Batch, outputs: Tensor, trace: Trace | None) -> Episode:
    """The first sequence of a batch, cut off after its last counted step, on the CPU.

    Args:
        name: what the sequence is.
        batch: time first, as an env hands it out.
        outputs: logits, ``[T, B, O]``.
        trace: what the heads did, time first; None where there are no heads.
    """

    def first(tensor: Tensor) -> Array:
        array: Array = tensor[:, 0].detach().float().cpu().numpy()
        return array

    mask = first(batch.mask)
    counted = np.flatnonzero(mask)
    steps = int(counted[-1]) + 1 if len(counted) else len(mask)
    parts = {} if trace is None else trace._asdict()
    seen = {
        part: first(value)[:steps] for part, value in parts.items() if value is not None and part in Episode._fields
    }
    return Episode(
        name,
        first(batch.inputs)[:steps],
        first(batch.targets)[:steps],
        first(outputs.sigmoid())[:steps],
        mask[:steps],
        **seen,
    )


def wrong_bits(episode: Episode) -> NDArray[np.bool_]:
    """Which counted outputs fall on the wrong side of one half, ``[T, O]``."""
    wrong: NDArray[np.bool_] = ((episode.outputs > 0.5) != (episode.targets > 0.5)) & (episode.mask[:, None] > 0)
    return wrong


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


def used_slots(episode: Episode) -> Slots:
    """The shortest stretch of slots (round the memory's end if need be) with all that a head used, or all."""
    weights = [part for part in (episode.write_weights, episode.read_weights) if part is not None]
    total = weights[0].shape[-1] if weights else 0 if episode.memory is None else episode.memory.shape[1]
    everything = Slots(0, total - 1, total)
    if not weights:
        return everything
    used = np.flatnonzero(np.max([part.max(axis=(0, 1)) for part in weights], axis=0) > USED)
    if total <= 32 or not len(used):
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
