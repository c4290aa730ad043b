"""The sparse accessor: every step touches a few slots, however many there are (Rae et al. 2016, arXiv 1610.09027).

B batch, N slots, W word size, R read heads, H write heads, K slots per read head, L links per slot,
E = H + R * K entries of a write weighting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from .. import addressing, sparse_addressing
from ..interface import Interface, lookup_mask, oneplus
from ..kernels.rows import InPlaceRows, InPlaceTimes, Rows
from ..kernels.transforms import transform
from ..registry import register
from ..state import example, register_state
from ..trace import TraceField
from .base import SlotAccessor, SlotOptions

ACCESS_THRESHOLD = 0.005
"""A slot counts as accessed at a step where its read and write weights add up to more (Rae et al., section 3.2)."""

Nearest = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
"""Maps memory ``[B, N, W]``, its norms ``[B, N]``, keys ``[B, R, W]``, their norms ``[B, R]`` and K to the slots of the
K most similar words, ``[B, R, K]``, in ascending order."""

MANY_SLOTS = 2**17
"""From so many slots on, a pass over when they were accessed costs more than to keep the least recent at hand."""

CACHED_ELEMENTS = 2**17
"""Elements of the memory that a lookup handles at a time on a CPU."""


class SparseOptions(SlotOptions):
    """Options of :class:`SparseAccessor`, which :class:`papertape.SAM` and :class:`papertape.SDNC` have as well."""

    memory_size: int = 1024
    word_size: int = 32
    num_reads: int = 4
    slots_per_read: int = Field(
        default=4, ge=1, description="K, slots that a read head reads; all of them where the memory has fewer"
    )
    links_per_slot: int = Field(
        default=0,
        ge=0,
        description="L, links that each slot keeps to slots before it, and to slots after it; 0 has none",
    )

    @classmethod
    def check_options(cls, options: Any) -> None:
        """See :meth:`Component.check_options`."""
        super().check_options(options)
        check_slots(options.memory_size, getattr(options, "num_writes", 1))
        if getattr(options, "links_per_slot", 0) and getattr(options, "num_writes", 1) != 1:
            raise ValueError(f"num_writes: got {options.num_writes}; allowed with temporal links: 1")


def check_slots(memory_size: int, num_writes: int) -> None:
    """Raise ValueError if there are fewer slots than write heads, each of which needs one of its own."""
    if memory_size < num_writes:
        raise ValueError(
            f"memory_size: got {memory_size}; each of the {num_writes} write heads needs a slot of its own"
        )


@register_state
class NoLinks(NamedTuple):
    """Without temporal links there is nothing to carry."""


@register_state
class SparseLinks(NamedTuple):
    """Temporal links: for every slot, the slots written before it and how surely; -1 stands for no slot."""

    slots: Tensor
    """The slots that each slot was written after, ``[B, N, L]``"""
    values: Tensor
    """How surely, ``[B, N, L]``: row i holds the largest entries of row i of the DNC's link matrix"""
    followers: Tensor
    """The slots that were written after each slot, ``[B, N, L]``: the largest of its column; a link exists where
    both ends list it"""
    precedence_slots: Tensor
    """The slots written last, ``[B, L]``"""
    precedence: Tensor
    """How surely, ``[B, L]``"""


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


class SparseHeads(NamedTuple):
    """Parameters of sparse heads at one step."""

    read_keys: Tensor
    """``[B, R, W]``"""
    read_strengths: Tensor
    """``[B, R]``, at least 1"""
    add: Tensor
    """Words to write, ``[B, H, W]``"""
    write_gates: Tensor
    """``[B, H]``"""
    write_modes: Tensor
    """Shares of the least recently used slot and of what each read head read last, ``[B, H, 1 + R]``"""
    read_modes: Tensor | None
    """Shares of backward, content and forward, ``[B, R, 3]``, with links"""
    read_mask: Tensor | None
    """``[B, R, W]`` in (0.1, 1), with ``masked_content``"""


@register("accessor", "sparse")
class SparseAccessor(SparseOptions, SlotAccessor):
    """Memory of which a step writes and reads a few slots only: SAM, and with links SDNC.

    Write, each head h: w_h = gate · (Σ_r mode_r · (what head r read last) + mode_0 · (the least recently used slot)).
    That slot is emptied, then M += Σ_h w_h a_hᵀ. With several write heads each has another such slot. With one read
    head the modes are the paper's interpolation gate γ and 1 - γ; with more, each write head chooses among them.

    Read, each head: softmax of strength · cosine over the K slots that are most similar to its key, found exactly.
    With links, as in the DNC, the words before and after those read last count too: w = π_1 b + π_2 c + π_3 f, of
    which the K heaviest slots are kept. Of the link matrix each row keeps its L largest entries, and then each column,
    so that b and f follow at most L links of each slot read (Rae et al., supplement D; their eqs. 19 and 20 let links
    decay less than the DNC does, and a forward weighting sum to more than 1).

    With K = N (and L = N) nothing is left out. Reading then equals :func:`~papertape.core.addressing.content_weights`
    and :func:`~papertape.core.addressing.read` over the whole memory, writing equals
    :func:`~papertape.core.addressing.write` with an erase vector of ones for the emptied slot, and links equal
    :func:`~papertape.core.addressing.link`, :func:`~papertape.core.addressing.precedence` and
    :func:`~papertape.core.addressing.directional_weights` of the DNC. What is then still not an NTM or a DNC is how a
    write finds its slots: by least recent use and by what was read, not by location, content or a usage between 0 and
    1. The choices of slots (the K nearest, the L strongest, the least recently used) have no gradient; everything else
    has, exactly.

    :meth:`forward` leaves the state that it is given as it was, so a single step copies the memory. A whole sequence
    (between :meth:`begin` and :meth:`end`) changes one copy in place, and keeps the rows that it touched for the
    backward pass: K·W numbers per step rather than N·W. Slots that were never accessed are alike and come last among
    equals, so the accessed ones are always the first ones, and neither search nor copy goes beyond them.
    """

    kind = "sparse"
    trace_fields = {
        "read_weights": TraceField("R N", "weighting", "where each read head reads"),
        "write_weights": TraceField("H N", "weighting", "where each write head writes"),
        "memory": TraceField("N W", "memory", "contents after the step"),
        "add": TraceField("H W", "words", "words written"),
        "write_gates": TraceField("H", "gate", "whether each write head writes"),
        "write_modes": TraceField("H C", "weighting", "shares of the oldest slot and the last reads"),
        "read_modes": TraceField(
            "R M", "weighting", "shares of backward, content and forward", ("backward", "content", "forward")
        ),
    }

    def setup(self) -> None:
        """Make the interface: keys, strengths, words to write, gates, modes (Rae et al., sections 3.1 and 3.2)."""
        reads, writes = self.num_reads, self.num_writes
        sizes = {
            "read_keys": reads * self.word_size,
            "read_strengths": reads,
            "add": writes * self.word_size,
            "write_gates": writes,
            "write_modes": writes * (1 + reads),
        }
        if self.links_per_slot:
            sizes["read_modes"] = reads * 3
        if self.masked_content:
            sizes["read_mask"] = reads * self.word_size
        self.interface = Interface(self.hidden_size, sizes)

    def heads(self, hidden: Tensor) -> SparseHeads:
        """Head parameters from the controller's output ``[B, hidden_size]``."""
        parts = self.interface.parts(self.interface(hidden))
        modes = parts.get("read_modes")
        return SparseHeads(
            read_keys=parts["read_keys"].unflatten(-1, (self.num_reads, -1)),
            read_strengths=oneplus(parts["read_strengths"]),
            add=parts["add"].unflatten(-1, (self.num_writes, -1)),
            write_gates=torch.sigmoid(parts["write_gates"]),
            write_modes=torch.softmax(parts["write_modes"].unflatten(-1, (self.num_writes, -1)), dim=-1),
            read_modes=None if modes is None else torch.softmax(modes.unflatten(-1, (self.num_reads, 3)), dim=-1),
            read_mask=lookup_mask(parts.get("read_mask"), self.num_reads),
        )

    def initial_state(self, batch_size: int, memory_size: int | None = None) -> SparseState:
        """An empty memory of N = ``memory_size`` slots (default: as built).

        Raises:
            ValueError: fewer slots than write heads.
        """
        slots = self.memory_size if memory_size is None else memory_size
        check_slots(slots, self.num_writes)
        weight = example(self.interface.linear)
        reads, count = self.num_reads, min(self.slots_per_read, slots)
        entries = self.num_writes + reads * count

        def integers(*shape: int) -> Tensor:
            return torch.zeros(batch_size, *shape, dtype=torch.int64, device=weight.device)

        links: SparseLinks | NoLinks = NoLinks()
        if self.links_per_slot:
            width = min(self.links_per_slot, slots)
            links = SparseLinks(
                slots=integers(slots, width) - 1,
                values=weight.new_zeros(batch_size, slots, width),
                followers=integers(slots, width) - 1,
                precedence_slots=integers(width) + torch.arange(width, device=weight.device),
                precedence=weight.new_zeros(batch_size, width),
            )
        return SparseState(
            memory=weight.new_zeros(batch_size, slots, self.word_size),
            last_access=integers(slots),
            steps=integers(),
            used=integers(),
            read_slots=integers(reads, count) + torch.arange(count, device=weight.device),
            read_weights=weight.new_zeros(batch_size, reads, count),
            write_slots=integers(entries),
            write_weights=weight.new_zeros(batch_size, self.num_writes, entries),
            links=links,
        )

    def begin(self, state: SparseState, steps: int, nearest: Nearest | None = None) -> SparseState | WorkingMemory:
        """A private copy of the state, with its own way to look words up; see :meth:`Accessor.begin`."""
        # A step reaches at most so many slots that none reached before; the links start from the first few.
        per_step = self.slots_per_read + self.num_writes
        reach = max(int(state.used.max()), self.links_per_slot)
        return WorkingMemory(state, in_place=True, reach=reach, growth=per_step, steps=steps, nearest=nearest)

    def end(self, state: SparseState | WorkingMemory) -> SparseState:
        """The state after the steps; see :meth:`Accessor.end`."""
        return state.close() if isinstance(state, WorkingMemory) else state

    def observed(self, heads: SparseHeads, state: SparseState) -> dict[str, Tensor]:
        """What a trace shows, weightings over all slots; see :meth:`Accessor.observed`."""
        slots = state.memory.shape[1]
        return {
            **super().observed(heads, state),
            "read_weights": sparse_addressing.dense(state.read_slots, state.read_weights, slots),
            "write_weights": sparse_addressing.dense(state.write_slots.unsqueeze(1), state.write_weights, slots),
        }

    def forward(self, hidden: Tensor, state: Any) -> tuple[Tensor, Any, SparseHeads]:
        """One step of access; see :meth:`Accessor.forward`.

        Args:
            hidden: the controller's output, ``[B, hidden_size]``.
            state: a :class:`SparseState`, which stays as it is, or what :meth:`begin` gave, which is changed.
        """
        heads = self.heads(hidden)
        if isinstance(state, WorkingMemory):
            return self._access(heads, state), state, heads
        working = WorkingMemory(state)
        return self._access(heads, working), working.close(), heads

    def _access(self, heads: SparseHeads, working: WorkingMemory) -> Tensor:
        working.advance()
        self._write(heads, working)
        content_slots = self._nearest(heads, working)
        words = working.memory.take(content_slots.flatten(1)).unflatten(1, content_slots.shape[1:])
        content = addressing.content_weights(
            words.flatten(0, 1),
            heads.read_keys.flatten(0, 1).unsqueeze(1),
            heads.read_strengths.flatten().view(-1, 1),
            None if heads.read_mask is None else heads.read_mask.flatten(0, 1).unsqueeze(1),
        ).view(content_slots.shape)
        if heads.read_modes is None:
            working.read_slots, working.read_weights = content_slots, content
        else:
            self._follow_links(heads.read_modes, content_slots, content, working)
            words = working.memory.take(working.read_slots.flatten(1)).unflatten(1, content_slots.shape[1:])
        working.note_access()
        return (working.read_weights.unsqueeze(-2) @ words).squeeze(-2)

    def _write(self, heads: SparseHeads, working: WorkingMemory) -> None:
        """Empty the least recently used slots, then add to them and to what was read last."""
        emptied = working.least_recent(self.num_writes)
        to_emptied = torch.diag_embed(heads.write_modes[..., 0])
        to_read = (heads.write_modes[..., 1:].unsqueeze(-1) * working.read_weights.unsqueeze(1)).flatten(2)
        weights = heads.write_gates.unsqueeze(-1) * torch.cat([to_emptied, to_read], dim=-1)
        slots = torch.cat([emptied, working.read_slots.flatten(1)], dim=-1)
        working.write_slots, working.write_weights = slots, weights
        working.memory.put(emptied, heads.add.new_zeros(*emptied.shape, self.word_size))
        working.memory.add(slots, weights.transpose(-1, -2) @ heads.add)
        working.note_norms(slots)
        if working.links is not None:
            working.links.write(slots, weights.squeeze(1))

    def _nearest(self, heads: SparseHeads, working: WorkingMemory) -> Tensor:
        """The K slots most similar to each key, ``[B, R, K]``, in ascending order; of equal ones the first."""
        with torch.no_grad():
            memory, norms = working.searched(working.memory).detach(), working.searched(working.norms)
            keys, mask, count = heads.read_keys, heads.read_mask, working.read_slots.shape[-1]
            if working.nearest is not None:
                key_norms = torch.sqrt((keys * keys).sum(-1) + addressing.NORM_EPSILON)
                return working.nearest(memory, norms, keys, key_norms, count)
            small = memory.numel() * self.num_reads <= CACHED_ELEMENTS
            if small or memory.is_meta or transform((memory, norms, keys)) is not None:
                similarity = sparse_addressing.similarity(memory.unsqueeze(1), keys, mask)
                return sparse_addressing.top_k(similarity, count).sort(dim=-1).values
            # A matrix product is much faster, but rounds equal words differently: where more slots come near the K
            # best than K, those are compared again.
            similarity = _product_similarity(memory, norms, keys, mask)
            best = sparse_addressing.top_k(similarity, count)
            tolerance = 8 * self.word_size * torch.finfo(similarity.dtype).eps
            near = similarity >= similarity.gather(-1, best).amin(-1, keepdim=True) - tolerance
            near = near & (similarity > -torch.inf)  # where no word can be compared, all of them are near
            most = int(near.sum(-1, dtype=torch.int32).max())
            if most <= count:
                return best.sort(dim=-1).values
            candidates = sparse_addressing.top_k(similarity, most).sort(dim=-1).values
            words = Rows(memory).take(candidates.flatten(1)).unflatten(1, candidates.shape[1:])
            chosen = sparse_addressing.top_k(sparse_addressing.similarity(words, keys, mask), count)
            return candidates.gather(-1, chosen).sort(dim=-1).values

    def _follow_links(self, modes: Tensor, slots: Tensor, content: Tensor, working: WorkingMemory) -> None:
        """Mix what links lead to with what content found, ``[B, R, K]`` each, and keep the K heaviest slots."""
        assert working.links is not None
        backward, forward = working.links.around(working.read_slots, working.read_weights)
        ways = [backward, (slots, content), forward]
        candidates = torch.cat([way for way, _ in ways], dim=-1)
        weights = torch.cat([modes[..., way, None] * weight for way, (_, weight) in enumerate(ways)], dim=-1)
        working.read_slots, working.read_weights = sparse_addressing.merged(candidates, weights, slots.shape[-1])


class WorkingMemory:
    """A :class:`SparseState` while steps change it: anew at each change, or in place on a private copy."""

    def __init__(
        self,
        state: SparseState,
        *,
        in_place: bool = False,
        reach: int = 0,
        growth: int = 0,
        steps: int = 0,
        nearest: Nearest | None = None,
    ) -> None:
        """
        Args:
            state: where to start; stays as it is.
            in_place: change a copy rather than making a new tensor each time; then these say how much to copy:
            reach: slots from this one on were not accessed yet.
            growth: at most so many of those are accessed in a step.
            steps: that will be made.
            nearest: finds the words that are most similar to keys; None uses plain operations.
        """
        self.nearest = nearest
        rows = InPlaceRows if in_place else Rows
        size = state.memory.shape[1]
        self._start = state
        self._growth = growth
        self._reach = reach if in_place else size
        self._copied = min(size, reach + growth * steps) if in_place else size
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
        """One more step begins."""
        self.steps = self.steps + 1
        self._reach = min(self._reach + self._growth, self._copied)

    def searched(self, rows: Rows) -> Tensor:
        """Those of the first slots among which a search finds what it would find among all."""
        return rows.tensor[:, : self._reach]

    def least_recent(self, count: int) -> Tensor:
        """The slots that were not accessed for the longest time, ``[B, count]``."""
        if isinstance(self.last_access, InPlaceTimes):
            return self.last_access.least_recent(count)
        return sparse_addressing.least_recent(self.searched(self.last_access), count)

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
        """The slots of the last precedence are followed by those written ``[B, M]`` (-1: none), if surely enough."""
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
            surely = (values.view(ends.shape) * ends).sum(-1)
            kept, _ = sparse_addressing.largest(torch.where(ends.any(-1), candidates, -1), surely, self.width)
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
    """What was worked on, with the rest of the tensor that it came from."""
    changed = rows.close()
    return changed if copied == whole.shape[1] else torch.cat([changed, whole[:, copied:]], dim=1)
