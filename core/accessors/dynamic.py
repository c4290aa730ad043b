"""The dynamic accessor: DNC heads, which also allocate, free and follow links (Graves et al. 2016, Methods)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from .. import addressing
from ..interface import Interface, lookup_mask, oneplus
from ..registry import register
from ..state import example, register_state
from ..trace import TraceField
from .base import SlotAccessor, SlotOptions


class DynamicOptions(SlotOptions):
    """Options of :class:`DynamicAccessor`, which :class:`papertape.DNC` has as well."""

    memory_size: int = 256
    word_size: int = 64
    num_reads: int = 4
    squash: Literal["none", "tanh"] = Field(default="none", description="whether tanh bounds keys and write vectors")
    memory_wipe: bool = Field(default=False, description="a freed slot is emptied before writing (improved DNC)")
    link_sharpening: bool = Field(
        default=False, description="forward and backward weightings are raised to a learned power (improved DNC)"
    )
    usage_gradient: bool = Field(
        default=False,
        description="let the gradient flow from the usage into the last write weights (DeepMind's code stops it)",
    )


@register_state
class DynamicState(NamedTuple):
    """Memory, weightings and what dynamic allocation and temporal links remember after a step."""

    memory: Tensor
    """``[B, N, W]``"""
    usage: Tensor
    """``[B, N]`` in [0, 1]"""
    link: Tensor
    """``[B, H, N, N]``"""
    precedence: Tensor
    """``[B, H, N]``"""
    read_weights: Tensor
    """``[B, R, N]``"""
    write_weights: Tensor
    """``[B, H, N]``"""


class DynamicHeads(NamedTuple):
    """Parameters of DNC heads at one step."""

    read_keys: Tensor
    """``[B, R, W]``"""
    read_strengths: Tensor
    """``[B, R]``, at least 1"""
    write_keys: Tensor
    """``[B, H, W]``"""
    write_strengths: Tensor
    """``[B, H]``, at least 1"""
    erase: Tensor
    """``[B, H, W]`` in (0, 1)"""
    add: Tensor
    """Write vectors, ``[B, H, W]``"""
    free_gates: Tensor
    """``[B, R]``"""
    allocation_gates: Tensor
    """``[B, H]``"""
    write_gates: Tensor
    """``[B, H]``"""
    read_modes: Tensor
    """Shares of backward (H), content (1) and forward (H), ``[B, R, 1 + 2H]``"""
    read_mask: Tensor | None
    """``[B, R, W]`` in (0.1, 1), with ``masked_content``"""
    write_mask: Tensor | None
    """``[B, H, W]`` in (0.1, 1), with ``masked_content``"""
    link_powers: Tensor | None
    """Exponents of the backward (H) and forward (H) weightings, ``[B, R, 2H]``, with ``link_sharpening``"""


@register("accessor", "dynamic")
class DynamicAccessor(DynamicOptions, SlotAccessor):
    """DNC memory: write heads allocate free slots or look up content, read heads look up content or follow links."""

    kind = "dynamic"
    trace_fields = {
        "read_weights": TraceField("R N", "weighting", "where each read head reads"),
        "write_weights": TraceField("H N", "weighting", "where each write head writes"),
        "memory": TraceField("N W", "memory", "contents after the step"),
        "allocation_weights": TraceField("H N", "weighting", "where each write head would allocate"),
        "usage": TraceField("N", "weighting", "how much each slot is in use"),
        "add": TraceField("H W", "words", "words written"),
        "erase": TraceField("H W", "words", "elements erased"),
        "write_gates": TraceField("H", "gate", "whether each write head writes"),
        "allocation_gates": TraceField("H", "gate", "allocation against content"),
        "free_gates": TraceField("R", "gate", "whether what each read head read is freed"),
        "read_modes": TraceField(
            "R D", "weighting", "shares of backward, content and forward", ("backward", "content", "forward")
        ),
    }

    def setup(self) -> None:
        """Make the interface (DNC "interface parameters"); for one write head its size is W·R + 3W + 5R + 3."""
        reads, writes, word = self.num_reads, self.num_writes, self.word_size
        sizes = {
            "read_keys": reads * word,
            "read_strengths": reads,
            "write_keys": writes * word,
            "write_strengths": writes,
            "erase": writes * word,
            "add": writes * word,
            "free_gates": reads,
            "allocation_gates": writes,
            "write_gates": writes,
            "read_modes": reads * (1 + 2 * writes),
        }
        if self.masked_content:
            sizes |= {"read_mask": reads * word, "write_mask": writes * word}
        if self.link_sharpening:
            sizes["link_powers"] = reads * 2 * writes
        self.interface = Interface(self.hidden_size, sizes)

    def initial_state(self, batch_size: int, memory_size: int | None = None) -> DynamicState:
        """All zeros, for N = ``memory_size`` slots (default: as built)."""
        slots = self.memory_size if memory_size is None else memory_size
        weight = example(self.interface.linear)
        return DynamicState(
            memory=weight.new_zeros(batch_size, slots, self.word_size),
            usage=weight.new_zeros(batch_size, slots),
            link=weight.new_zeros(batch_size, self.num_writes, slots, slots),
            precedence=weight.new_zeros(batch_size, self.num_writes, slots),
            read_weights=weight.new_zeros(batch_size, self.num_reads, slots),
            write_weights=weight.new_zeros(batch_size, self.num_writes, slots),
        )

    def _words(self, raw: Tensor, heads: int) -> Tensor:
        words = raw.unflatten(-1, (heads, -1))
        return torch.tanh(words) if self.squash == "tanh" else words

    def heads(self, hidden: Tensor) -> DynamicHeads:
        """Head parameters from the controller's output ``[B, hidden_size]``."""
        parts = self.interface.parts(self.interface(hidden))
        powers = parts.get("link_powers")
        return DynamicHeads(
            read_keys=self._words(parts["read_keys"], self.num_reads),
            read_strengths=oneplus(parts["read_strengths"]),
            write_keys=self._words(parts["write_keys"], self.num_writes),
            write_strengths=oneplus(parts["write_strengths"]),
            erase=torch.sigmoid(parts["erase"].unflatten(-1, (self.num_writes, -1))),
            add=self._words(parts["add"], self.num_writes),
            free_gates=torch.sigmoid(parts["free_gates"]),
            allocation_gates=torch.sigmoid(parts["allocation_gates"]),
            write_gates=torch.sigmoid(parts["write_gates"]),
            read_modes=torch.softmax(parts["read_modes"].unflatten(-1, (self.num_reads, -1)), dim=-1),
            read_mask=lookup_mask(parts.get("read_mask"), self.num_reads),
            write_mask=lookup_mask(parts.get("write_mask"), self.num_writes),
            link_powers=None if powers is None else oneplus(powers.unflatten(-1, (self.num_reads, -1))),
        )

    def observed(self, heads: DynamicHeads, state: DynamicState) -> dict[str, Tensor]:
        """See :meth:`Accessor.observed`; where each head would have allocated follows from the usage."""
        seen = super().observed(heads, state)
        seen["allocation_weights"] = addressing.allocation_weights(
            state.usage, heads.allocation_gates * heads.write_gates
        )
        return seen

    def forward(self, hidden: Tensor, state: DynamicState) -> tuple[Tensor, DynamicState, DynamicHeads]:
        """One step of access; see :meth:`Accessor.forward`."""
        heads = self.heads(hidden)
        written = state.write_weights if self.usage_gradient else state.write_weights.detach()
        usage = addressing.usage(state.usage, written, heads.free_gates, state.read_weights)

        allocation = addressing.allocation_weights(usage, heads.allocation_gates * heads.write_gates)
        content = addressing.content_weights(state.memory, heads.write_keys, heads.write_strengths, heads.write_mask)
        chosen = content + heads.allocation_gates.unsqueeze(-1) * (allocation - content)
        write_weights = heads.write_gates.unsqueeze(-1) * chosen

        memory = state.memory
        if self.memory_wipe:
            memory = memory * addressing.retention(heads.free_gates, state.read_weights).unsqueeze(-1)
        memory = addressing.write(memory, write_weights, heads.erase, heads.add)
        link = addressing.link(state.link, state.precedence, write_weights)
        precedence = addressing.precedence(state.precedence, write_weights)

        directions = torch.cat(
            [addressing.directional_weights(link, state.read_weights, forward=forward) for forward in (False, True)],
            dim=2,
        )
        if heads.link_powers is not None:
            directions = addressing.sharpen_links(directions, heads.link_powers)
        content = addressing.content_weights(memory, heads.read_keys, heads.read_strengths, heads.read_mask)
        writes = self.num_writes
        backward, forward = directions.split(writes, dim=2)
        ways = torch.cat([backward, content.unsqueeze(2), forward], dim=2)
        read_weights = (heads.read_modes.unsqueeze(2) @ ways).squeeze(2)

        state = DynamicState(memory, usage, link, precedence, read_weights, write_weights)
        return addressing.read(memory, read_weights), state, heads
