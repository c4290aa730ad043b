"""A sequence step by step, with one kernel for each part of a step; the controller runs through torch.

The steps are those of the accessors' ``forward``, with the kernels of this package in place of core.addressing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ... import addressing
from ...accessors.dynamic import DynamicState
from ...accessors.static import StaticHeads, StaticState
from ...state import CircuitState
from .allocation import usage_and_allocation
from .content import content_weights
from .links import Chunk, follow_links
from .location import location_weights
from .writing import write

if TYPE_CHECKING:
    from ...accessors.dynamic import DynamicAccessor
    from ...accessors.static import StaticAccessor
    from ..circuit_view import CircuitView


def _static_weights(memory: Tensor, heads: StaticHeads, last: Tensor) -> Tensor:
    content = content_weights(memory, heads.keys, heads.strengths, heads.mask)
    return location_weights(content, last, heads.gate, heads.shift, heads.sharpness)


def static_step(accessor: StaticAccessor, hidden: Tensor, state: StaticState) -> tuple[Tensor, StaticState]:
    """Words read ``[B, R, W]`` and the next state; see :class:`~papertape.core.accessors.static.StaticAccessor`."""
    heads = accessor.heads(hidden)
    write_weights = _static_weights(state.memory, heads.only(slice(accessor.num_reads, None)), state.write_weights)
    memory = write(state.memory, write_weights, heads.erase, heads.add)
    read_weights = _static_weights(memory, heads.only(slice(accessor.num_reads)), state.read_weights)
    return addressing.read(memory, read_weights), StaticState(memory, read_weights, write_weights)


def dynamic_step(
    accessor: DynamicAccessor, hidden: Tensor, state: DynamicState, chunk: Chunk | None = None
) -> tuple[Tensor, DynamicState]:
    """Words read ``[B, R, W]`` and the next state; see :class:`~papertape.core.accessors.dynamic.DynamicAccessor`."""
    heads = accessor.heads(hidden)
    written = state.write_weights if accessor.usage_gradient else state.write_weights.detach()
    gates = heads.allocation_gates * heads.write_gates
    usage, allocation = usage_and_allocation(state.usage, written, heads.free_gates, state.read_weights, gates)
    content = content_weights(state.memory, heads.write_keys, heads.write_strengths, heads.write_mask)
    chosen = content + heads.allocation_gates.unsqueeze(-1) * (allocation - content)
    write_weights = heads.write_gates.unsqueeze(-1) * chosen

    memory = state.memory
    if accessor.memory_wipe:
        memory = memory * addressing.retention(heads.free_gates, state.read_weights).unsqueeze(-1)
    memory = write(memory, write_weights, heads.erase, heads.add)
    links = (state.link, state.precedence, write_weights, state.read_weights)
    link, precedence, backward, forward = follow_links(*links, chunk)
    if heads.link_powers is not None:
        directions = addressing.sharpen_links(torch.cat([backward, forward], dim=2), heads.link_powers)
        backward, forward = directions.split(accessor.num_writes, dim=2)
    content = content_weights(memory, heads.read_keys, heads.read_strengths, heads.read_mask)
    ways = torch.cat([backward, content.unsqueeze(2), forward], dim=2)
    read_weights = (heads.read_modes.unsqueeze(2) @ ways).squeeze(2)
    state = DynamicState(memory, usage, link, precedence, read_weights, write_weights)
    return addressing.read(memory, read_weights), state


def links_kept_every(steps: int) -> int:
    """Steps between two link matrices that are kept for the backward pass, which holds as many at a time: √T."""
    return math.isqrt(max(steps, 1) - 1) + 1


def run(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState]:
    """Features ``[T, B, F]`` and the last state."""
    accessor: Any = circuit.accessor
    controller_state, accessor_state, reads = state
    every = links_kept_every(len(inputs))
    chunk = Chunk()
    features = []
    for step, x in enumerate(inputs.unbind(0)):
        hidden, controller_state = circuit.controller(torch.cat([x, reads.flatten(1)], dim=-1), controller_state)
        if accessor.kind == "static":
            reads, accessor_state = static_step(accessor, hidden, accessor_state)
        else:
            chunk = Chunk() if step % every == 0 else chunk
            reads, accessor_state = dynamic_step(accessor, hidden, accessor_state, chunk)
        features.append(torch.cat([hidden, reads.flatten(1)], dim=-1))
    return torch.stack(features), CircuitState(controller_state, accessor_state, reads)
