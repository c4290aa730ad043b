"""A circuit without memory that is a network of any topology, made to be evolved by NEAT."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field
from torch import Tensor

from ..core.circuit import Circuit
from ..core.kernels.formulas import plain, unchanged
from ..core.members import Stack, dense
from ..core.options import check_sizes
from ..core.registry import register
from ..core.topology import HIDDEN_WEIGHT, OUTPUT_WEIGHT, TopologyActivation, TopologyNetwork, TopologyState


@register("circuit", "neat")
class NeatCircuit(Circuit):
    """Inputs, hidden nodes and outputs connected in any way, recurrently too; see :mod:`~papertape.core.topology`.

    The topology is in the weights: a connection is there where its weight is not zero. At first every input is
    connected to every output. What recurrent connections from outputs carry has gone through the activation; what the
    circuit answers has not: these are logits.
    """

    backends = ("auto", "eager")

    embedding_size: int | None = Field(default=None, init=False)
    max_nodes: int = Field(default=16, ge=1, description="hidden nodes that there is room for")
    activation: TopologyActivation = Field(default="tanh", description="of all nodes")

    def setup(self) -> None:
        """Make the network."""
        self.network = TopologyNetwork(self.input_size, self.output_size, self.max_nodes, activation=self.activation)

    def initial_state(self, batch_size: int) -> TopologyState:
        """Zeros.

        Raises:
            ValueError: a size below 1, or none that is whole.
        """
        check_sizes(batch_size=batch_size)
        return self.network.initial_state(batch_size)

    def step(self, x: Tensor, state: TopologyState | None = None) -> tuple[Tensor, TopologyState]:
        """One step; see :meth:`Circuit.step`."""
        x = self.check_inputs(x, "[B, {}]")
        with self.precision(x):
            outputs, state = self.network(x, self.check_state(state, x))
            return outputs.to(x.dtype), state

    def run_population(self, parameters: Mapping[str, Stack], inputs: Tensor) -> Tensor:
        """The answers of many members to the same inputs; takes no longer than the largest of their networks needs.

        Args:
            parameters: a stack of P members for each named parameter.
            inputs: ``[T, B, I]``, or tokens ``[T, B]``.

        Returns:
            ``[T, P, B, O]``
        """
        if not plain([self.network], TopologyNetwork) or not unchanged(self, NeatCircuit, "run", "_run", "step"):
            return super().run_population(parameters, inputs)
        hidden, output = (dense(parameters[f"network.{name}"]) for name in (HIDDEN_WEIGHT, OUTPUT_WEIGHT))
        return self.network.run_population(hidden, output, self.shared_inputs(inputs))
