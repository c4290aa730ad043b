"""Sparse Access Memory (Rae et al. 2016, arXiv 1610.09027): each step touches a little of a memory of any size."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from ..core.accessors.sparse import SparseOptions
from ..core.registry import register
from .memory import MemoryCircuit


@register("circuit", "sam")
class SAM(SparseOptions, MemoryCircuit):
    """Sparse Access Memory: reads the few slots most like a key, writes the least recently used or those read last."""

    accessor: Any = Field(default="sparse", init=False)
    links_per_slot: int = Field(default=0, init=False)


@register("circuit", "sdnc")
class SDNC(SparseOptions, MemoryCircuit):
    """Sparse DNC: reads and writes as SAM does, and also reads what was written before or after what it read last."""

    accessor: Any = Field(default="sparse", init=False)
    num_writes: int = Field(default=1, init=False)
    links_per_slot: int = Field(
        default=8, ge=1, description="L, links that each slot keeps to slots before it, and after it"
    )
