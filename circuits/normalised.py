"""Any circuit behind running statistics of its inputs, as agents in worlds need them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, get_args

import torch
from pydantic import Field
from torch import Tensor

from ..core.circuit import Circuit
from ..core.component import Chosen, build
from ..core.contracts import is_outside
from ..core.kernels.dispatch import Backend
from ..core.kernels.formulas import unchanged
from ..core.members import Stack
from ..core.options import check_taken
from ..core.registry import register
from .routed import RoutedCircuit

SMALLEST_STD = 1e-7
"""An input that varies less is taken to be constant (Mania et al. 2018, appendix A.1)."""


class Moments(NamedTuple):
    """How many rows of numbers there were, their mean and their spread; all in float64."""

    number: Tensor
    """Of rows, ``[]``."""
    mean: Tensor
    """``[I]``"""
    squares: Tensor
    """Sum of the squared deviations from the mean, ``[I]``."""

    @classmethod
    def of(cls, rows: Tensor) -> Moments:
        """Those of rows ``[N, I]``, maybe none."""
        rows = rows.double()
        number = torch.tensor(float(len(rows)), dtype=torch.float64, device=rows.device)
        mean = rows.sum(0) / number.clamp(min=1)
        return cls(number, mean, (rows - mean).square().sum(0))

    def merged(self, other: Moments) -> Moments:
        """Those of both together (Chan, Golub & LeVeque 1983, equation 2.1)."""
        number = self.number + other.number
        share = other.number / number.clamp(min=1)
        apart = other.mean - self.mean
        return Moments(
            number, self.mean + apart * share, self.squares + other.squares + apart.square() * self.number * share
        )


@register("circuit", "normalised")
class NormalisedCircuit(Circuit):
    """Any circuit whose inputs are standardised by the mean and the standard deviation of all inputs seen in training.

    Both are part of its state dict; before anything was seen, inputs are handed on as they are. An input that has not
    varied is always 0. An agent that learns in a world tells what was seen, by :meth:`learn`: after each generation or
    rollout, so that all members of a population and all processes have the same. With the strategy ``ars`` it is
    version 2 of augmented random search (Mania, Guy & Recht 2018, algorithm 2).
    """

    backends = get_args(Backend)

    embedding_size: int | None = Field(default=None, init=False)
    circuit: Annotated[Any, Chosen("circuit")] = Field(
        default="feedforward", description="what takes the inputs that are standardised"
    )
    clip: float | None = Field(
        default=None, gt=0, description="standard deviations from the mean at which an input is cut off; null never"
    )

    def setup(self) -> None:
        """Build the circuit, and statistics of nothing yet.

        Raises:
            ValueError: an object is given whose sizes are others, or the circuit takes tokens or has tasks of its own.
        """
        given = {"backend": self.backend} if not isinstance(self.circuit, Circuit) else {}
        self.circuit = build(self.circuit, self.input_size, self.output_size, **given)
        sizes = [self.circuit.input_size, self.circuit.output_size]
        if sizes != [self.input_size, self.output_size]:
            raise ValueError(f"circuit: has sizes {sizes}; expected {[self.input_size, self.output_size]}")
        if self.circuit.embedding_size is not None:
            raise ValueError(
                f"circuit.embedding_size: got {self.circuit.embedding_size}; tokens have no mean, allowed is null"
            )
        if isinstance(self.circuit, RoutedCircuit):  # agents tell it of tasks, which nothing around it hands on
            raise ValueError(
                "circuit.type: got routed within normalised; agents tell it of tasks themselves, allowed is any other"
            )
        if is_outside(type(self.circuit)):
            self.circuit.check()
        self.differentiable = self.circuit.differentiable
        self.trace_fields = self.circuit.trace_fields  # type: ignore[misc]
        self.count: Tensor
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(self.input_size))
        self.register_buffer("variance", torch.ones(self.input_size))

    def learn(self, seen: Moments) -> None:
        """Take in the statistics of inputs that were seen in training."""
        count = self.count.double()
        squares = self.variance.double() * (count - 1).clamp(min=0)
        known = Moments(count, self.mean.double(), squares).merged(seen)
        self.count.copy_(known.number)
        self.mean.copy_(known.mean)
        if known.number > 1:
            self.variance.copy_(known.squares / (known.number - 1))

    def _standardise(self, inputs: Tensor) -> Tensor:
        std = self.variance.sqrt()
        # By a product: a division would have to leave out what is 0.
        scale = torch.where(std > SMALLEST_STD, 1 / std, 0).to(inputs.dtype)
        given = (inputs - self.mean.to(inputs.dtype)) * scale
        return given if self.clip is None else given.clamp(-self.clip, self.clip)

    def reset_parameters(self) -> None:
        """Draw all weights anew, and forget what was seen."""
        self.circuit.reset_parameters()
        self.count.zero_()
        self.mean.zero_()
        self.variance.fill_(1)

    def initial_state(self, batch_size: int, **sizes: int) -> Any:
        """That of the circuit; sizes of its memory as it takes them.

        Raises:
            ValueError: a size that it does not have, such as that of a memory where there is none.
        """
        check_taken(self.circuit.initial_state, sizes)
        return self.circuit.initial_state(batch_size, **sizes)

    def initial_state_like(self, state: Any) -> Any:
        """That of the circuit."""
        return self.circuit.initial_state_like(state)

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One step; see :meth:`Circuit.step`."""
        x = self.check_inputs(x, "[B, {}]")
        with self.precision(x):
            outputs, state = self.circuit.step(self._standardise(x), state)
            return outputs.to(x.dtype), state

    @property
    def _plain(self) -> bool:
        """Whether nothing waits for calls of the circuit."""
        return unchanged(self.circuit, Circuit)

    def run(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        """A whole sequence; see :meth:`Circuit.run`."""
        given = self._standardise(inputs)
        outputs, state = self.circuit.run(given, state) if self._plain else self.circuit.called(given, state)
        return outputs, state

    def _run(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        given = self._standardise(inputs)
        outputs, state = self.circuit._run(given, state) if self._plain else self.circuit.called(given, state)
        return outputs, state

    def run_traced(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any, dict[str, Tensor]]:
        """See :meth:`Circuit.run_traced`."""
        given, circuit = self._standardise(inputs), self.circuit
        outputs, state, seen = (
            circuit.run_traced(given, state) if self._plain else circuit.called(given, state, trace=True)
        )
        return outputs, state, seen

    def run_population(self, parameters: Mapping[str, Stack], inputs: Tensor) -> Tensor:
        """See :meth:`Circuit.run_population`."""
        if not unchanged(self, NormalisedCircuit, "run", "_run", "_standardise"):
            return super().run_population(parameters, inputs)
        own = {name.removeprefix("circuit."): stack for name, stack in parameters.items()}
        outputs: Tensor = self.circuit.run_population(own, self._standardise(self.shared_inputs(inputs)))
        return outputs
