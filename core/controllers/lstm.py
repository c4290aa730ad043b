"""LSTM controller."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..registry import register
from ..state import register_state
from .base import GatedController


@register_state
class LSTMState(NamedTuple):
    """Hidden and cell state of every layer."""

    hidden: Tensor
    """``[B, num_layers, hidden_size]``"""
    cell: Tensor
    """``[B, num_layers, hidden_size]``"""


@register("controller", "lstm")
class LSTMController(GatedController):
    """Long short-term memory; gates and their order (input, forget, cell, output) as in torch.nn.LSTM."""

    kind = "lstm"
    changeable = True

    def setup(self) -> None:
        """Make the layers."""
        self.build(gates=4)

    def initial_state(self, batch_size: int) -> LSTMState:
        """Zeros."""
        return LSTMState(self.zeros(batch_size), self.zeros(batch_size))

    def forward(self, x: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        """One step; see :meth:`Controller.forward`."""
        hiddens, cells = [], []
        for layer in range(self.num_layers):
            gates = self.inputs[layer](x) + self.recurrents[layer](state.hidden[:, layer])
            input_gate, forget_gate, candidate, output_gate = gates.chunk(4, dim=-1)
            cell = torch.sigmoid(forget_gate) * state.cell[:, layer] + torch.sigmoid(input_gate) * torch.tanh(candidate)
            cells.append(self.clipped(cell))
            hiddens.append(self.clipped(torch.sigmoid(output_gate) * torch.tanh(cells[-1])))
            x = self.passed_on(hiddens[-1], x, layer)
        return x, LSTMState(torch.stack(hiddens, dim=1), torch.stack(cells, dim=1))
