"""Plastic controller: recurrent connections that change while they are used (Miconi, Stanley & Clune 2018, ICML).

"Differentiable plasticity: training plastic neural networks with backpropagation", and its neuromodulated rules from
"Backpropamine: training self-modifying neural networks with differentiable neuromodulated plasticity" (Miconi et al.
2019, ICLR).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from ..initialisers import reset_layers
from ..registry import register
from ..state import register_state
from ..trace import TraceField
from .base import Controller

PLASTICITY = 0.01
"""Standard deviation of the plasticity coefficients at first (2018, the authors' code)."""
RATE = 0.1
"""Learning rate of the traces at first (2019, the authors' code)."""
BOUND = 1.0
"""Traces that do not decay are kept in [-1, 1] (2019, equations 3 and 5)."""


@register_state
class PlasticState(NamedTuple):
    """Activity and what the connections have become."""

    hidden: Tensor
    """``[B, U]``"""
    hebbian: Tensor
    """Trace of each connection, to a unit (row) from a unit (column), ``[B, U, U]``"""


@register_state
class RetroactiveState(NamedTuple):
    """The same, with what may still become a change of the connections."""

    hidden: Tensor
    """``[B, U]``"""
    hebbian: Tensor
    """``[B, U, U]``"""
    eligibility: Tensor
    """Eligibility trace of each connection, ``[B, U, U]``"""


@register("controller", "plastic")
class PlasticController(Controller):
    """Tanh units, each of whose recurrent connections is a fixed weight and a plastic part, ``w + alpha Hebb``.

    The trace Hebb starts at 0 in every sequence and follows the activities x of a unit before and after the step:
    ``decay`` and ``oja`` as in 2018 (equations 2 and 3), with a learned rate eta; ``clip`` without decay, clipped;
    ``modulated`` by M, which the network itself puts out (2019, equation 3: simple neuromodulation); ``retroactive``
    by M that applies to an eligibility trace of the recent past (2019, equations 4 and 5).
    """

    hidden_size: int = Field(default=100, ge=1, description="U, units")
    rule: Literal["decay", "oja", "clip", "modulated", "retroactive"] = Field(
        default="decay", description="how connections change; the last two by neuromodulation"
    )

    trace_fields = {
        "hidden": TraceField("U", "words", "activity of the units"),
        "modulation": TraceField("", "gate", "neuromodulation M, which scales all changes"),
        "hebbian": TraceField("U U", "matrix", "trace of each connection"),
        "eligibility": TraceField("U U", "matrix", "eligibility of each connection"),
    }

    def setup(self) -> None:
        """Make the weights, the plasticity of each and, where there is one, the neuromodulator."""
        size = self.hidden_size
        self.input = nn.Linear(self.input_size, size)
        self.recurrent = nn.Linear(size, size, bias=False)
        self.plasticity = nn.Parameter(torch.empty(size, size))
        shown = dict(self.trace_fields)
        if self.rule != "retroactive":
            del shown["eligibility"]
        if self.rule in ("modulated", "retroactive"):
            self.modulator = nn.Linear(size, 1)
            self.fan_out = nn.Linear(1, size)
            """What M is to each unit: a weight and a bias of its own (2019, section 3.1)."""
        else:
            del shown["modulation"]
        if self.rule != "modulated":
            self.rate = nn.Parameter(torch.empty(()))
        self.trace_fields = shown  # type: ignore[misc]  # of this rule
        self._draw()

    def reset_parameters(self) -> None:
        """Draw all weights anew; the same seed gives the same ones as at construction."""
        reset_layers(self)
        self._draw()

    def _draw(self) -> None:
        """What no layer draws for itself."""
        nn.init.normal_(self.plasticity, std=PLASTICITY)
        if self.rule != "modulated":
            nn.init.constant_(self.rate, RATE)

    def initial_state(self, batch_size: int) -> PlasticState | RetroactiveState:
        """Zeros: connections as they were learned."""
        size = self.hidden_size
        hidden = self.plasticity.new_zeros(batch_size, size)
        traces = [hidden.new_zeros(batch_size, size, size) for _ in range(1 + (self.rule == "retroactive"))]
        return RetroactiveState(hidden, *traces) if len(traces) > 1 else PlasticState(hidden, *traces)

    def modulation(self, hidden: Tensor) -> Tensor:
        """M in (-1, 1) from activities ``[B, U]``: ``[B, 1]``."""
        modulation: Tensor = torch.tanh(self.modulator(hidden))
        return modulation

    def forward(
        self, x: Tensor, state: PlasticState | RetroactiveState
    ) -> tuple[Tensor, PlasticState | RetroactiveState]:
        """One step; see :meth:`Controller.forward`."""
        before, hebbian = state.hidden, state.hebbian
        plastic = (self.plasticity * hebbian @ before.unsqueeze(-1)).squeeze(-1)
        hidden = self.clipped(torch.tanh(self.input(x) + self.recurrent(before) + plastic)).to(before.dtype)
        after, came = hidden.unsqueeze(2), before.unsqueeze(1)  # [B, U, 1] and [B, 1, U]
        if self.rule == "decay":
            hebbian = torch.addcmul((1 - self.rate) * hebbian, self.rate * after, came)
        elif self.rule == "oja":
            hebbian = torch.addcmul((1 - self.rate * after * after) * hebbian, self.rate * after, came)
        elif self.rule == "clip":
            hebbian = _bounded(torch.addcmul(hebbian, self.rate * after, came))
        else:
            scale = self.fan_out(self.modulation(hidden)).to(hidden.dtype).unsqueeze(2)  # [B, U, 1]
            if isinstance(state, RetroactiveState):
                eligibility = torch.addcmul((1 - self.rate) * state.eligibility, self.rate * after, came)
                hebbian = _bounded(torch.addcmul(hebbian, scale, state.eligibility))
                return hidden, RetroactiveState(hidden, hebbian, eligibility)
            hebbian = _bounded(torch.addcmul(hebbian, scale * after, came))
        return hidden, PlasticState(hidden, hebbian)

    def observed(self, x: Tensor, before: PlasticState, after: PlasticState) -> dict[str, Tensor]:
        """See :meth:`Controller.observed`."""
        seen = super().observed(x, before, after)
        if "modulation" in self.trace_fields:
            seen["modulation"] = self.modulation(after.hidden).squeeze(-1)
        return seen


def _bounded(hebbian: Tensor) -> Tensor:
    return torch.clamp(hebbian, -BOUND, BOUND)
