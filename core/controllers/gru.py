"""GRU controller."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..registry import register
from ..state import register_state
from .base import GatedController


@register_state
class GRUState(NamedTuple):
    """Hidden state of every layer."""

    hidden: Tensor
    """``[B, num_layers, hidden_size]``"""


@register("controller", "gru")
class GRUController(GatedController):
    """Gated recurrent unit; gates and their order (reset, update, new) as in torch.nn.GRU."""

    kind = "gru"
    changeable = True

    def setup(self) -> None:
        """Make the layers."""
        self.build(gates=3)

    def initial_state(self, batch_size: int) -> GRUState:
        """Zeros."""
        return GRUState(self.zeros(batch_size))

    def forward(self, x: Tensor, state: GRUState) -> tuple[Tensor, GRUState]:
        """One step; see :meth:`Controller.forward`."""
        hiddens = []
        for layer in range(self.num_layers):
            hidden = state.hidden[:, layer]
            reset, update, new = self.inputs[layer](x).chunk(3, dim=-1)
            reset_recurrent, update_recurrent, new_recurrent = self.recurrents[layer](hidden).chunk(3, dim=-1)
            update = torch.sigmoid(update + update_recurrent)
            candidate = torch.tanh(new + torch.sigmoid(reset + reset_recurrent) * new_recurrent)
            hiddens.append(self.clipped(candidate + update * (hidden - candidate)))
            x = self.passed_on(hiddens[-1], x, layer)
        return x, GRUState(torch.stack(hiddens, dim=1))
