"""A controller with any topology, made to be evolved by NEAT."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from ..graph import GraphActivation, GraphNetwork, GraphState, activate
from .base import Controller, LayeredControllerOptions


class NeatControllerOptions(LayeredControllerOptions):
    """Options of :class:`NeatController`."""

    type: Literal["neat"] = "neat"
    hidden_size: int = Field(16, ge=1)
    """Output nodes of the network: the size of the hidden vector that drives the heads."""
    num_layers: Literal[1] = 1
    max_nodes: int = Field(16, ge=1)
    """Nodes between inputs and output nodes that there is room for."""
    activation: GraphActivation = "tanh"


class NeatController(Controller):
    """A network of any topology, recurrent connections included; see :mod:`~papertape.core.graph`.

    The topology is in the weights: a connection is there where its weight is not zero. So it is evolved by NEAT, or by
    any other strategy, and goes on by backprop, which changes the weights of the connections that there are.
    """

    Options = NeatControllerOptions

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        max_nodes: int = 16,
        activation: GraphActivation = "tanh",
        clip: float | None = 20.0,
    ) -> None:
        """
        Args:
            input_size, hidden_size, clip: see :class:`Controller`; the output nodes are the hidden vector.
            num_layers: 1.
            max_nodes: nodes between inputs and output nodes that there is room for.
            activation: of all nodes.

        Raises:
            ValueError: a size below 1, more than one layer, or an unknown activation.
        """
        super().__init__(input_size, hidden_size, num_layers, clip=clip)
        if num_layers != 1:
            raise ValueError(f"num_layers: got {num_layers}; allowed is 1: a neat controller grows its own")
        self.graph = GraphNetwork(input_size, hidden_size, max_nodes, activation=activation)

    def initial_state(self, batch_size: int) -> GraphState:
        """Zeros."""
        return self.graph.initial_state(batch_size)

    def forward(self, x: Tensor, state: GraphState) -> tuple[Tensor, GraphState]:
        """One step; see :meth:`Controller.forward`."""
        outputs, state = self.graph(x, state)
        state = GraphState(self.clipped(state.values))
        return self.clipped(activate(self.graph.activation, outputs)), state
