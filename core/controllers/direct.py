"""A controller without a network: the heads see the input and the words read as they are."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

from ..circuit import register_state
from .base import Controller, ControllerOptions


class DirectOptions(ControllerOptions):
    """Options of :class:`DirectController`: there is nothing to choose."""

    type: Literal["direct"] = "direct"


@register_state
class DirectState(NamedTuple):
    """Nothing: only the memory carries a sequence."""


class DirectController(Controller):
    """Hands the input and the words read on as the hidden vector, so that heads and outputs are linear in them.

    The smallest controller there is, and the one that neuroevolution starts from: a network whose inputs are connected
    to its outputs without hidden nodes (Stanley & Miikkulainen 2002; Greve, Jacobsen & Risi 2016).
    """

    Options = DirectOptions

    def __init__(
        self, input_size: int, hidden_size: int = 1, num_layers: int = 1, *, clip: float | None = 20.0
    ) -> None:
        """
        Args:
            input_size: channels of the input and of all words read, together; the hidden vector has as many.
            hidden_size, num_layers: taken as by every controller, but without effect, for there are no layers.
            clip: the hidden vector is kept in [-clip, clip]; None leaves it.

        Raises:
            ValueError: a size below 1 or a clip that is not positive.
        """
        super().__init__(input_size, hidden_size, num_layers, clip=clip)
        self.hidden_size, self.num_layers = input_size, 0

    def initial_state(self, batch_size: int) -> DirectState:
        """Nothing."""
        return DirectState()

    def forward(self, x: Tensor, state: DirectState) -> tuple[Tensor, DirectState]:
        """One step; see :meth:`Controller.forward`."""
        return self.clipped(x), state
