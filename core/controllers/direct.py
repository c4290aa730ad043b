"""A controller without a network: the heads see the input and the words read as they are."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..registry import register
from ..state import register_state
from .base import Controller


@register_state
class DirectState(NamedTuple):
    """Nothing: only the memory carries a sequence."""


@register("controller", "direct")
class DirectController(Controller):
    """The hidden vector is the input and the words read, so that heads and outputs are linear functions of these.

    The smallest controller there is, and the one that neuroevolution starts from: a network whose inputs are connected
    to its outputs without hidden nodes (Stanley & Miikkulainen 2002; Greve, Jacobsen & Risi 2016).
    """

    def setup(self) -> None:
        """The hidden vector is the input."""
        self.hidden_size, self.num_layers = self.input_size, 0

    def initial_state(self, batch_size: int) -> DirectState:
        """Nothing."""
        return DirectState()

    def forward(self, x: Tensor, state: DirectState) -> tuple[Tensor, DirectState]:
        """One step; see :meth:`Controller.forward`."""
        return self.clipped(x), state

    def run(self, inputs: Tensor, state: DirectState) -> tuple[Tensor, DirectState]:
        """All steps at once; see :meth:`Controller.run`."""
        return self(inputs, state)
