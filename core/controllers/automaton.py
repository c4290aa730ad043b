"""A finite automaton whose transitions are learned.

Each input makes a matrix of transitions between few states, as in a second-order recurrent network (Giles, Miller,
Chen, Chen, Sun & Lee 1992, "Learning and extracting finite state automata with second-order recurrent neural
networks"), with columns that are probabilities, as of a probabilistic automaton. So few states cannot keep a string,
which is left to the memory; what they can do, count round for one, they do for as long as one likes.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from ..addressing import sharpen
from ..initialisers import reset_layers
from ..options import AnySize
from ..registry import register
from ..state import example, register_state
from ..trace import TraceField
from .base import Controller


@register_state
class AutomatonState(NamedTuple):
    """What it put out last: units, and how likely each state is."""

    hidden: Tensor
    """``[B, 1, hidden_size]``, units before states"""


@register("controller", "automaton")
class AutomatonController(Controller):
    """Units u' = tanh(W x + U s) and states s' = P s, where each column of P is a softmax of (A x + a) / temperature.

    ``x`` is the input with the words read, ``s`` ``[S]`` how likely each state is, and ``P`` ``[S, S]`` how likely each
    state follows on each. The hidden vector has the units u' and the states s'. It begins in the first state.
    """

    kind = "automaton"
    kept = Controller.kept | {"num_states", "temperature", "sharpening", "discrete"}

    hidden_size: int = Field(default=100, ge=2, description="units and states together, the controller's output")
    num_states: AnySize = Field(
        default=None, ge=1, description="states, fewer than hidden_size; None: half of it, 16 at most"
    )
    temperature: float = Field(
        default=0.1,
        gt=0,
        description="of the softmax of transitions; the lower, the sooner they are settled, right or wrong",
    )
    sharpening: float = Field(
        default=1.0, ge=1, description="power to which states are raised after every step, as weights of an NTM are"
    )
    discrete: bool = Field(
        default=False, description="whether it is in its likeliest state alone; gradients pass as if it were not"
    )

    trace_fields = {"states": TraceField("Z", "weighting", "how likely each state is")}

    @classmethod
    def check_options(cls, options: Any) -> None:
        """See :meth:`Component.check_options`."""
        super().check_options(options)
        if options.num_states is not None and options.num_states >= options.hidden_size:
            raise ValueError(
                f"num_states: got {options.num_states}; allowed is less than hidden_size ({options.hidden_size})"
            )
        if options.discrete and options.sharpening != 1:
            raise ValueError(f"sharpening: got {options.sharpening}; allowed with discrete: 1")

    def setup(self) -> None:
        """Make the layers."""
        self.num_layers = 1
        if self.num_states is None:
            self.num_states = min(16, self.hidden_size // 2)
        self.units = self.hidden_size - self.num_states
        self.inputs = nn.ModuleList([nn.Linear(self.input_size, self.units + self.num_states**2)])
        self.recurrents = nn.ModuleList([nn.Linear(self.num_states, self.units)])
        self._draw()

    def reset_parameters(self) -> None:
        """Draw all weights and biases anew; the same seed gives the same ones as at construction."""
        reset_layers(self)
        self._draw()

    def _draw(self) -> None:
        """In place of what the layers have drawn: units of a feed-forward layer at first, which see no state."""
        bound = 1 / math.sqrt(self.hidden_size)
        with torch.no_grad():
            for parameter in self.inputs.parameters():
                parameter[: self.units].uniform_(-bound, bound)
                parameter[self.units :].normal_(std=self.temperature)
            for parameter in self.recurrents.parameters():
                parameter.zero_()

    def initial_state(self, batch_size: int) -> AutomatonState:
        """Zeros, and the first state."""
        hidden = example(self).new_zeros(batch_size, 1, self.hidden_size)
        hidden[..., self.units] = 1
        return AutomatonState(hidden)

    def forward(self, x: Tensor, state: AutomatonState) -> tuple[Tensor, AutomatonState]:
        """One step; see :meth:`Controller.forward`."""
        last = state.hidden[:, 0, self.units :]
        summed = self.inputs[0](x)
        units = self.clipped(torch.tanh(summed[:, : self.units] + self.recurrents[0](last)))
        logits = summed[:, self.units :].unflatten(1, (self.num_states, self.num_states))
        transitions = torch.softmax(logits / self.temperature, dim=1)
        states = (transitions * last.unsqueeze(1)).sum(2)
        if self.discrete:
            likeliest = torch.zeros_like(states).scatter(1, states.argmax(1, keepdim=True), 1.0)
            states = likeliest + (states - states.detach())
        elif self.sharpening > 1:
            states = sharpen(states, torch.full_like(states[:, 0], self.sharpening))
        hidden = torch.cat([units, states], dim=1).to(state.hidden.dtype)
        return hidden, AutomatonState(hidden.unsqueeze(1))

    def observed(self, x: Tensor, before: AutomatonState, after: AutomatonState) -> dict[str, Tensor]:
        """See :meth:`Controller.observed`."""
        return {"states": after.hidden[:, 0, self.units :]}
