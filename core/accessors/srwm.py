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
FIRST_RATES = (0.0, -3.0, -3.0, -3.0)
"""Biases of the learning rates of :data:`PARTS` at first, before a sigmoid: outputs change, and little else does."""
FIRST_SHARPNESS = 3.0
"""What keys are at first, before a softmax: the input times this,"""
FIRST_KEY_NOISE = 0.1
"""and this times what random weights make of it."""


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
    """A matrix for each head that gives an output and its own next change; training learns the matrix to start with.

    With f the softmax: y, q, k, b = M x, then M = M + sigmoid(b + c) (M f(q) - M f(k)) f(k)ᵀ, where each of the four
    parts of the rows has its own b and c. What is read is y (equations 5 to 8).

    Three things are not as published, by which it learns to recall far sooner. x is not squeezed by f, but brought to
    mean 0 and variance 1. A bias c is learned: such an x gives b no mean of its own. And keys start as a multiple of x
    rather than at random, so that a matrix changes where x reads: random keys are nearly alike at first, and what they
    write changes what is read by about one part in a hundred.
    """

    num_heads: int = Field(default=4, ge=1, description="H, matrices, each with an input of its own")
    word_size: int = Field(
        default=16, ge=2, description="W, length of a matrix's input and output; the softmax of one is always 1"
    )
    input_scaling: Literal["norm", "softmax", "none"] = Field(
        default="norm",
        description="what a matrix is given: x of mean 0 and variance 1, its softmax, or x as it is",
    )
    first_keys: Literal["inputs", "drawn"] = Field(
        default="inputs",
        description="where a matrix changes itself before anything is learned: where its input reads, or at random",
    )

    trace_fields = {
        "memory": TraceField("H J W", "matrix", "rows that give output, query, key and rates, after the step"),
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
        self.rate_biases = nn.Parameter(torch.empty(self.num_heads, len(PARTS)))
        self._draw()

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        self.interface.linear.reset_parameters()
        self._draw()

    @torch.no_grad()
    def _draw(self) -> None:
        nn.init.normal_(self.initial, std=1 / math.sqrt(self.word_size))
        if self.first_keys == "inputs":
            keys = self.initial[:, 2 * self.word_size : 3 * self.word_size]
            keys.mul_(FIRST_KEY_NOISE).diagonal(dim1=-2, dim2=-1).add_(FIRST_SHARPNESS)
        self.rate_biases.copy_(torch.tensor(FIRST_RATES))

    def initial_state(self, batch_size: int) -> SelfReferentialState:
        """The weights that were learned."""
        return SelfReferentialState(self.initial.expand(batch_size, -1, -1, -1).clone())

    def forward(
        self, hidden: Tensor, state: SelfReferentialState
    ) -> tuple[Tensor, SelfReferentialState, SelfReferentialHeads]:
        """One step of access; see :meth:`Accessor.forward`."""
        inputs = self._inputs(hidden)
        output, memory, (keys, queries, rates) = self._step(inputs, state.memory, self._of_rows(inputs))
        return output, SelfReferentialState(memory), SelfReferentialHeads(inputs, keys, queries, rates)

    def run(self, hidden: Tensor, state: SelfReferentialState) -> tuple[Tensor, SelfReferentialState]:
        """The inputs of a whole sequence at once, then step by step; see :meth:`Accessor.run`."""
        outputs, memory, of_rows = [], state.memory, self._of_rows(hidden)
        for inputs in self._inputs(hidden).unbind(0):
            output, memory, _ = self._step(inputs, memory, of_rows)
            outputs.append(output)
        return torch.stack(outputs), SelfReferentialState(memory)

    def _inputs(self, hidden: Tensor) -> Tensor:
        """What matrices are given, ``[…, H, W]``."""
        x = self.interface(hidden).unflatten(-1, (self.num_heads, -1))
        if self.input_scaling == "norm":
            return functional.layer_norm(x, (self.word_size,))
        return torch.softmax(x, dim=-1) if self.input_scaling == "softmax" else x

    def _of_rows(self, like: Tensor) -> Tensor:
        """Which part each row belongs to, ``[4, 3 W + 4]``, of the type and on the device of another tensor."""
        # No buffer, which a module that comes from the device meta would have to fill again.
        parts = torch.eye(len(PARTS), dtype=like.dtype, device=like.device).unsqueeze(2)
        return torch.cat([part.expand(-1, rows) for part, rows in zip(parts, self.rows, strict=True)], 1)

    def _step(
        self, inputs: Tensor, memory: Tensor, of_rows: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """What is read, the memory after it, and keys, queries and rates."""
        output, places, rates = (
            (memory @ inputs.unsqueeze(-1)).squeeze(-1).split([self.word_size, 2 * self.word_size, len(PARTS)], dim=-1)
        )
        query, key = torch.softmax(places.unflatten(-1, (2, -1)), dim=-1).unbind(-2)
        rates = torch.sigmoid(rates + self.rate_biases)
        difference = (memory @ (query - key).unsqueeze(-1)).squeeze(-1)
        change = (rates @ of_rows * difference).unsqueeze(-1) * key.unsqueeze(-2)
        return output, memory + change, (key, query, rates)
