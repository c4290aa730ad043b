"""The self-referential weight matrix: weights that change themselves (Irie, Schlag, Csordás & Schmidhuber 2022).

"A Modern Self-Referential Weight Matrix That Learns to Modify Itself" (arXiv 2202.05780), section 3. B batch, H heads,
W word size.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ..interface import Interface
from ..registry import register
from ..state import register_state
from ..trace import TraceField
from .base import Accessor

PARTS = ("output", "query", "key", "rates")
"""What a matrix gives, one below the other, each with a learning rate of its own."""
FIRST_RATE = -1.0
"""Mean of the weights that give the learning rates, before a sigmoid (the authors' code)."""


@register_state
class SelfReferentialState(NamedTuple):
    """The weights after a step."""

    memory: Tensor
    """For each head a matrix, ``[B, H, 3 W + 4, W]``"""


class SelfReferentialHeads(NamedTuple):
    """What each matrix saw, and what it did to itself, at one step."""

    inputs: Tensor
    """``[B, H, W]``"""
    keys: Tensor
    """``[B, H, W]``, summing to 1"""
    queries: Tensor
    """``[B, H, W]``, summing to 1"""
    rates: Tensor
    """Of the rows of each of :data:`PARTS`, ``[B, H, 4]`` in (0, 1)"""


@register("accessor", "srwm")
class SelfReferentialAccessor(Accessor):
    """A matrix for each head that gives an output, and how it is to be changed; what it learns before is its start.

    With f the softmax: y, q, k, b = M f(x), then M = M + sigmoid(b) (M f(q) - M f(k)) f(k)ᵀ, where each of the four
    parts of the rows has its own b. What is read is y (equations 5 to 8). Here x itself is by default not squeezed by
    f, but brought to mean 0 and variance 1: else, at first, all keys are nearly alike, and it hardly learns.
    """

    num_heads: int = Field(default=4, ge=1, description="H, matrices, each with an input of its own")
    word_size: int = Field(default=16, ge=1, description="W, length of a matrix's input and output")
    input_scaling: Literal["norm", "softmax", "none"] = Field(
        default="norm",
        description="what a matrix is given: x of mean 0 and variance 1, its softmax, or x as it is",
    )

    trace_fields = {
        "memory": TraceField("H M W", "matrix", "rows that give output, query, key and rates, after the step"),
        "inputs": TraceField("H W", "words", "what each matrix is given"),
        "keys": TraceField("H W", "words", "where each matrix changes itself"),
        "queries": TraceField("H W", "words", "where it takes the new values from"),
        "rates": TraceField("H P", "gate", "learning rates of the parts", PARTS),
    }

    @classmethod
    def read_shape(cls, options: Any) -> tuple[int, int]:
        """The output of every head."""
        return options.num_heads, options.word_size

    def setup(self) -> None:
        """Make the interface, and the weights before the first step."""
        self.interface = Interface(self.hidden_size, {"inputs": self.num_heads * self.word_size})
        self.rows = [self.word_size, self.word_size, self.word_size, len(PARTS)]
        self.initial = nn.Parameter(torch.empty(self.num_heads, sum(self.rows), self.word_size))
        self._draw()

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        self.interface.linear.reset_parameters()
        self._draw()

    @torch.no_grad()
    def _draw(self) -> None:
        nn.init.normal_(self.initial, std=1 / math.sqrt(self.word_size))
        self.initial[:, -len(PARTS) :] += FIRST_RATE

    def initial_state(self, batch_size: int) -> SelfReferentialState:
        """The weights that were learned."""
        return SelfReferentialState(self.initial.expand(batch_size, -1, -1, -1))

    def forward(
        self, hidden: Tensor, state: SelfReferentialState
    ) -> tuple[Tensor, SelfReferentialState, SelfReferentialHeads]:
        """One step of access; see :meth:`Accessor.forward`."""
        memory = state.memory
        x = self.interface(hidden).unflatten(-1, (self.num_heads, -1))
        if self.input_scaling == "norm":
            x = functional.layer_norm(x, (self.word_size,))
        elif self.input_scaling == "softmax":
            x = torch.softmax(x, dim=-1)
        output, query, key, rates = (memory @ x.unsqueeze(-1)).squeeze(-1).split(self.rows, dim=-1)
        query, key, rates = torch.softmax(query, dim=-1), torch.softmax(key, dim=-1), torch.sigmoid(rates)
        each = torch.cat(
            [rate.expand(-1, -1, rows) for rate, rows in zip(rates.split(1, -1), self.rows, strict=True)], -1
        )
        change = each * (memory @ (query - key).unsqueeze(-1)).squeeze(-1)
        memory = memory + change.unsqueeze(-1) * key.unsqueeze(-2)
        return output, SelfReferentialState(memory), SelfReferentialHeads(x, key, query, rates)
