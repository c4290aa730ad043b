"""Continuous thought machine: neurons with a model each, whose synchronisation over time is what is read (2025).

Darlow, Regan, Risi, Seely & Jones, "Continuous Thought Machines" (NeurIPS 2025, arXiv 2505.05522), section 3. As in its
reinforcement learning each step brings a vector, to which there is nothing to attend; the authors' code for it also has
two layers in the synapses, a learned first history, and the synchronisation of all pairs of a few neurons within it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ..initialisers import reset_layers
from ..registry import register
from ..state import register_state
from ..trace import TraceField
from .base import Controller

SLOW = -5.0
"""First logit of each pair's decay: ``exp(-softplus(-5))`` is 0.993, nearly no decay, and may become more or less."""


@register_state
class CTMState(NamedTuple):
    """What neurons have done; D neurons, Y pairs of them, the last M ticks."""

    history: Tensor
    """Pre-activations, the oldest first, ``[B, D, M]``"""
    activity: Tensor
    """Post-activations after the last tick, ``[B, D]``"""
    products: Tensor
    """Decaying sum over all ticks of the products of each pair, ``[B, Y]``"""
    weight: Tensor
    """Sum of the weights of these, ``[B, Y]``"""


@register("controller", "ctm")
class CTMController(Controller):
    """Neurons that run for some internal ticks at each step; the hidden vector is how pairs of them synchronise.

    At each tick the synapses mix the step's features with the neurons' activity into pre-activations (equation 1),
    each neuron's own model maps the history of its pre-activations to its activity (equations 2 and 3), and each of
    ``hidden_size`` random pairs adds the product of its two activities to a sum that decays at a learned rate, divided
    by the root of the number of ticks, as far as they still count (equations 9 and 10, appendix H).
    """

    neurons: int = Field(default=64, ge=2, description="D, neurons; a norm of one hides it")
    hidden_size: int = Field(default=64, ge=1, description="Y, pairs of neurons that are read")
    ticks: int = Field(default=4, ge=1, le=1000, description="internal ticks at each step")
    history: int = Field(default=8, ge=1, le=1000, description="M, ticks that a neuron's model looks back on")
    model_size: int = Field(default=4, ge=1, description="hidden units of each neuron's model")
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="share of what goes into the synapses that is set to 0 in training"
    )

    trace_fields = {
        "activity": TraceField("U", "words", "of the neurons, after the last tick"),
        "synchronisation": TraceField("Y", "words", "of each pair of neurons"),
        "history": TraceField("U Q", "matrix", "pre-activations of each neuron at the last ticks"),
    }

    def setup(self) -> None:
        """Make synapses and models, and choose the pairs."""
        neurons, inner = self.neurons, self.model_size
        self.num_layers = 1
        self.features = nn.Sequential(nn.Linear(self.input_size, 2 * neurons), nn.GLU(), nn.LayerNorm(neurons))
        self.synapses = nn.Sequential(nn.Linear(2 * neurons, 2 * neurons), nn.GLU(), nn.LayerNorm(neurons))
        self.first = _PerNeuron(neurons, self.history, 2 * inner)
        self.second = _PerNeuron(neurons, inner, 2)
        self.initial_history = nn.Parameter(torch.empty(neurons, self.history))
        self.initial_activity = nn.Parameter(torch.empty(neurons))
        self.decay = nn.Parameter(torch.empty(self.hidden_size))
        self.pairs: Tensor
        self.register_buffer("pairs", torch.empty(2, self.hidden_size, dtype=torch.long))
        self._draw()

    def reset_parameters(self) -> None:
        """Draw all weights and pairs anew; the same seed gives the same ones as at construction."""
        reset_layers(self)
        self._draw()

    def _draw(self) -> None:
        """What no layer draws for itself."""
        for start, size in ((self.initial_history, self.neurons + self.history), (self.initial_activity, self.neurons)):
            nn.init.uniform_(start, -1 / math.sqrt(size), 1 / math.sqrt(size))
        nn.init.constant_(self.decay, SLOW)
        self.pairs.random_(self.neurons)

    def _products(self, activity: Tensor) -> Tensor:
        """Products of the activities ``[B, D]`` of each pair, ``[B, Y]``."""
        return activity.index_select(1, self.pairs[0]) * activity.index_select(1, self.pairs[1])

    def initial_state(self, batch_size: int) -> CTMState:
        """As learned; the first products are those of the first activity."""
        activity = self.initial_activity.expand(batch_size, -1)
        products = self._products(activity)
        history = self.initial_history.expand(batch_size, -1, -1)
        # Copies, of a single sequence as well: a state that is changed in place leaves what was learned as it is.
        history, activity = (part.clone(memory_format=torch.contiguous_format) for part in (history, activity))
        return CTMState(history, activity, products, torch.ones_like(products))

    def forward(self, x: Tensor, state: CTMState) -> tuple[Tensor, CTMState]:
        """One step; see :meth:`Controller.forward`."""
        dtype = state.activity.dtype
        features = self.features(x).to(dtype)
        keep = torch.exp(-functional.softplus(self.decay))
        history, activity, products, weight = state
        for _ in range(self.ticks):
            mixed = functional.dropout(torch.cat([features, activity], dim=-1), self.dropout, self.training)
            history = torch.cat([history[:, :, 1:], self.synapses(mixed).to(dtype).unsqueeze(-1)], dim=-1)
            inner = functional.glu(self.first(history), dim=-1)
            activity = self.clipped(functional.glu(self.second(inner), dim=-1).squeeze(-1)).to(dtype)
            products = keep * products + self._products(activity)
            weight = keep * weight + 1
        return self.synchronisation(products, weight), CTMState(history, activity, products, weight)

    def synchronisation(self, products: Tensor, weight: Tensor) -> Tensor:
        """Of each pair, ``[B, Y]``, from :class:`CTMState`."""
        return self.clipped(products / torch.sqrt(weight))

    def observed(self, x: Tensor, before: CTMState, after: CTMState) -> dict[str, Tensor]:
        """See :meth:`Controller.observed`."""
        return {
            **super().observed(x, before, after),
            "synchronisation": self.synchronisation(after.products, after.weight),
        }


class _PerNeuron(nn.Module):
    """A linear layer for each neuron, ``[B, D, inputs]`` -> ``[B, D, outputs]``."""

    def __init__(self, neurons: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(neurons, inputs, outputs))
        self.bias = nn.Parameter(torch.empty(neurons, outputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As in the authors' code."""
        bound = 1 / math.sqrt(self.weight.shape[1] + self.weight.shape[2])
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return torch.einsum("bdi,dio->bdo", x, self.weight) + self.bias
