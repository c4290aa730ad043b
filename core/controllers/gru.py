"""GRU controller."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..circuit import example, register_state
from .base import Controller, LayeredControllerOptions, gated_layers


class GRUOptions(LayeredControllerOptions):
    """Options of :class:`GRUController`."""

    type: Literal["gru"] = "gru"


@register_state
class GRUState(NamedTuple):
    """Hidden state of every layer."""

    hidden: Tensor
    """``[B, num_layers, hidden_size]``"""


class GRUController(Controller):
    """Gated recurrent unit; gates and their order (reset, update, new) as in torch.nn.GRU."""

    Options = GRUOptions
    kind = "gru"

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, *, clip: float | None = 20.0) -> None:
        """See :class:`Controller`."""
        super().__init__(input_size, hidden_size, num_layers, clip=clip)
        self.inputs, self.recurrents = gated_layers(input_size, hidden_size, num_layers, gates=3)

    def initial_state(self, batch_size: int) -> GRUState:
        """Zeros."""
        return GRUState(example(self).new_zeros(batch_size, self.num_layers, self.hidden_size))

    def forward(self, x: Tensor, state: GRUState) -> tuple[Tensor, GRUState]:
        """One step; see :meth:`Controller.forward`."""
        hiddens = []
        for layer in range(self.num_layers):
            hidden = state.hidden[:, layer]
            reset, update, new = self.inputs[layer](x).chunk(3, dim=-1)
            reset_recurrent, update_recurrent, new_recurrent = self.recurrents[layer](hidden).chunk(3, dim=-1)
            update = torch.sigmoid(update + update_recurrent)
            candidate = torch.tanh(new + torch.sigmoid(reset + reset_recurrent) * new_recurrent)
            x = self.clipped(candidate + update * (hidden - candidate))
            hiddens.append(x)
        return x, GRUState(torch.stack(hiddens, dim=1))
