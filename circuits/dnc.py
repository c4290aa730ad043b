"""The Differentiable Neural Computer (Graves et al. 2016, Nature 538) and its improvements (arXiv 1904.10278)."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from ..core.accessors.dynamic import DynamicOptions
from ..core.controllers import AnyController
from ..core.registry import register
from .memory import MemoryCircuit


@register("circuit", "dnc")
class DNC(DynamicOptions, MemoryCircuit):
    """Differentiable Neural Computer: a controller with heads that allocate, free, look up and follow links."""

    controller: AnyController = {"type": "lstm", "hidden_size": 256}
    accessor: Any = Field(default="dynamic", init=False)
