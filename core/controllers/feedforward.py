"""Feed-forward controller."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..circuit import register_state
from .base import Controller, LayeredControllerOptions


class FeedForwardOptions(LayeredControllerOptions):
    """Options of :class:`FeedForwardController`."""

    type: Literal["feedforward"] = "feedforward"


@register_state
class FeedForwardState(NamedTuple):
    """A feed-forward controller remembers nothing: only the memory carries a sequence."""


class FeedForwardController(Controller):
    """Fully connected layers with tanh; all that it remembers is in the external memory."""

    Options = FeedForwardOptions
    kind = "feedforward"

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, *, clip: float | None = 20.0) -> None:
        """See :class:`Controller`; the outputs lie in (-1, 1), so only a clip below 1 has an effect."""
        super().__init__(input_size, hidden_size, num_layers, clip=clip)
        self.inputs = nn.ModuleList(
            nn.Linear(hidden_size if layer else input_size, hidden_size) for layer in range(num_layers)
        )

    def initial_state(self, batch_size: int) -> FeedForwardState:
        """Nothing."""
        return FeedForwardState()

    def forward(self, x: Tensor, state: FeedForwardState) -> tuple[Tensor, FeedForwardState]:
        """One step; see :meth:`Controller.forward`."""
        for layer in self.inputs:
            x = self.clipped(torch.tanh(layer(x)))
        return x, state
