"""The Stack-RNN (Joulin & Mikolov 2015, arXiv 1503.01007; Delétang et al. 2023, arXiv 2207.02098)."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from ..core.accessors.stack import StackOptions
from ..core.controllers import AnyController
from ..core.registry import register
from .memory import MemoryCircuit


@register("circuit", "stack-rnn")
class StackRNN(StackOptions, MemoryCircuit):
    """A recurrent network that pushes to stacks, pops them, and sees what is on top."""

    controller: AnyController = "rnn"
    accessor: Any = Field(default="stack", init=False)
