"""The stack: cells that are pushed and popped by degrees (Joulin & Mikolov 2015, arXiv 1503.01007).

The actions are those of Suzgun et al. 2019 (arXiv 1911.03329), as in the Stack-RNN of Delétang et al. 2023 (arXiv
2207.02098): push, pop and neither, in shares that sum to 1. B batch, S stacks, N cells, W word size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from ..component import Component
from ..interface import Interface
from ..registry import register
from ..state import example, register_state
from ..trace import TraceField
from .base import Accessor

ACTIONS = ("push", "pop", "neither")


class StackOptions(Component):
    """Options of :class:`StackAccessor`, which :class:`papertape.StackRNN` has as well."""

    num_stacks: int = Field(default=1, ge=1, description="S, stacks, each with actions of its own")
    memory_size: int = Field(
        default=128,
        ge=1,
        description="N, cells of a stack, beyond which what lies lowest is lost; another number may be chosen for a "
        "test",
    )
    word_size: int = Field(default=20, ge=1, description="W, length of a cell")


@register_state
class StackState(NamedTuple):
    """The stacks after a step."""

    memory: Tensor
    """The top first, ``[B, S, N, W]``"""


class StackHeads(NamedTuple):
    """What is done to each stack at one step."""

    values: Tensor
    """What is pushed, ``[B, S, W]``"""
    actions: Tensor
    """Shares of :data:`ACTIONS`, ``[B, S, 3]``"""


@register("accessor", "stack")
class StackAccessor(StackOptions, Accessor):
    """Stacks whose next contents are a mixture of those after a push, after a pop, and as they are; the top is read."""

    kind = "stack"

    trace_fields = {
        "actions": TraceField("S A", "weighting", "shares of push, pop and neither", ACTIONS),
        "memory": TraceField("S N W", "memory", "contents after the step, the top first"),
        "values": TraceField("S W", "words", "words pushed"),
    }

    @classmethod
    def read_shape(cls, options: Any) -> tuple[int, int]:
        """The top of each stack."""
        return options.num_stacks, options.word_size

    def setup(self) -> None:
        """Make the interface."""
        sizes = {"values": self.num_stacks * self.word_size, "actions": self.num_stacks * len(ACTIONS)}
        self.interface = Interface(self.hidden_size, sizes)

    def initial_state(self, batch_size: int, memory_size: int | None = None) -> StackState:
        """Empty stacks (zeros) of N = ``memory_size`` cells (default: as built)."""
        cells = self.memory_size if memory_size is None else memory_size
        return StackState(example(self.interface).new_zeros(batch_size, self.num_stacks, cells, self.word_size))

    def sizes_of(self, state: StackState) -> dict[str, int]:
        """The number of cells."""
        return {"memory_size": state.memory.shape[2]}

    def heads(self, hidden: Tensor) -> StackHeads:
        """What to do, from the controller's output ``[B, hidden_size]``."""
        parts = self.interface.parts(self.interface(hidden))
        values, actions = (parts[name].unflatten(-1, (self.num_stacks, -1)) for name in ("values", "actions"))
        return StackHeads(values, torch.softmax(actions, dim=-1))

    def forward(self, hidden: Tensor, state: StackState) -> tuple[Tensor, StackState, StackHeads]:
        """One step of access; see :meth:`Accessor.forward`."""
        heads, memory = self.heads(hidden), state.memory
        pushed = torch.cat([heads.values.unsqueeze(2), memory[:, :, :-1]], dim=2)
        popped = torch.cat([memory[:, :, 1:], torch.zeros_like(memory[:, :, :1])], dim=2)
        push, pop, neither = heads.actions[..., None, None].unbind(2)
        memory = push * pushed + pop * popped + neither * memory
        return memory[:, :, 0].clone(), StackState(memory), heads  # so that who changes a state changes no read
