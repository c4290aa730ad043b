"""A memory of your own: fast weights that the delta rule writes (Schlag, Irie & Schmidhuber 2021, arXiv 2102.11174).

Each head keeps a matrix that maps keys to values. A step looks up what the key of the write finds, writes the
difference to the wanted value, S = S + beta (v - S k) k^T, and reads with a query, r = S q.

One class is all that there is to write: its options, its state, what a trace shows, and one step. Options files then
name it like any other memory, and it is trained, evolved, resumed, drawn and loaded like them:

    papertape train examples/own_memory.yaml
"""

from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

import papertape
from papertape import Interface, TraceField


@papertape.register_state
class DeltaState(NamedTuple):
    """What is carried from step to step."""

    memory: Tensor
    """``[B, H, V, K]``: for each head a matrix from keys to values."""


class DeltaHeads(NamedTuple):
    """What the heads do at one step."""

    keys: Tensor
    """``[B, H, K]``, of length 1"""
    queries: Tensor
    """``[B, H, K]``, of length 1"""
    values: Tensor
    """``[B, H, V]``"""
    write_gates: Tensor
    """``[B, H]`` in (0, 1)"""


@papertape.register("accessor", "fast-weights")
class DeltaAccessor(papertape.Accessor):
    """Fast weights written by the delta rule, one matrix for each head."""

    num_heads: int = Field(4, ge=1, description="H, matrices, each with a key and a query of its own")
    key_size: int = Field(16, ge=1, description="K, length of a key")
    value_size: int = Field(16, ge=1, description="V, length of a word written and read")

    trace_fields = {
        "memory": TraceField("H V K", "matrix", "from keys to values"),
        "keys": TraceField("H K", "words", "where each head writes"),
        "queries": TraceField("H K", "words", "where each head reads"),
        "values": TraceField("H V", "words", "what is to be found there"),
        "write_gates": TraceField("H", "gate", "how much of it is written"),
    }

    @classmethod
    def read_shape(cls, options: Any) -> tuple[int, int]:
        """Every head reads a word."""
        return options.num_heads, options.value_size

    def setup(self) -> None:
        """One Linear tells the heads all that they do."""
        heads = self.num_heads
        sizes = {
            "keys": heads * self.key_size,
            "queries": heads * self.key_size,
            "values": heads * self.value_size,
            "write_gates": heads,
        }
        self.interface = Interface(self.hidden_size, sizes)

    def initial_state(self, batch_size: int) -> DeltaState:
        """Matrices of zeros."""
        shape = (batch_size, self.num_heads, self.value_size, self.key_size)
        return DeltaState(self.interface.linear.weight.new_zeros(shape))

    def forward(self, hidden: Tensor, state: DeltaState) -> tuple[Tensor, DeltaState, DeltaHeads]:
        """Write, then read: ``[B, hidden_size]`` -> words ``[B, H, V]``, the next state, and what the heads did."""
        parts = self.interface.parts(self.interface(hidden))
        keys, queries = (
            functional.normalize(parts[name].unflatten(-1, (self.num_heads, -1)), dim=-1)
            for name in ("keys", "queries")
        )
        heads = DeltaHeads(
            keys, queries, parts["values"].unflatten(-1, (self.num_heads, -1)), torch.sigmoid(parts["write_gates"])
        )
        found = (state.memory @ keys.unsqueeze(-1)).squeeze(-1)
        change = heads.write_gates.unsqueeze(-1) * (heads.values - found)
        memory = state.memory + change.unsqueeze(-1) * keys.unsqueeze(-2)
        return (memory @ queries.unsqueeze(-1)).squeeze(-1), DeltaState(memory), heads
