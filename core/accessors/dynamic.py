"""The dynamic accessor: DNC heads, which also allocate, free and follow links (Graves et al. 2016, Methods)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .. import addressing
from ..circuit import check_choice, example, register_state
from ..heads import DynamicHeads, DynamicInterface
from .base import Accessor


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


class DynamicAccessor(Accessor):
    """DNC memory: write heads allocate free slots or look up content, read heads look up content or follow links."""

    kind = "dynamic"

    def __init__(
        self,
        hidden_size: int,
        memory_size: int,
        word_size: int,
        num_reads: int,
        num_writes: int,
        *,
        squash: Literal["none", "tanh"] = "none",
        masked_content: bool = False,
        memory_wipe: bool = False,
        link_sharpening: bool = False,
        usage_gradient: bool = False,
    ) -> None:
        """
        Args:
            hidden_size, memory_size, word_size, num_reads, num_writes: see :class:`Accessor`.
            squash: ``tanh`` bounds keys and write vectors; ``none`` as in the paper.
            masked_content: lookups weigh the elements of a word (improved DNC).
            memory_wipe: a freed slot is emptied before writing (improved DNC).
            link_sharpening: forward and backward weightings are raised to a learned power (improved DNC).
            usage_gradient: let the gradient flow from the usage into the last write weights (DeepMind's code stops it).

        Raises:
            ValueError: a size below 1 or an unknown ``squash``.
        """
        super().__init__(hidden_size, memory_size, word_size, num_reads, num_writes)
        check_choice("squash", squash, ("none", "tanh"))
        self.squash = squash
        self.masked_content = masked_content
        self.memory_wipe = memory_wipe
        self.link_sharpening = link_sharpening
        self.usage_gradient = usage_gradient
        self.interface = DynamicInterface(
            hidden_size,
            word_size,
            num_reads,
            num_writes,
            squash=squash,
            masked_content=masked_content,
            link_sharpening=link_sharpening,
        )

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

    def forward(self, hidden: Tensor, state: DynamicState) -> tuple[Tensor, DynamicState, DynamicHeads]:
        """One step of access; see :meth:`Accessor.forward`."""
        heads = self.interface(hidden)
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
