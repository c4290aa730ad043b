"""The static accessor: NTM heads, which address by content and by location (Graves et al. 2014, section 3)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from .. import addressing
from ..initialisers import InitialMemory, InitialWeights, MemoryInit, WeightInit
from ..interface import Interface, lookup_mask, oneplus
from ..registry import register
from ..state import example, register_state
from ..trace import TraceField
from .base import SlotAccessor, SlotOptions

PARKED_GAIN = 0.3
"""Scale of the interface's first weights with ``parked``: what the heads do depends little on the hidden vector yet."""

PARKED_GATE = -2.0
"""First bias of the gates with ``parked``: the last weighting counts 7 times as much as the content."""

PARKED_SHARPNESS = 2.0
"""First bias of the sharpness with ``parked``: an exponent near 3, so that a weighting which stays does not blur."""


class StaticOptions(SlotOptions):
    """Options of :class:`StaticAccessor`, which :class:`papertape.NTM` has as well."""

    kept = SlotOptions.kept | {"head_init"}

    shift_range: int = Field(default=1, ge=0, description="largest shift in slots, to either side")
    memory_init: MemoryInit = Field(
        default="constant", description="contents before the first step (Collier & Beel 2018)"
    )
    weight_init: WeightInit = Field(default="first", description="weightings before the first step")
    head_init: Literal["parked", "uniform"] = Field(
        default="parked",
        description="how the heads start: parked keeps each where it is, sharply; uniform as torch.nn.Linear",
    )


@register_state
class StaticState(NamedTuple):
    """Memory and weightings after a step."""

    memory: Tensor
    """``[B, N, W]``"""
    read_weights: Tensor
    """``[B, R, N]``"""
    write_weights: Tensor
    """``[B, H, N]``"""


class StaticHeads(NamedTuple):
    """Parameters of NTM heads at one step; the R read heads come first, then the H write heads, K = R + H in all."""

    keys: Tensor
    """``[B, K, W]`` in (-1, 1)"""
    strengths: Tensor
    """``[B, K]``, non-negative"""
    gate: Tensor
    """Content (1) against the last weighting (0), ``[B, K]``"""
    shift: Tensor
    """Distribution over shifts, ``[B, K, S]``"""
    sharpness: Tensor
    """``[B, K]``, at least 1"""
    erase: Tensor
    """``[B, H, W]`` in (0, 1)"""
    add: Tensor
    """``[B, H, W]`` in (-1, 1)"""
    mask: Tensor | None
    """Element weights of the lookup, ``[B, K, W]`` in (0.1, 1), with ``masked_content``"""

    def only(self, heads: slice) -> StaticHeads:
        """Addressing parameters of some of the K heads; erase and add, which only write heads have, stay whole."""
        keys, strengths, gate, shift, sharpness, erase, add, mask = self
        masks = None if mask is None else mask[:, heads]
        addressing = (keys[:, heads], strengths[:, heads], gate[:, heads], shift[:, heads], sharpness[:, heads])
        return StaticHeads(*addressing, erase, add, masks)


@register("accessor", "static")
class StaticAccessor(StaticOptions, SlotAccessor):
    """NTM memory: every head finds its slot by content, by its last position and by a shift."""

    kind = "static"
    trace_fields = {
        "read_weights": TraceField("R N", "weighting", "where each read head reads"),
        "write_weights": TraceField("H N", "weighting", "where each write head writes"),
        "memory": TraceField("N W", "memory", "contents after the step"),
        "add": TraceField("H W", "words", "words written"),
        "erase": TraceField("H W", "words", "elements erased"),
        "gate": TraceField("K", "gate", "content against the last weighting, read heads first"),
        "strengths": TraceField("K", "gate", "how much a better match counts"),
        "sharpness": TraceField("K", "gate", "exponent of the weighting"),
        "shift": TraceField("K S", "weighting", "where each head moves"),
        "keys": TraceField("K W", "words", "what each head looks for"),
    }

    def setup(self) -> None:
        """Make the interface (NTM section 3.3) and what the memory and the weightings start with."""
        heads = self.num_heads = self.num_reads + self.num_writes
        sizes = {
            "keys": heads * self.word_size,
            "strengths": heads,
            "gate": heads,
            "shift": heads * (2 * self.shift_range + 1),
            "sharpness": heads,
            "erase": self.num_writes * self.word_size,
            "add": self.num_writes * self.word_size,
        }
        if self.masked_content:
            sizes["mask"] = heads * self.word_size
        self.interface = Interface(self.hidden_size, sizes)
        self.initial_memory = InitialMemory(self.memory_init, self.memory_size, self.word_size)
        self.initial_weights = InitialWeights(self.weight_init, heads, self.memory_size)
        self._park()

    def reset_parameters(self) -> None:
        """Draw all weights, and the contents that the memory starts with, anew."""
        super().reset_parameters()
        self._park()

    @torch.no_grad()
    def _park(self) -> None:
        """Start with heads that stay where they are: what decides whether a trained NTM works on longer sequences."""
        if self.head_init == "parked":
            self.interface.linear.weight.mul_(PARKED_GAIN)
            bias = self.interface.parts(self.interface.linear.bias)
            bias["gate"].add_(PARKED_GATE)
            bias["sharpness"].add_(PARKED_SHARPNESS)

    def initial_state(self, batch_size: int, memory_size: int | None = None) -> StaticState:
        """State before the first step, for N = ``memory_size`` slots (default: as built)."""
        slots = self.memory_size if memory_size is None else memory_size
        like = example(self)
        # Laid out in memory as every later state is, so that a compiled step serves the first one too.
        read_weights, write_weights = self.initial_weights(batch_size, slots, like).split(
            [self.num_reads, self.num_writes], 1
        )
        memory = self.initial_memory(batch_size, slots, like)
        return StaticState(memory, read_weights.contiguous(), write_weights.contiguous())

    def heads(self, hidden: Tensor) -> StaticHeads:
        """Head parameters from the controller's output ``[B, hidden_size]``."""
        parts = self.interface.parts(self.interface(hidden))
        return StaticHeads(
            keys=torch.tanh(parts["keys"].unflatten(-1, (self.num_heads, -1))),
            strengths=functional.softplus(parts["strengths"]),
            gate=torch.sigmoid(parts["gate"]),
            shift=torch.softmax(parts["shift"].unflatten(-1, (self.num_heads, -1)), dim=-1),
            sharpness=oneplus(parts["sharpness"]),
            erase=torch.sigmoid(parts["erase"].unflatten(-1, (self.num_writes, -1))),
            add=torch.tanh(parts["add"].unflatten(-1, (self.num_writes, -1))),
            mask=lookup_mask(parts.get("mask"), self.num_heads),
        )

    def forward(self, hidden: Tensor, state: StaticState) -> tuple[Tensor, StaticState, StaticHeads]:
        """One step of access; see :meth:`Accessor.forward`."""
        heads = self.heads(hidden)
        write_weights = _weights(state.memory, heads.only(slice(self.num_reads, None)), state.write_weights)
        memory = addressing.write(state.memory, write_weights, heads.erase, heads.add)
        read_weights = _weights(memory, heads.only(slice(self.num_reads)), state.read_weights)
        return addressing.read(memory, read_weights), StaticState(memory, read_weights, write_weights), heads


def _weights(memory: Tensor, heads: StaticHeads, last: Tensor) -> Tensor:
    """Weightings ``[B, K, N]`` of some heads on a memory ``[B, N, W]``, from their last ones."""
    content = addressing.content_weights(memory, heads.keys, heads.strengths, heads.mask)
    return addressing.location_weights(content, last, heads.gate, heads.shift, heads.sharpness)
