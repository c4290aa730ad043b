"""The sparse accessor: every step touches a few slots, however many there are (Rae et al. 2016, arXiv 1610.09027).

B batch, N slots, W word size, R read heads, H write heads, K slots per read head, L links per slot,
E = H + R * K entries of a write weighting.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from .. import addressing, sparse_addressing
from ..interface import Interface, lookup_mask, oneplus
from ..kernels.transforms import transform
from ..registry import register
from ..sparse_memory import Nearest, NoLinks, SparseLinks, SparseState, WorkingMemory
from ..state import example
from ..trace import TraceField
from .base import SlotAccessor, SlotOptions


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
        "write_modes": TraceField(
            "H C", "weighting", "shares of the oldest slot and the last reads", ("oldest", "last reads")
        ),
        "read_modes": TraceField(
            "R D", "weighting", "shares of backward, content and forward", ("backward", "content", "forward")
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
        return self._working(state, steps, in_place=True, nearest=nearest)

    def _working(
        self, state: SparseState, steps: int, in_place: bool = False, nearest: Nearest | None = None
    ) -> WorkingMemory:
        # A step reaches at most so many slots that none reached before; the links start from the first few.
        per_step = self.slots_per_read + self.num_writes
        # A look at values would wait for a GPU, whose passes over all slots cost less, and no graph could be recorded.
        looks = state.used.is_cpu and transform((state.used,)) is None
        reach = max(int(state.used.max()), self.links_per_slot) if looks else state.memory.shape[1]
        return WorkingMemory(state, reach=reach, growth=per_step, steps=steps, in_place=in_place, nearest=nearest)

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
        working = self._working(state, 1)
        return self._access(heads, working), working.close(), heads

    def _access(self, heads: SparseHeads, working: WorkingMemory) -> Tensor:
        working.advance()
        self._write(heads, working)
        content_slots = working.most_similar(heads.read_keys, heads.read_mask)
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

    def _follow_links(self, modes: Tensor, slots: Tensor, content: Tensor, working: WorkingMemory) -> None:
        """Mix what links lead to with what content found, ``[B, R, K]`` each, and keep the K heaviest slots."""
        assert working.links is not None
        backward, forward = working.links.around(working.read_slots, working.read_weights)
        ways = [backward, (slots, content), forward]
        candidates = torch.cat([way for way, _ in ways], dim=-1)
        weights = torch.cat([modes[..., way, None] * weight for way, (_, weight) in enumerate(ways)], dim=-1)
        working.read_slots, working.read_weights = sparse_addressing.merged(candidates, weights, slots.shape[-1])
