"""The shapes that kernels take for granted: they read memory as they are told."""

from __future__ import annotations

from typing import Any

from ..state import CircuitState


def accessor_shapes(accessor: Any, state: CircuitState, batch: int) -> dict[str, tuple[int, ...]]:
    """Of all that the accessor of an NTM or a DNC may carry, for as many slots as the memory ``[B, N, W]`` has."""
    memory, writes = state.accessor.memory, accessor.num_writes
    slots = memory.shape[1] if memory.dim() == 3 else 0
    return {
        "memory": (batch, slots, accessor.word_size),
        "usage": (batch, slots),
        "link": (batch, writes, slots, slots),
        "precedence": (batch, writes, slots),
        "read_weights": (batch, accessor.num_reads, slots),
        "write_weights": (batch, writes, slots),
    }
