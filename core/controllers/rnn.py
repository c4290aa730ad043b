"""The plain recurrent controller (Elman 1990)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from ..registry import register
from ..state import register_state
from .base import GatedController


@register_state
class RNNState(NamedTuple):
    """Hidden state of every layer."""

    hidden: Tensor
    """``[B, num_layers, hidden_size]``"""


@register("controller", "rnn")
class RNNController(GatedController):
    """Recurrent layers without gates, h = tanh(W x + U h), as torch.nn.RNN; with relu, as Haiku's VanillaRNN."""

    kind = "rnn"

    nonlinearity: Literal["tanh", "relu"] = Field(default="tanh", description="of all units")

    def setup(self) -> None:
        """Make the layers."""
        self.build(gates=1)

    def initial_state(self, batch_size: int) -> RNNState:
        """Zeros."""
        return RNNState(self.zeros(batch_size))

    def forward(self, x: Tensor, state: RNNState) -> tuple[Tensor, RNNState]:
        """One step; see :meth:`Controller.forward`."""
        hiddens = []
        for layer in range(self.num_layers):
            summed = self.inputs[layer](x) + self.recurrents[layer](state.hidden[:, layer])
            active = torch.tanh(summed) if self.nonlinearity == "tanh" else torch.relu(summed)
            hiddens.append(self.clipped(active.to(state.hidden.dtype)))
            x = self.between_layers(hiddens[-1], layer)
        return x, RNNState(torch.stack(hiddens, dim=1))
