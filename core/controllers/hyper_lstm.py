"""HyperLSTM: a small LSTM sets the scale of each row of a larger one's weights at each step (Ha, Dai & Le 2016).

"HyperNetworks" (arXiv 1609.09106), section 3.2.2 and appendix A.2.2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from ..initialisers import reset_layers
from ..registry import register
from ..state import example, register_state
from ..trace import TraceField
from .base import LayeredController

FORGET_BIAS = 1.0
"""Added to the forget gates of both LSTMs before the logistic function (appendix A.3)."""
SCALE = 0.1
"""First scale of every row of weights (appendix A.2.2, after Cooijmans et al. 2016)."""
SPREAD = 0.01
"""Standard deviation of the weights from which dynamic biases come, and of the biases, at first. With biases of 0, as
published, inputs of zeros keep the state at exactly 0, where each normalisation multiplies gradients by 316.
"""


@register_state
class HyperLSTMState(NamedTuple):
    """Hidden and cell state of both LSTMs, in every layer; S is ``hyper_size``."""

    hidden: Tensor
    """``[B, L, U]``"""
    cell: Tensor
    """``[B, L, U]``"""
    hyper_hidden: Tensor
    """``[B, L, S]``"""
    hyper_cell: Tensor
    """``[B, L, S]``"""


@register("controller", "hyper-lstm")
class HyperLSTMController(LayeredController):
    """An LSTM whose weights a smaller LSTM changes at each step: it scales their rows, and adds to their biases.

    Gates and their order (input, forget, cell, output) as in torch.nn.LSTM.
    """

    hyper_size: int = Field(default=32, ge=1, description="S, units of the small LSTM")
    embedding_size: int = Field(default=8, ge=1, description="numbers from which the scales of a gate's rows are made")
    layer_norm: bool = Field(default=True, description="normalise gates and cells of both LSTMs, as in the paper")

    trace_fields = {
        "hidden": TraceField("L U", "words", "of each layer"),
        "cell": TraceField("L U", "words", "of each layer"),
        "hyper_hidden": TraceField("L S", "words", "of the small LSTM"),
        "input_scales": TraceField("E U", "words", "rows of the last layer's weights"),
        "recurrent_scales": TraceField("E U", "words", "rows of its recurrent weights"),
    }

    @classmethod
    def check_options(cls, options: Any) -> None:
        """See :meth:`Component.check_options`; a norm over one unit gives the same whatever the unit sums up."""
        super().check_options(options)
        for name in ("hidden_size", "hyper_size"):
            if options.layer_norm and getattr(options, name) == 1:
                raise ValueError(f"{name}: got 1; allowed with layer_norm: at least 2")

    def setup(self) -> None:
        """Make the layers."""
        size, sizes = self.hidden_size, (self.hyper_size, self.embedding_size)
        self.layers = nn.ModuleList(
            _HyperLayer(size if layer else self.input_size, size, *sizes, layer_norm=self.layer_norm)
            for layer in range(self.num_layers)
        )

    def initial_state(self, batch_size: int) -> HyperLSTMState:
        """Zeros."""
        sizes = self.hidden_size, self.hidden_size, self.hyper_size, self.hyper_size
        return HyperLSTMState(*(example(self).new_zeros(batch_size, self.num_layers, size) for size in sizes))

    def forward(self, x: Tensor, state: HyperLSTMState) -> tuple[Tensor, HyperLSTMState]:
        """One step; see :meth:`Controller.forward`."""
        steps = []
        for number, layer in enumerate(self.layers):
            made = layer(x, HyperLSTMState(*(part[:, number] for part in state)))
            steps.append(HyperLSTMState(*map(self.clipped, made)))
            x = self.between_layers(steps[-1].hidden, number)
        return x, HyperLSTMState(*(torch.stack(parts, dim=1) for parts in zip(*steps, strict=True)))

    def observed(self, x: Tensor, before: HyperLSTMState, after: HyperLSTMState) -> dict[str, Tensor]:
        """See :meth:`Controller.observed`."""
        seen = super().observed(x, before, after)
        last: Any = self.layers[-1]
        seen["input_scales"], seen["recurrent_scales"], _ = last.scales(after.hyper_hidden[:, -1])
        return seen


class _Gates(nn.Module):
    """The end of an LSTM's step, from the sums of its gates to the next state, with normalisation by option."""

    def __init__(self, size: int, layer_norm: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(5)) if layer_norm else None
        """Of the gates, and of the cell."""

    def forward(self, sums: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Sums ``[B, 4, U]`` and the cell ``[B, U]`` -> the next hidden and cell state."""
        gates = sums.unbind(1)
        if self.norms is not None:
            gates = tuple(norm(gate) for norm, gate in zip(self.norms, gates, strict=False))
        input_gate, forget_gate, candidate, output_gate = gates
        cell = torch.sigmoid(forget_gate + FORGET_BIAS) * cell + torch.sigmoid(input_gate) * torch.tanh(candidate)
        shown = cell if self.norms is None else self.norms[4](cell)
        return torch.sigmoid(output_gate) * torch.tanh(shown), cell


class _HyperLayer(nn.Module):
    """One layer: both LSTMs and what is between them."""

    def __init__(self, input_size: int, size: int, hyper_size: int, embedding_size: int, *, layer_norm: bool) -> None:
        super().__init__()
        self.hyper_input = nn.Linear(input_size + size, 4 * hyper_size)
        self.hyper_recurrent = nn.Linear(hyper_size, 4 * hyper_size, bias=False)
        self.hyper_gates = _Gates(hyper_size, layer_norm)
        self.input = nn.Linear(input_size, 4 * size, bias=False)
        self.recurrent = nn.Linear(size, 4 * size, bias=False)
        self.gates = _Gates(size, layer_norm)
        self.embed_scales = nn.Linear(hyper_size, 2 * 4 * embedding_size)
        """Embeddings z_x and z_h of each gate, from which the scales of its rows come."""
        self.embed_bias = nn.Linear(hyper_size, 4 * embedding_size, bias=False)
        """Embeddings z_b of each gate, from which its dynamic biases come."""
        self.to_scales = nn.Parameter(torch.empty(2, 4, size, embedding_size))
        self.to_bias = nn.Parameter(torch.empty(4, size, embedding_size))
        self.bias = nn.Parameter(torch.empty(4, size))
        self._draw()

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        reset_layers(self)
        self._draw()

    @torch.no_grad()
    def _draw(self) -> None:
        """At first every row has the same scale, whatever the small LSTM says, and no dynamic bias (appendix A.2.2)."""
        for recurrent in (self.hyper_recurrent, self.recurrent):
            for block in recurrent.weight.chunk(4):
                nn.init.orthogonal_(block)
        nn.init.zeros_(self.embed_scales.weight)
        nn.init.ones_(self.embed_scales.bias)
        nn.init.normal_(self.embed_bias.weight, std=SPREAD)
        nn.init.constant_(self.to_scales, SCALE / self.to_scales.shape[-1])
        nn.init.zeros_(self.to_bias)
        nn.init.normal_(self.bias, std=SPREAD)

    def scales(self, hyper_hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scales of the rows of input and recurrent weights, and the biases, ``[B, 4, U]`` each."""
        embedded = self.embed_scales(hyper_hidden).unflatten(-1, (2, 4, -1))
        of_input, of_recurrent = torch.einsum("bsgz,sguz->bsgu", embedded, self.to_scales).unbind(1)
        bias = torch.einsum("bgz,guz->bgu", self.embed_bias(hyper_hidden).unflatten(-1, (4, -1)), self.to_bias)
        return of_input, of_recurrent, bias + self.bias

    def forward(self, x: Tensor, state: HyperLSTMState) -> HyperLSTMState:
        """One step of one layer: ``[B, input_size]`` and a state ``[B, …]`` -> the next one."""
        seen = torch.cat([x, state.hidden], dim=-1)
        hyper_sums = self.hyper_input(seen) + self.hyper_recurrent(state.hyper_hidden)
        hyper_hidden, hyper_cell = self.hyper_gates(hyper_sums.unflatten(-1, (4, -1)), state.hyper_cell)
        of_input, of_recurrent, bias = self.scales(hyper_hidden)
        sums = of_input * self.input(x).unflatten(-1, (4, -1))
        sums = sums + of_recurrent * self.recurrent(state.hidden).unflatten(-1, (4, -1)) + bias
        hidden, cell = self.gates(sums, state.cell)
        return HyperLSTMState(hidden, cell, hyper_hidden, hyper_cell)
