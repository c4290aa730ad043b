"""Feed-forward controller."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..registry import register
from ..state import register_state
from .base import LayeredController


@register_state
class FeedForwardState(NamedTuple):
    """A feed-forward controller remembers nothing: only the memory carries a sequence."""


@register("controller", "feedforward")
class FeedForwardController(LayeredController):
    """Fully connected layers with tanh; all that it remembers is in the external memory."""

    kind = "feedforward"
    changeable = True

    def setup(self) -> None:
        """Make the layers."""
        self.inputs = self.linear_layers(gates=1)

    def initial_state(self, batch_size: int) -> FeedForwardState:
        """Nothing."""
        return FeedForwardState()

    def forward(self, x: Tensor, state: FeedForwardState) -> tuple[Tensor, FeedForwardState]:
        """One step; see :meth:`Controller.forward`."""
        for layer, linear in enumerate(self.inputs):
            x = self.passed_on(self.clipped(torch.tanh(linear(x))), x, layer)
        return x, state

    def run(self, inputs: Tensor, state: FeedForwardState) -> tuple[Tensor, FeedForwardState]:
        """All steps at once; see :meth:`Controller.run`."""
        return self(inputs, state)
