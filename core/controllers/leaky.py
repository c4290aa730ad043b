"""Leaky units with timescales of their own (Khajehabdollahi, Zeraati, Giannakakis, Schäfer, Martius & Levina 2024).

"Emergent mechanisms for long timescales depend on training curriculum and affect performance in memory tasks" (ICLR).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ..initialisers import reset_layers
from ..registry import register
from ..state import example, register_state
from ..trace import TraceField
from .base import LayeredController


@register_state
class LeakyState(NamedTuple):
    """Activity of every layer."""

    hidden: Tensor
    """``[B, L, U]``"""


@register("controller", "leaky")
class LeakyController(LayeredController):
    """Leaky units: ``x = f((1 - 1/tau) x + (W x + V input) / tau)``, each with a timescale tau of its own, in steps.

    Equation 1 of the paper, with no connection from a unit to itself: tau says how much of its own a unit keeps. It is
    at least 1, where nothing is kept; one that was learned below that counts as 1 and has no gradient any more. Learned
    timescales are one for each unit, or one for all of a layer; memory that lasts longer than they do is in the
    connections (the network's timescale).
    """

    kept = LayeredController.kept | {"timescales", "min_timescale", "max_timescale"}

    timescales: Literal["unit", "layer", "fixed"] = Field(
        default="unit", description="what learns a timescale: each unit, each layer, or none, where all stay as drawn"
    )
    min_timescale: float = Field(default=1.0, ge=1, description="shortest timescale at first, in steps")
    max_timescale: float = Field(default=2.0, ge=1, description="longest timescale at first, in steps")
    activation: Literal["leaky-relu", "tanh"] = Field(default="leaky-relu", description="f, of all units")
    leak_inside: bool = Field(
        default=True,
        description="whether f takes what is kept, too, as in equation 1; else only what comes in",
    )

    trace_fields = {"hidden": TraceField("L U", "words", "activity of each layer")}

    @classmethod
    def check_options(cls, options: Any) -> None:
        """See :meth:`Component.check_options`."""
        super().check_options(options)
        shortest, longest = options.min_timescale, options.max_timescale
        if shortest > longest:
            raise ValueError(f"min_timescale: got {shortest}; allowed is at most max_timescale ({longest})")

    def setup(self) -> None:
        """Make the layers."""
        size = self.hidden_size
        self.inputs = self.linear_layers(gates=1)
        self.recurrents = nn.ModuleList(nn.Linear(size, size) for _ in range(self.num_layers))
        timescale = torch.empty(self.num_layers, 1 if self.timescales == "layer" else size)
        self.timescale: Tensor
        if self.timescales == "fixed":
            self.register_buffer("timescale", timescale)
        else:
            self.timescale = nn.Parameter(timescale)
        self._draw()

    def reset_parameters(self) -> None:
        """Draw all weights and timescales anew; the same seed gives the same ones as at construction."""
        reset_layers(self)
        self._draw()

    def _draw(self) -> None:
        """What no layer draws for itself."""
        with torch.no_grad():
            self.timescale.uniform_(self.min_timescale, self.max_timescale)

    def initial_state(self, batch_size: int) -> LeakyState:
        """Zeros."""
        return LeakyState(example(self).new_zeros(batch_size, self.num_layers, self.hidden_size))

    def _activate(self, x: Tensor) -> Tensor:
        return torch.tanh(x) if self.activation == "tanh" else functional.leaky_relu(x)

    def forward(self, x: Tensor, state: LeakyState) -> tuple[Tensor, LeakyState]:
        """One step; see :meth:`Controller.forward`."""
        shares = 1 / torch.clamp(self.timescale, min=1)
        hiddens = []
        for layer, (inputs, recurrents) in enumerate(zip(self.inputs, self.recurrents, strict=True)):
            before, share = state.hidden[:, layer], shares[layer]
            summed = inputs(x) + recurrents(before)
            weight: Any = recurrents.weight  # after the call, which renews that of a pruned layer
            if not isinstance(weight, Tensor):
                weight = weight().dequantize()  # of a quantised layer, which packs it
            from_itself = before * weight.diagonal()
            coming = (summed - from_itself).to(before.dtype)
            if self.leak_inside:
                hidden = self._activate(torch.lerp(before, coming, share))
            else:
                hidden = torch.lerp(before, self._activate(coming), share)
            hiddens.append(self.clipped(hidden))
            x = self.between_layers(hiddens[-1], layer)
        return x, LeakyState(torch.stack(hiddens, dim=1))
