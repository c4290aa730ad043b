"""The memory of sparse access: its state, and that state while steps change it (Rae et al. 2016, arXiv 1610.09027).

B batch, N slots, W word size, R read heads, H write heads, K slots per read head, L links per slot,
E = H + R * K entries of a write weighting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from . import addressing, sparse_addressing
from .kernels.rows import InPlaceRows, InPlaceTimes, Rows
from .kernels.transforms import transform
from .state import register_state

ACCESS_THRESHOLD = 0.005
"""A slot counts as accessed at a step where its read and write weights add up to more (Rae et al., section 3.2)."""

Nearest = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
"""Maps memory ``[B, N, W]``, its norms ``[B, N]``, keys ``[B, R, W]``, their norms ``[B, R]`` and K to the slots of the
K most similar words, ``[B, R, K]``, in ascending order."""

MANY_SLOTS = 2**17
"""From so many slots on, a pass over when they were accessed costs more than to keep the least recent at hand."""

CACHED_ELEMENTS = 2**17
"""Elements of the memory that a lookup handles at a time on a CPU."""

LOOKUP_ELEMENTS = 2**26
"""Elements that a lookup makes at a time elsewhere: one for each of the memory and each key."""


@register_state
class NoLinks(NamedTuple):
    """The state of links where there are none: nothing."""


@register_state
class SparseLinks(NamedTuple):
    """Temporal links: for every slot, the slots written before it, and how strongly; -1 stands for no slot."""

    slots: Tensor
    """The slots that each slot was written after, ``[B, N, L]``"""
    values: Tensor
    """Strengths of these links, ``[B, N, L]``: row i holds the largest entries of row i of the DNC's link matrix"""
    followers: Tensor
    """The slots that were written after each slot, ``[B, N, L]``: the largest of its column; a link exists where
    both ends list it"""
    precedence_slots: Tensor
    """The slots written last, ``[B, L]``"""
    precedence: Tensor
    """Their precedence, ``[B, L]``"""


@register_state
class SparseState(NamedTuple):
    """Memory, sparse weightings and what finds the least recently used slot."""

    memory: Tensor
    """``[B, N, W]``"""
    last_access: Tensor
    """Step at which each slot was accessed last, 0 for never, ``[B, N]``"""
    steps: Tensor
    """Steps so far, ``[B]``"""
    used: Tensor
    """No slot from this one on was ever accessed, and all of those are zero, ``[B]``"""
    read_slots: Tensor
    """``[B, R, K]``, all different in a head"""
    read_weights: Tensor
    """``[B, R, K]``"""
    write_slots: Tensor
    """``[B, E]``: the slots that were emptied, then those that were read before"""
    write_weights: Tensor
    """``[B, H, E]``"""
    links: SparseLinks | NoLinks


class WorkingMemory:
    """A :class:`SparseState` while steps change it: anew at each change, or in place on a private copy."""

    def __init__(
        self,
        state: SparseState,
        *,
        reach: int,
        growth: int,
        steps: int,
        in_place: bool = False,
        nearest: Nearest | None = None,
    ) -> None:
        """
        Args:
            state: where to start; stays as it is.
            reach: slots from this one on were not accessed yet.
            growth: at most so many of those are accessed in a step.
            steps: that will be made.
            in_place: change a copy rather than making a new tensor each time.
            nearest: finds the words that are most similar to keys; None uses plain operations.
        """
        self.nearest = nearest
        rows = InPlaceRows if in_place else Rows
        size = state.memory.shape[1]
        self._start = state
        self._growth = growth
        self._reach = reach
        self._copied = min(size, reach + growth * steps)
        memory = state.memory[:, : self._copied]
        self.memory = rows(memory)
        times = InPlaceTimes if in_place and self._copied >= MANY_SLOTS else rows
        self.last_access = times(state.last_access[:, : self._copied])
        self.norms = rows(_norms(memory))
        self.steps, self.used = state.steps, state.used
        self.read_slots, self.read_weights = state.read_slots, state.read_weights
        self.write_slots, self.write_weights = state.write_slots, state.write_weights
        self.links = None if isinstance(state.links, NoLinks) else WorkingLinks(state.links, rows, self._copied)

    def advance(self) -> None:
        """Begin a step."""
        self.steps = self.steps + 1
        self._reach = min(self._reach + self._growth, self._copied)

    def searched(self, rows: Rows) -> Tensor:
        """As many of the first slots as a search needs to find what it would find among all."""
        return rows.tensor[:, : self._reach]

    def least_recent(self, count: int) -> Tensor:
        """The slots that were not accessed for the longest time, ``[B, count]``."""
        if isinstance(self.last_access, InPlaceTimes):
            return self.last_access.least_recent(count)
        return sparse_addressing.least_recent(self.searched(self.last_access), count)

    def most_similar(self, keys: Tensor, mask: Tensor | None) -> Tensor:
        """The K slots most similar to each key, ``[B, R, K]``, in ascending order; of equal ones the first.

        Args:
            keys: ``[B, R, W]``.
            mask: weight of each element, ``[B, R, W]``, or None.
        """
        with torch.no_grad():
            memory, norms = self.searched(self.memory).detach(), self.searched(self.norms)
            count = self.read_slots.shape[-1]
            if self.nearest is not None:
                key_norms = torch.sqrt((keys * keys).sum(-1) + addressing.NORM_EPSILON)
                return self.nearest(memory, norms, keys, key_norms, count)
            small = memory.numel() * keys.shape[1] <= CACHED_ELEMENTS
            # The fast way below looks at values, for which a GPU would have to wait.
            if small or not memory.is_cpu or transform((memory, norms, keys)) is not None:
                part = memory.shape[1] if small else max(1, LOOKUP_ELEMENTS // (memory[:, 0].numel() * keys.shape[1]))
                similarity = torch.cat(
                    [sparse_addressing.similarity(w.unsqueeze(1), keys, mask) for w in memory.split(part, 1)], dim=-1
                )
                return sparse_addressing.top_k(similarity, count).sort(dim=-1).values
            # A matrix product is much faster, but rounds equal words differently: where more slots come near the K
            # best than K, those are compared again.
            similarity = _product_similarity(memory, norms, keys, mask)
            best = sparse_addressing.top_k(similarity, count)
            tolerance = 8 * keys.shape[-1] * torch.finfo(similarity.dtype).eps
            near = similarity >= similarity.gather(-1, best).amin(-1, keepdim=True) - tolerance
            near = near & (similarity > -torch.inf)  # where no word can be compared, all of them are near
            most = int(near.sum(-1, dtype=torch.int32).max())
            if most <= count:
                return best.sort(dim=-1).values
            candidates = sparse_addressing.top_k(similarity, most).sort(dim=-1).values
            words = Rows(memory).take(candidates.flatten(1)).unflatten(1, candidates.shape[1:])
            chosen = sparse_addressing.top_k(sparse_addressing.similarity(words, keys, mask), count)
            return candidates.gather(-1, chosen).sort(dim=-1).values

    def note_norms(self, slots: Tensor) -> None:
        """The words of these slots ``[B, M]`` have changed."""
        with torch.no_grad():
            index = slots.unsqueeze(-1).expand(-1, -1, self.memory.tensor.shape[-1])
            self.norms.put(slots, _norms(self.memory.tensor.detach().gather(1, index)))

    def note_access(self) -> None:
        """Mark the slots whose weights of this step add up to more than the threshold."""
        with torch.no_grad():
            slots = torch.cat([self.write_slots, self.read_slots.flatten(1)], dim=-1)
            weights = torch.cat([self.write_weights.sum(1), self.read_weights.flatten(1)], dim=-1).detach()
            accessed = sparse_addressing.totals(slots, weights) > ACCESS_THRESHOLD
            self.last_access.put(slots, torch.where(accessed, self.steps.unsqueeze(-1), self.last_access.take(slots)))
            self.used = torch.maximum(self.used, slots.amax(-1) + 1)

    def close(self) -> SparseState:
        """The state with all changes; this object must not be used any more."""
        start, copied = self._start, self._copied
        return SparseState(
            memory=_joined(self.memory, start.memory, copied),
            last_access=_joined(self.last_access, start.last_access, copied),
            steps=self.steps,
            used=self.used,
            read_slots=self.read_slots,
            read_weights=self.read_weights,
            write_slots=self.write_slots,
            write_weights=self.write_weights,
            links=NoLinks() if self.links is None else self.links.close(copied),
        )


class WorkingLinks:
    """:class:`SparseLinks` while steps change them."""

    def __init__(self, links: SparseLinks, rows: type[Rows], copied: int) -> None:
        """
        Args:
            links: where to start; stay as they are.
            rows: how they change.
            copied: slots to work on.
        """
        self._start = links
        self.slots = rows(links.slots[:, :copied])
        self.values = rows(links.values[:, :copied])
        self.followers = rows(links.followers[:, :copied])
        self.precedence_slots, self.precedence = links.precedence_slots, links.precedence
        self.width = links.slots.shape[-1]

    def _rows(self, rows: Rows, slots: Tensor) -> Tensor:
        """Rows ``[B, …, L]`` of slots ``[B, …]``; -1 gives some row."""
        return rows.take(slots.clamp(min=0).flatten(1)).view(*slots.shape, self.width)

    def _before(self, slots: Tensor) -> Tensor:
        """The slots that these ``[B, M]`` were written after, ``[B, M, L]``; -1 where the other end has no link."""
        before = self._rows(self.slots, slots)
        known = (self._rows(self.followers, before) == slots[:, :, None, None]).any(-1)
        return torch.where(known & (before >= 0), before, -1)

    def write(self, slots: Tensor, weights: Tensor) -> None:
        """Links and precedence after a write (DNC "temporal linkage"), of the entries that are kept.

        L[i,j] = (1 - w[i] - w[j]) L[i,j] + w[i] p[j], then p = (1 - Σ w) p + w.

        Args:
            slots: ``[B, M]``; a slot may be named more than once.
            weights: ``[B, M]``.
        """
        first = sparse_addressing.first_of_equals(slots)
        total = sparse_addressing.totals(slots, weights)
        before = self._before(slots)
        value = torch.where(before >= 0, self.values.take(slots), 0)
        # A slot that is written loses its links to those that came after it; the sum adds each of them once.
        after = self._rows(self.followers, slots).flatten(1)
        owner = slots.repeat_interleave(self.width, dim=1)
        ends = (self._rows(self.slots, after) == owner.unsqueeze(-1)) & (after >= 0).unsqueeze(-1)
        ends = ends & first.repeat_interleave(self.width, dim=1).unsqueeze(-1)
        lost = total.repeat_interleave(self.width, dim=1).unsqueeze(-1) * self._rows(self.values, after) * ends
        self.values.add(after.clamp(min=0), -lost)
        decayed = torch.where(before >= 0, self.values.take(slots), 0) - total.unsqueeze(-1) * value

        new = total.unsqueeze(-1) * self.precedence.unsqueeze(1)
        new_slots = self.precedence_slots.unsqueeze(1).expand_as(new)
        same = before.unsqueeze(-1) == new_slots.unsqueeze(-2)
        decayed = decayed + (same * new.unsqueeze(-2)).sum(-1)
        taken = same.any(-2) | (new_slots == slots.unsqueeze(-1))
        candidates = torch.cat([before, torch.where(taken, -1, new_slots)], dim=-1)
        values = torch.cat([decayed, torch.where(taken, 0, new)], dim=-1)
        kept, kept_values = sparse_addressing.largest(candidates, values, self.width)
        self.slots.put(slots, kept)
        self.values.put(slots, kept_values)
        self._note_followers(torch.where(first, slots, -1))

        # As many slots as there are links are always at hand: those of the last precedence.
        entries = torch.cat([self.precedence_slots, slots], dim=-1)
        remaining = (1 - weights.sum(-1, keepdim=True)) * self.precedence
        weights = torch.cat([remaining, weights], dim=-1)
        self.precedence_slots, self.precedence = sparse_addressing.merged(entries, weights, self.width)

    def _note_followers(self, written: Tensor) -> None:
        """List the slots written, ``[B, M]`` (-1: none), after those of the last precedence, if links are strong."""
        with torch.no_grad():
            target = self.precedence_slots
            old = self._rows(self.followers, target)
            new = written.unsqueeze(1).expand(-1, self.width, -1)
            new = torch.where((new.unsqueeze(-1) == old.unsqueeze(-2)).any(-1), -1, new)
            candidates = torch.cat([old, new], dim=-1)
            ends = (self._rows(self.slots, candidates) == target[:, :, None, None]) & (candidates >= 0).unsqueeze(-1)
            values = self.values.tensor.detach().gather(
                1, candidates.clamp(min=0).flatten(1).unsqueeze(-1).expand(-1, -1, self.width)
            )
            strengths = (values.view(ends.shape) * ends).sum(-1)
            kept, _ = sparse_addressing.largest(torch.where(ends.any(-1), candidates, -1), strengths, self.width)
            self.followers.put(target, kept)

    def around(self, slots: Tensor, weights: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Where links lead to from a weighting: b = Lᵀ w and f = L w (DNC "temporal linkage").

        Args:
            slots: ``[B, R, K]``.
            weights: ``[B, R, K]``.

        Returns:
            Backward and forward, each slots and weights ``[B, R, K * L]``; a slot may come more than once, or be -1.
        """
        shape = (*slots.shape, self.width)
        before = self._before(slots.flatten(1)).view(shape)
        backward = weights.unsqueeze(-1) * torch.where(before >= 0, self._rows(self.values, slots), 0)
        after = self._rows(self.followers, slots)
        ends = (self._rows(self.slots, after) == slots[..., None, None]) & (after >= 0).unsqueeze(-1)
        forward = weights.unsqueeze(-1) * (self._rows(self.values, after) * ends).sum(-1)
        after = torch.where(ends.any(-1), after, -1)
        return (before.flatten(2), backward.flatten(2)), (after.flatten(2), forward.flatten(2))

    def close(self, copied: int) -> SparseLinks:
        """The links with all changes; this object must not be used any more."""
        start = self._start
        return SparseLinks(
            slots=_joined(self.slots, start.slots, copied),
            values=_joined(self.values, start.values, copied),
            followers=_joined(self.followers, start.followers, copied),
            precedence_slots=self.precedence_slots,
            precedence=self.precedence,
        )


def _product_similarity(memory: Tensor, norms: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
    """Similarity of each key to each slot, ``[B, R, N]``, by matrix products; ``norms`` ``[B, N]`` are of the words."""
    # A part at a time: what comes between the words and the similarities then stays in the processor's cache.
    part = max(1, CACHED_ELEMENTS // memory[:, 0].numel()) if memory.device.type == "cpu" else memory.shape[1]
    key_norms = torch.sqrt((keys * keys).sum(-1, keepdim=True) + addressing.NORM_EPSILON)
    found = []
    for words, word_norms in zip(memory.split(part, 1), norms.split(part, 1), strict=True):
        if mask is not None:
            found.append(addressing.cosine_similarity(words, keys, mask))
        else:
            # As in addressing.cosine_similarity, with the norms of the words at hand.
            product = key_norms * word_norms.unsqueeze(1) + addressing.NORM_EPSILON
            found.append(keys @ words.transpose(-1, -2) / product)
    return torch.cat(found, dim=-1).nan_to_num_(nan=-torch.inf)


def _norms(memory: Tensor) -> Tensor:
    """Norm of each word as in :func:`~papertape.core.addressing.cosine_similarity`, ``[B, N, W]`` -> ``[B, N]``."""
    # A norm, then its square: the squares of all elements would be a second memory.
    return torch.sqrt(torch.linalg.vector_norm(memory.detach(), dim=-1).square() + addressing.NORM_EPSILON)


def _joined(rows: Rows, whole: Tensor, copied: int) -> Tensor:
    """The changed first rows, joined with the untouched rest of the tensor that they came from."""
    changed = rows.close()
    return changed if copied == whole.shape[1] else torch.cat([changed, whole[:, copied:]], dim=1)
