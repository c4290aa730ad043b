"""A circuit without memory: fully connected layers that answer each step on its own."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple, get_args

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.circuit import Circuit, check_choice, check_sizes, register_state
from ..core.options import Options
from ..core.stacked import Stack, linear

Activation = Literal["tanh", "relu", "sigmoid", "gelu"]


class FeedForwardCircuitOptions(Options):
    """Options of :class:`FeedForwardCircuit`."""

    type: Literal["feedforward"] = "feedforward"
    hidden_sizes: list[Annotated[int, Field(ge=1)]] = Field([64])
    """Size of each hidden layer; none makes a linear map."""
    activation: Activation = "tanh"
    """Follows each hidden layer."""
    input_mean: float = 0.0
    """Subtracted from every input, which is then divided by ``input_std``."""
    input_std: float = Field(1.0, gt=0)


@register_state
class FeedForwardCircuitState(NamedTuple):
    """Nothing is carried from step to step."""


class FeedForwardCircuit(Circuit):
    """Fully connected layers: a plain classifier where sequences have one step, the same map at each where more."""

    Options = FeedForwardCircuitOptions

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        hidden_sizes: list[int] | tuple[int, ...] = (64,),
        activation: Activation = "tanh",
        input_mean: float = 0.0,
        input_std: float = 1.0,
        batch_first: bool = False,
        backend: str = "auto",
    ) -> None:
        """
        Args:
            input_size: I, channels of each input step.
            output_size: O, channels of each output step.
            hidden_sizes: size of each hidden layer; none makes a linear map.
            activation: ``tanh``, ``relu``, ``sigmoid`` or ``gelu``, after each hidden layer.
            input_mean: subtracted from every input, which is then divided by ``input_std``.
            input_std: above 0.
            batch_first: sequences are ``[B, T, …]`` rather than ``[T, B, …]``.
            backend: ``auto`` or ``eager``: there is no recurrence to speed up.

        Raises:
            ValueError: an argument that is not allowed; names it, what was given and what is allowed.
        """
        super().__init__(input_size, output_size, batch_first=batch_first)
        check_choice("activation", activation, get_args(Activation))
        check_choice("backend", backend, ("auto", "eager"))
        if not input_std > 0:
            raise ValueError(f"input_std: got {input_std}; allowed is a number above 0")
        for size in hidden_sizes:
            check_sizes(hidden_sizes=size)
        sizes = [input_size, *hidden_sizes, output_size]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(sizes))
        self.activation = activation
        self.input_mean = input_mean
        self.input_std = input_std

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
            inputs: ``[T, B, I]``

        Returns:
            ``[T, P, B, O]``
        """
        x = self._standardise(inputs).flatten(0, 1)
        last = len(self.layers) - 1
        for index in range(last + 1):
            x = linear(x, parameters[f"layers.{index}.weight"], parameters[f"layers.{index}.bias"])
            if index < last:
                x = self._activate(x)
        return x.unflatten(1, inputs.shape[:2]).transpose(0, 1)
