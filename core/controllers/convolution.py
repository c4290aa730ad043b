"""A controller that sees the last few inputs: the short convolution of linear-attention models (DeltaNet, Mamba)."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ..registry import register
from ..state import example, register_state
from .base import Controller


@register_state
class ConvolutionState(NamedTuple):
    """The inputs that later steps still see."""

    recent: Tensor
    """After the linear layer, the earliest first, ``[B, kernel_size - 1, hidden_size]``"""


@register("controller", "convolution")
class ConvolutionController(Controller):
    """A linear layer, then for each unit a causal convolution over the last inputs, then SiLU, x sigmoid(x).

    With it, a memory of one layer can write a word under the key that came a step before. Steps before the first count
    as zeros.
    """

    hidden_size: int = Field(default=100, ge=1, description="units")
    kernel_size: int = Field(
        default=4, ge=1, le=1000, description="inputs that each unit sees, the present one included"
    )

    def setup(self) -> None:
        """Make the linear layer and the convolution."""
        self.num_layers = 1
        self.linear = nn.Linear(self.input_size, self.hidden_size)
        self.convolution = _Convolution(self.hidden_size, self.hidden_size, self.kernel_size, groups=self.hidden_size)

    def initial_state(self, batch_size: int) -> ConvolutionState:
        """Zeros."""
        return ConvolutionState(example(self).new_zeros(batch_size, self.kernel_size - 1, self.hidden_size))

    def forward(self, x: Tensor, state: ConvolutionState) -> tuple[Tensor, ConvolutionState]:
        """One step; see :meth:`Controller.forward`."""
        hidden, state = self.run(x.unsqueeze(0), state)
        return hidden.squeeze(0), state

    def run(self, inputs: Tensor, state: ConvolutionState) -> tuple[Tensor, ConvolutionState]:
        """All steps at once; see :meth:`Controller.run`."""
        steps = len(inputs)
        seen = torch.cat([state.recent.transpose(0, 1), self.linear(inputs).to(state.recent.dtype)])
        hidden = self.clipped(functional.silu(self.convolution(seen)))
        # A copy: a view would keep all steps.
        return hidden, ConvolutionState(seen[steps:].transpose(0, 1).clone())


class _Convolution(nn.Conv1d):
    """Of each unit by itself, over steps that come first."""

    def forward(self, seen: Tensor) -> Tensor:
        """``[K - 1 + T, B, U]`` -> ``[T, B, U]``, where K is the size of the kernel."""
        weight, bias, size = self.weight.squeeze(1), cast("Tensor", self.bias), self.kernel_size[0]
        steps = len(seen) - size + 1
        # Summed over shifted sequences: torch's own grouped convolution is slower on a CPU, going back above all.
        summed = torch.stack([seen[lag : lag + steps] * weight[:, lag] for lag in range(size)]).sum(0)
        return summed + bias
