"""The Neural Turing Machine (Graves, Wayne & Danihelka 2014, arXiv 1410.5401)."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from ..core.accessors.static import StaticOptions
from ..core.registry import register
from .memory import MemoryCircuit


@register("circuit", "ntm")
class NTM(StaticOptions, MemoryCircuit):
    """Neural Turing Machine: a controller with heads that address by content and by location."""

    accessor: Any = Field(default="static", init=False)
