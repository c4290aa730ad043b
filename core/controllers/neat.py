"""A controller with any topology, made to be evolved by NEAT."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from ..registry import register
from ..topology import TopologyActivation, TopologyNetwork, TopologyState, activate
from .base import Controller


@register("controller", "neat")
class NeatController(Controller):
    """A network of any topology, recurrent connections included; see :mod:`~papertape.core.topology`.

    The topology is in the weights: a connection is there where its weight is not zero. So NEAT or any
    other strategy can evolve it, and backprop can train the weights of the connections that there are.
    """

    hidden_size: int = Field(
        default=16, ge=1, description="output nodes: the size of the hidden vector that drives the heads"
    )
    max_nodes: int = Field(default=16, ge=1, description="nodes between inputs and output nodes that there is room for")
    activation: TopologyActivation = Field(default="tanh", description="of all nodes")

    def setup(self) -> None:
        """Make the network."""
        self.num_layers = 1
        self.network = TopologyNetwork(self.input_size, self.hidden_size, self.max_nodes, activation=self.activation)

    def initial_state(self, batch_size: int) -> TopologyState:
        """Zeros."""
        return self.network.initial_state(batch_size)

    def forward(self, x: Tensor, state: TopologyState) -> tuple[Tensor, TopologyState]:
        """One step; see :meth:`Controller.forward`."""
        outputs, state = self.network(x, state)
        state = TopologyState(self.clipped(state.values))
        return self.clipped(activate(self.network.activation, outputs)), state
