"""A circuit without memory: fully connected layers that answer each step on its own."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.circuit import Circuit
from ..core.kernels.formulas import plain, unchanged
from ..core.members import Stack, linear
from ..core.registry import register
from ..core.state import register_state
from ..core.structure import Layer, Structure, Wire, resized_list, unlike_linear


@register_state
class FeedForwardCircuitState(NamedTuple):
    """Nothing is carried from step to step."""


@register("circuit", "feedforward")
class FeedForwardCircuit(Circuit):
    """Fully connected layers: a plain classifier for sequences of one step; in longer ones, one map for all steps."""

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
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="share of what each hidden layer gives that training sets to 0"
    )
    bias: bool = Field(default=True, description="whether each layer adds a vector of its own, as in torch.nn.Linear")
    zero_outputs: bool = Field(
        default=False,
        description="whether the last layer starts with zeros, so that a linear policy begins by doing nothing",
    )

    def setup(self) -> None:
        """Make the layers."""
        sizes = [self.vector_size, *self.hidden_sizes, self.output_size]
        self.layers = nn.ModuleList(nn.Linear(*size, bias=self.bias) for size in pairwise(sizes))
        self.residual: tuple[int, ...] = ()
        """Layers whose output is added to what they get, as a change of structure adds them."""
        self._zero()

    def reset_parameters(self) -> None:
        """See :meth:`Circuit.reset_parameters`."""
        super().reset_parameters()
        self._zero()

    def _zero(self) -> None:
        if self.zero_outputs:
            for parameter in self.layers[-1].parameters():
                nn.init.zeros_(parameter)

    uniform = False
    watchable = True

    @property
    def fresh_residual(self) -> bool:
        """See :meth:`Circuit.fresh_residual`: a ReLU that adds nothing never learns, but hands on what is above 0."""
        return self.activation != "relu"

    def fixed(self) -> str | None:
        """See :meth:`Circuit.fixed`."""
        if len(self.layers) < 2:
            return "it has no hidden layer"
        return unlike_linear(self.layers)

    def structure(self) -> Structure:
        """See :meth:`Circuit.structure`: the hidden layers, each of a size of its own."""
        sizes = [] if self.fixed() else self.hidden_sizes
        return tuple(Layer(size, index in self.residual) for index, size in enumerate(sizes))

    def wires(self, structure: Structure) -> list[Wire]:
        """See :meth:`Circuit.wires`."""
        last = len(structure)
        hidden = [Wire(f"layers.{layer}", "hidden", layer - 1, layer) for layer in range(last)]
        return [*hidden, Wire(f"layers.{last}", "output", last - 1)]

    def resize(self, structure: Structure) -> None:
        """See :meth:`Circuit.resize`."""
        self.hidden_sizes = [layer.size for layer in structure]
        self.residual = tuple(index for index, layer in enumerate(structure) if layer.residual)
        resized_list(self.layers, [*pairwise([self.vector_size, *self.hidden_sizes, self.output_size])])
        self.options = self.options.model_copy(update={"hidden_sizes": self.hidden_sizes})

    def _standardise(self, inputs: Tensor) -> Tensor:
        if self.input_mean == 0 and self.input_std == 1:
            return inputs
        return (inputs - self.input_mean) / self.input_std

    def _activate(self, x: Tensor) -> Tensor:
        if self.activation == "gelu":
            return nn.functional.gelu(x)
        function: Tensor = getattr(torch, self.activation)(x)
        return function

    def _passed_on(self, made: Tensor, got: Tensor, layer: int) -> Tensor:
        """What a layer gives to the next: what it made, added to what it got where it is residual."""
        made = self._activate(made)
        residual = layer in self.residual
        if residual and self.activation == "sigmoid":
            made = made - 0.5  # so that zero weights add nothing
        if self.dropout and self.training:
            made = nn.functional.dropout(made, self.dropout)
        return got + made if residual else made

    def initial_state(self, batch_size: int) -> FeedForwardCircuitState:
        """Nothing."""
        return FeedForwardCircuitState()

    def step(self, x: Tensor, state: FeedForwardCircuitState | None = None) -> tuple[Tensor, FeedForwardCircuitState]:
        """One step; see :meth:`Circuit.step`."""
        x = self.check_inputs(x, "[B, {}]")
        with self.precision(x):
            outputs, state = self.run(x, self.check_state(state, x))
            return outputs.to(x.dtype), state

    def run(self, inputs: Tensor, state: FeedForwardCircuitState) -> tuple[Tensor, FeedForwardCircuitState]:
        """All steps at once, ``[…, I]`` -> ``[…, O]``."""
        x = self._standardise(inputs)
        *hidden, output = self.layers
        for index, layer in enumerate(hidden):
            x = self._passed_on(layer(x), x, index)
        return output(x), state

    def run_population(self, parameters: Mapping[str, Stack], inputs: Tensor) -> Tensor:
        """The answers of many members to the same inputs; shares what the stacks let it share.

        Args:
            parameters: a stack of P members for each named parameter.
            inputs: ``[T, B, I]``, or tokens ``[T, B]``.

        Returns:
            ``[T, P, B, O]``
        """
        steps = ("run", "_standardise", "_passed_on", "_activate")
        written = plain(self.layers, nn.Linear) and unchanged(self, FeedForwardCircuit, *steps)
        if self.embedding is not None or not written:
            return super().run_population(parameters, inputs)
        inputs = self.shared_inputs(inputs)
        x = self._standardise(inputs).flatten(0, 1)
        last = len(self.layers) - 1
        for index in range(last + 1):
            made = linear(x, parameters[f"layers.{index}.weight"], parameters.get(f"layers.{index}.bias"))
            x = self._passed_on(made, x, index) if index < last else made
        return x.unflatten(1, inputs.shape[:2]).transpose(0, 1)
