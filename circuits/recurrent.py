"""Circuits without memory that carry a state: a controller alone, such as an LSTM, with an output layer."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from ..core.clipping import clipped
from ..core.component import build, options_of, validated
from ..core.contracts import check_whole, is_outside
from ..core.controllers import AnyController
from ..core.controllers.base import Controller, LayeredOptions
from ..core.kernels import fused
from ..core.kernels.formulas import stepwise
from ..core.lengths import picked
from ..core.options import check_sizes
from ..core.registry import lookup, register
from ..core.state import in_types_of
from ..core.tied_embedding import TiedEmbedding


@register("circuit", "recurrent")
class RecurrentCircuit(TiedEmbedding):
    """Any controller with an output layer: controller(x_t) -> h_t; y_t = Linear(h_t). Its state is the controller's.

    Under ``torch.autocast`` the matrix products take the lower precision; outputs and states keep the circuit's type.
    """

    controller: AnyController = Field(default="lstm", description="what sees the input and carries the state")
    clip: float | None = Field(
        default=20.0,
        gt=0,
        description="hidden state, cell state and outputs are kept in [-clip, clip]; null leaves them",
    )

    def setup(self) -> None:
        """Build the controller and the output layer."""
        chosen = self.controller
        if isinstance(chosen, str):  # a circuit with a name has that controller's options itself
            model = options_of(lookup("controller", chosen))
            chosen = validated(model, {name: getattr(self, name) for name in model.model_fields if name != "type"})
        self.controller = build(chosen, self.vector_size, clip=self.clip)
        if self.controller.input_size != self.vector_size:
            taken = "embedding_size" if self.embedding_size else "input_size"
            raise ValueError(
                f"controller: its input_size is {self.controller.input_size}; expected {self.vector_size}, the "
                f"circuit's {taken}"
            )
        check_whole(type(self.controller), "hidden_size", getattr(self.controller, "hidden_size", None))
        if is_outside(type(self.controller)):
            self.controller.check()
        self.output = self.output_layer(self.controller.hidden_size)
        self.differentiable = self.controller.differentiable
        self.trace_fields = self.controller.trace_fields  # type: ignore[misc]  # what its controller shows

    def initial_state(self, batch_size: int) -> Any:
        """The controller's.

        Raises:
            ValueError: a size below 1, or none that is whole.
        """
        check_sizes(batch_size=batch_size)
        return self.controller.initial_state(batch_size)

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One step; see :meth:`Circuit.step`."""
        x = self.check_inputs(x, "[B, {}]")
        state = self.check_state(state, x)
        with self.precision(x):
            hidden, after = self.controller(x, state)
            return self._answer(hidden).to(x.dtype), in_types_of(after, state, x.device)

    def _run(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        hidden, state = self._hiddens(inputs, state)
        return self._answer(hidden), state

    def _hiddens(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        if self.backend == "auto" and fused.unavailable(self.controller, inputs, state) is None:
            return fused.run(self.controller, inputs, state)
        if stepwise(self.controller, Controller):
            return Controller.run(self.controller, inputs, state)
        return self.controller.run(inputs, state)

    def run_at(self, inputs: Tensor, state: Any, at: Tensor) -> tuple[Tensor, Any]:
        """See :meth:`Circuit.run_at`: the output layer sees these steps alone, where no graph of all is recorded."""
        if inputs.is_cuda or torch.compiler.is_compiling():
            return super().run_at(inputs, state, at)
        hidden, state = self._hiddens(inputs, state)
        return self._answer(picked(hidden, at)), state

    def run_traced(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any, dict[str, Tensor]]:
        """Like :meth:`run`, step by step, and records what the controller shows of itself."""
        if not self.trace_fields:
            return super().run_traced(inputs, state)
        hiddens, steps = [], []
        for x in inputs.unbind(0):
            before = state
            hidden, state = self.controller(x, before)
            hiddens.append(hidden)
            steps.append(self.controller.observed(x, before, state))
        recorded = {name: torch.stack([step[name] for step in steps]) for name in self.trace_fields}
        return self._answer(torch.stack(hiddens)), state, recorded

    def _answer(self, hidden: Tensor) -> Tensor:
        return clipped(self.compared(self.output(hidden)), self.clip)


@register("circuit", "lstm")
class LSTM(LayeredOptions, RecurrentCircuit):
    """Long short-term memory with an output layer."""

    controller: Any = Field(default="lstm", init=False)


@register("circuit", "gru")
class GRU(LayeredOptions, RecurrentCircuit):
    """Gated recurrent units with an output layer."""

    controller: Any = Field(default="gru", init=False)
