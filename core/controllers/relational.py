"""Relational memory core: slots that attend to each other and to the input at each step (Santoro et al. 2018, NeurIPS).

"Relational recurrent neural networks", section 3; details as in the authors' code, but that with several blocks each
has layers of its own, where the authors' share them.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ..registry import register
from ..state import example, register_state
from ..trace import TraceField
from .base import Controller


@register_state
class RelationalState(NamedTuple):
    """The memory."""

    slots: Tensor
    """``[B, M, V]``"""


@register("controller", "relational")
class RelationalController(Controller):
    """A memory of M slots, rewritten through gates by multi-head dot-product attention over slots and input.

    The hidden vector is the whole memory, ``M * V`` elements, where V is the size of all heads together.
    """

    memory_size: int = Field(default=4, ge=1, description="M, slots")
    num_heads: int = Field(default=4, ge=1, description="heads of the attention")
    head_size: int = Field(default=16, ge=1, description="elements of a slot that each head writes; V in all heads")
    key_size: int | None = Field(default=None, ge=1, description="of each head's queries and keys; null: head_size")
    num_blocks: int = Field(default=1, ge=1, le=100, description="times that slots attend to each other in one step")
    mlp_layers: int = Field(default=2, ge=1, le=100, description="layers that each row goes through after attention")
    gating: Literal["unit", "memory", "none"] = Field(
        default="unit", description="input and forget gates: one for each element of a slot, one for each slot, or none"
    )
    forget_bias: float = Field(default=1.0, description="added to the forget gates before the logistic function")
    input_bias: float = Field(default=0.0, description="added to the input gates likewise")

    trace_fields = {
        "hidden": TraceField("M V", "words", "slots over time"),
        "slots": TraceField("M V", "memory", "slots after the step"),
        "attention": TraceField("A M P", "matrix", "what each slot attends to, in each head: slots, then the input"),
        "input_gate": TraceField("M G", "matrix", "how much of what is new is taken"),
        "forget_gate": TraceField("M G", "matrix", "how much of what was there stays"),
    }

    @classmethod
    def check_options(cls, options: Any) -> None:
        """See :meth:`Component.check_options`; a norm over one element gives the same whatever the element is."""
        super().check_options(options)
        if options.num_heads * options.head_size == 1:
            raise ValueError("head_size: got 1; allowed with num_heads 1: at least 2")

    def setup(self) -> None:
        """Make the layers; the hidden vector is the memory."""
        width = self.width = self.num_heads * self.head_size
        self.hidden_size, self.num_layers = self.memory_size * width, 1
        self.input = nn.Linear(self.input_size, width)
        self.blocks = nn.ModuleList(
            _Block(width, self.num_heads, self.key_size or self.head_size, self.mlp_layers)
            for _ in range(self.num_blocks)
        )
        if self.gating == "none":
            gates = {"input_gate", "forget_gate"}
            self.trace_fields = {  # type: ignore[misc]
                name: field for name, field in self.trace_fields.items() if name not in gates
            }
            return
        size = width if self.gating == "unit" else 1
        self.input_gates = nn.Linear(width, 2 * size)
        self.memory_gates = nn.Linear(width, 2 * size)

    def initial_state(self, batch_size: int) -> RelationalState:
        """The identity matrix, as far as it goes: no slot is like another."""
        like = example(self)
        slots = torch.eye(self.memory_size, self.width, dtype=like.dtype, device=like.device)
        return RelationalState(slots.expand(batch_size, -1, -1).contiguous())

    def gates(self, row: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Input and forget gates ``[B, M, V or 1]`` from the input's row ``[B, 1, V]`` and the slots before."""
        gates = self.input_gates(row) + self.memory_gates(torch.tanh(slots))
        input_gate, forget_gate = gates.chunk(2, dim=-1)
        return torch.sigmoid(input_gate + self.input_bias), torch.sigmoid(forget_gate + self.forget_bias)

    def forward(self, x: Tensor, state: RelationalState) -> tuple[Tensor, RelationalState]:
        """One step; see :meth:`Controller.forward`."""
        row = self.input(x).unsqueeze(1)
        rows = torch.cat([state.slots, row.to(state.slots.dtype)], dim=1)
        for block in self.blocks:
            rows, _ = block(rows)
        slots = rows[:, :-1]
        if self.gating != "none":
            input_gate, forget_gate = self.gates(row, state.slots)
            slots = input_gate * torch.tanh(slots) + forget_gate * state.slots
        slots = self.clipped(slots)
        return slots.flatten(1), RelationalState(slots)

    def observed(self, x: Tensor, before: RelationalState, after: RelationalState) -> dict[str, Tensor]:
        """See :meth:`Controller.observed`; the attention is that of the last block."""
        row = self.input(x).unsqueeze(1)
        rows = torch.cat([before.slots, row.to(before.slots.dtype)], dim=1)
        for block in self.blocks:
            rows, attention = block(rows)
        seen = {"hidden": after.slots, "slots": after.slots, "attention": attention[:, :, :-1]}
        if self.gating != "none":
            seen["input_gate"], seen["forget_gate"] = self.gates(row, before.slots)
        return seen


class _Block(nn.Module):
    """Attention of all rows to all rows, then layers that each row goes through, each with what it was added to it."""

    def __init__(self, width: int, num_heads: int, key_size: int, mlp_layers: int) -> None:
        super().__init__()
        self.num_heads, self.sizes = num_heads, [key_size, key_size, width // num_heads]
        self.project = nn.Linear(width, num_heads * sum(self.sizes))
        self.project_norm = nn.LayerNorm(num_heads * sum(self.sizes))
        self.attention_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(mlp_layers))
        self.layers_norm = nn.LayerNorm(width)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows ``[B, P, V]`` -> new rows, and the attention of each head ``[B, heads, P, P]``."""
        projected = self.project_norm(self.project(rows)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        queries, keys, values = projected.split(self.sizes, dim=-1)
        attention = torch.softmax(queries * self.sizes[0] ** -0.5 @ keys.transpose(-1, -2), dim=-1)
        rows = self.attention_norm(rows + (attention @ values).transpose(1, 2).flatten(2))
        through = rows
        for number, layer in enumerate(self.layers):
            through = layer(functional.relu(through) if number else through)
        return self.layers_norm(through + rows), attention
