"""A circuit without memory that is a network of any topology, made to be evolved by NEAT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor

from ..core.circuit import Circuit, check_choice
from ..core.graph import HIDDEN_WEIGHT, OUTPUT_WEIGHT, GraphActivation, GraphNetwork, GraphState
from ..core.options import Options
from ..core.stacked import Stack, dense


class NeatCircuitOptions(Options):
    """Options of :class:`NeatCircuit`."""

    type: Literal["neat"] = "neat"
    max_nodes: int = Field(16, ge=1)
    """Hidden nodes that there is room for."""
    activation: GraphActivation = "tanh"


class NeatCircuit(Circuit):
    """Inputs, hidden nodes and outputs connected in any way, recurrently too; see :mod:`~papertape.core.graph`.

    The topology is in the weights: a connection is there where its weight is not zero. At first every input is
    connected to every output. What recurrent connections from outputs carry has gone through the activation; what the
    circuit answers has not: these are logits.
    """

    Options = NeatCircuitOptions

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        max_nodes: int = 16,
        activation: GraphActivation = "tanh",
        batch_first: bool = False,
        backend: str = "auto",
    ) -> None:
        """
        Args:
            input_size: I, channels of each input step.
            output_size: O, channels of each output step.
            max_nodes: hidden nodes that there is room for.
            activation: of all nodes: ``tanh``, ``relu``, ``sigmoid`` or ``steep-sigmoid``.
            batch_first: sequences are ``[B, T, …]`` rather than ``[T, B, …]``.
            backend: ``auto`` or ``eager``.

        Raises:
            ValueError: an argument that is not allowed; names it, what was given and what is allowed.
        """
        super().__init__(input_size, output_size, batch_first=batch_first)
        check_choice("backend", backend, ("auto", "eager"))
        self.backend = backend
        self.network = GraphNetwork(input_size, output_size, max_nodes, activation=activation)

    def initial_state(self, batch_size: int) -> GraphState:
        """Zeros."""
        return self.network.initial_state(batch_size)

    def step(self, x: Tensor, state: GraphState | None = None) -> tuple[Tensor, GraphState]:
        """One step; see :meth:`Circuit.step`."""
        x = self.check_inputs(x, "[B, {}]")
        outputs: tuple[Tensor, GraphState] = self.network(x, self.check_state(state, x))
        return outputs

    def run_population(self, parameters: Mapping[str, Stack], inputs: Tensor) -> Tensor:
        """The answers of many members to the same inputs; takes no longer than the largest of their networks needs.

        Args:
            parameters: a stack of P members for each named parameter.
            inputs: ``[T, B, I]``

        Returns:
            ``[T, P, B, O]``
        """
        hidden, output = (dense(parameters[f"network.{name}"]) for name in (HIDDEN_WEIGHT, OUTPUT_WEIGHT))
        return self.network.run_population(hidden, output, inputs)
