"""A controller of your own: leaky units, each with a time constant that it learns.

    h = (1 - a) h + a tanh(W x + U h),  a = sigmoid(b), one b for each unit

Any memory can have it:

    papertape train ntm-copy --import examples/own_controller.py circuit.controller.type=fading
"""

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

import papertape


@papertape.register_state
class LeakyState(NamedTuple):
    """What is carried from step to step."""

    hidden: Tensor  # [B, hidden_size]


@papertape.register("controller", "fading")
class LeakyController(papertape.Controller):
    """Leaky units with learned time constants."""

    hidden_size: int = Field(100, ge=1, description="units")

    def setup(self) -> None:
        self.input = nn.Linear(self.input_size, self.hidden_size)
        self.recurrent = nn.Linear(self.hidden_size, self.hidden_size, bias=False)
        self.leak = nn.Parameter(torch.zeros(self.hidden_size))

    def reset_parameters(self) -> None:
        self.input.reset_parameters()
        self.recurrent.reset_parameters()
        nn.init.zeros_(self.leak)

    def initial_state(self, batch_size: int) -> LeakyState:
        return LeakyState(self.leak.new_zeros(batch_size, self.hidden_size))

    def forward(self, x: Tensor, state: LeakyState) -> tuple[Tensor, LeakyState]:
        """One step: ``[B, input_size]`` and a state -> ``[B, hidden_size]`` and the next state."""
        candidate = torch.tanh(self.input(x) + self.recurrent(state.hidden))
        hidden = self.clipped(torch.lerp(state.hidden, candidate, torch.sigmoid(self.leak)))
        return hidden, LeakyState(hidden)
