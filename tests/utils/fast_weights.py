"""An accessor from outside: fast weights that are written by the delta rule (Schlag et al. 2021, equation 24).

It has none of the fields that our accessors have: a matrix instead of slots, and axes with letters of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

import papertape
from papertape.core.accessors.base import Accessor
from papertape.core.trace import TraceField


@papertape.register_state
class FastWeightState(NamedTuple):
    fast_weights: Tensor
    """``[B, W, D]``"""


class FastWeightHeads(NamedTuple):
    key: Tensor
    value: Tensor
    query: Tensor
    rate: Tensor


class FastWeightAccessor(Accessor):
    """``M + rate (value - M key) key^T``, then ``M query``."""

    word_size: int = Field(8, ge=1, description="W, length of a value")
    key_size: int = Field(6, ge=1, description="D, length of a key")

    trace_fields = {
        "fast_weights": TraceField("W D", "matrix", "what keys are mapped to"),
        "value": TraceField("W", "words", "what is written"),
        "key": TraceField("D", "words", "under which key"),
        "query": TraceField("D", "words", "what is looked up"),
        "rate": TraceField("", "gate", "how much of the error is written"),
    }

    @classmethod
    def read_shape(cls, options) -> tuple[int, int]:
        return 1, options.word_size

    def setup(self) -> None:
        self.sizes = [self.key_size, self.word_size, self.key_size, 1]
        self.interface = nn.Linear(self.hidden_size, sum(self.sizes))

    def reset_parameters(self) -> None:
        self.interface.reset_parameters()

    def initial_state(self, batch_size: int, **sizes: int) -> FastWeightState:
        return FastWeightState(self.interface.weight.new_zeros(batch_size, self.word_size, self.key_size))

    def forward(self, hidden: Tensor, state: FastWeightState):
        key, value, query, rate = self.interface(hidden).split(self.sizes, -1)
        heads = FastWeightHeads(
            functional.normalize(key, dim=-1),
            torch.tanh(value),
            functional.normalize(query, dim=-1),
            torch.sigmoid(rate).squeeze(-1),
        )
        weights = state.fast_weights
        error = heads.value - (weights @ heads.key.unsqueeze(-1)).squeeze(-1)
        weights = weights + heads.rate[:, None, None] * error.unsqueeze(-1) * heads.key.unsqueeze(1)
        return (weights @ heads.query.unsqueeze(-1)).transpose(1, 2), FastWeightState(weights), heads
