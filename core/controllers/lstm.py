"""LSTM controller."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..circuit import example, register_state
from .base import Controller, LayeredControllerOptions, gated_layers


class LSTMOptions(LayeredControllerOptions):
    """Options of :class:`LSTMController`."""

    type: Literal["lstm"] = "lstm"


@register_state
class LSTMState(NamedTuple):
    """Hidden and cell state of every layer."""

    hidden: Tensor
    """``[B, num_layers, hidden_size]``"""
    cell: Tensor
    """``[B, num_layers, hidden_size]``"""


class LSTMController(Controller):
    """Long short-term memory; gates and their order (input, forget, cell, output) as in torch.nn.LSTM."""

    Options = LSTMOptions
    kind = "lstm"

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, *, clip: float | None = 20.0) -> None:
        """See :class:`Controller`."""
        super().__init__(input_size, hidden_size, num_layers, clip=clip)
        self.inputs, self.recurrents = gated_layers(input_size, hidden_size, num_layers, gates=4)

    def initial_state(self, batch_size: int) -> LSTMState:
        """Zeros."""
        shape = (batch_size, self.num_layers, self.hidden_size)
        weight = example(self)
        return LSTMState(weight.new_zeros(shape), weight.new_zeros(shape))

    def forward(self, x: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        """One step; see :meth:`Controller.forward`."""
        hiddens, cells = [], []
        for layer in range(self.num_layers):
            gates = self.inputs[layer](x) + self.recurrents[layer](state.hidden[:, layer])
            input_gate, forget_gate, candidate, output_gate = gates.chunk(4, dim=-1)
            cell = torch.sigmoid(forget_gate) * state.cell[:, layer] + torch.sigmoid(input_gate) * torch.tanh(candidate)
            cell = self.clipped(cell)
            x = self.clipped(torch.sigmoid(output_gate) * torch.tanh(cell))
            hiddens.append(x)
            cells.append(cell)
        return x, LSTMState(torch.stack(hiddens, dim=1), torch.stack(cells, dim=1))
