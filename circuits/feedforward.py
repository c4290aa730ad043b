"""A circuit without memory: fully connected layers that answer each step on its own."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.circuit import Circuit
from ..core.members import Stack, linear
from ..core.registry import register
from ..core.state import register_state


@register_state
class FeedForwardCircuitState(NamedTuple):
    """Nothing is carried from step to step."""


@register("circuit", "feedforward")
class FeedForwardCircuit(Circuit):
    """Fully connected layers: a plain classifier where sequences have one step, the same map at each where more."""

    backends = ("auto", "eager")

    hidden_sizes: list[Annotated[int, Field(ge=1)]] = Field(
        default=[64], strict=False, description="size of each hidden layer; none makes a linear map"
    )
    activation: Literal["tanh", "relu", "sigmoid", "gelu"] = Field(
        default="tanh", description="after each hidden layer"
    )
    input_mean: float = Field(
        default=0.0, description="subtracted from every input, which is then divided by input_std"
    )
    input_std: float = Field(default=1.0, gt=0, description="see input_mean")

    zero_outputs: bool = Field(
        default=False,
        description="whether the last layer starts with zeros, so that a linear policy begins by doing nothing",
    )

    def setup(self) -> None:
        """Make the layers."""
        sizes = [self.vector_size, *self.hidden_sizes, self.output_size]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(sizes))
        self._zero()

    def reset_parameters(self) -> None:
        """See :meth:`Circuit.reset_parameters`."""
        super().reset_parameters()
        self._zero()

    def _zero(self) -> None:
        if self.zero_outputs:
            for parameter in self.layers[-1].parameters():
                nn.init.zeros_(parameter)

    def _standardise(self, inputs: Tensor) -> Tensor:
        if self.input_mean == 0 and self.input_std == 1:
            return inputs
        return (inputs - self.input_mean) / self.input_std

    def _activate(self, x: Tensor) -> Tensor:
        if self.activation == "gelu":
            return nn.functional.gelu(x)
        function: Tensor = getattr(torch, self.activation)(x)
        return function

    def initial_state(self, batch_size: int) -> FeedForwardCircuitState:
        """Nothing."""
        return FeedForwardCircuitState()

    def step(self, x: Tensor, state: FeedForwardCircuitState | None = None) -> tuple[Tensor, FeedForwardCircuitState]:
        """One step; see :meth:`Circuit.step`."""
        x = self.check_inputs(x, "[B, {}]")
        return self.run(x, self.check_state(state, x))

    def run(self, inputs: Tensor, state: FeedForwardCircuitState) -> tuple[Tensor, FeedForwardCircuitState]:
        """All steps at once, ``[…, I]`` -> ``[…, O]``."""
        x = self._standardise(inputs)
        for layer in self.layers[:-1]:
            x = self._activate(layer(x))
        return self.layers[-1](x), state

    def run_population(self, parameters: Mapping[str, Stack], inputs: Tensor) -> Tensor:
        """The answers of many members to the same inputs; shares what the stacks let it share.

        Args:
            parameters: a stack of P members for each named parameter.
            inputs: ``[T, B, I]``, or tokens ``[T, B]``.

        Returns:
            ``[T, P, B, O]``
        """
        if self.embedding is not None:
            return super().run_population(parameters, inputs)
        inputs = self.shared_inputs(inputs)
        x = self._standardise(inputs).flatten(0, 1)
        last = len(self.layers) - 1
        for index in range(last + 1):
            x = linear(x, parameters[f"layers.{index}.weight"], parameters[f"layers.{index}.bias"])
            if index < last:
                x = self._activate(x)
        return x.unflatten(1, inputs.shape[:2]).transpose(0, 1)
