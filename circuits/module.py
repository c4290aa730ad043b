"""Any module as a circuit."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.circuit import Circuit
from ..core.state import example


class ModuleCircuit(Circuit):
    """Any module as a circuit: ``module(inputs)`` gives outputs, or outputs and a state.

    Inputs are ``[T, B, I]``, outputs ``[T, B, O]``, time first; tokens come as vectors, one-hot or embedded. A state is
    what the module makes of it; it is handed back with the inputs that come next, ``module(inputs, state)``.
    """

    backends = ("auto", "eager")

    input_size: int | None = Field(  # type: ignore[assignment]
        default=None, kw_only=False, ge=1, description="I; None takes whatever the module takes"
    )
    output_size: int | None = Field(  # type: ignore[assignment]
        default=None, kw_only=False, ge=1, description="O; None takes whatever the module gives"
    )
    module: nn.Module = Field(exclude=True, description="what answers")

    def setup(self) -> None:
        """Try the module out, where it is known what goes in.

        Raises:
            ValueError: it fails, its answers have another shape than ``[T, B, O]``, or how many tokens to embed is
                unknown.
        """
        if self.input_size is None:
            if self.embedding_size is not None:
                raise ValueError(f"embedding_size: got {self.embedding_size}; needs input_size, the number of tokens")
            return
        was_training = self.module.training
        self.module.eval()
        own = next(self.module.parameters(), torch.empty(0))
        given = f"{type(self.module).__name__} answers inputs [2, 3, {self.vector_size}] by"
        try:
            with torch.no_grad():
                answered, _ = self.run(own.new_zeros(2, 3, self.vector_size), ())
        except Exception as error:
            raise ValueError(f"circuit: {given} an error: {type(error).__name__}: {error}") from error
        finally:
            self.module.train(was_training)
        expected = [2, 3, self.output_size or "O"]
        if not isinstance(answered, Tensor) or answered.dim() != 3 or list(answered.shape[:2]) != [2, 3]:
            fits = False
        else:
            self.output_size = self.output_size or answered.shape[2]
            fits = answered.shape[2] == self.output_size
        if not fits:
            found = f"shape {list(answered.shape)}" if isinstance(answered, Tensor) else f"a {type(answered).__name__}"
            raise ValueError(f"circuit: {given} {found}; expected shape {expected}, time first")

    def shared_inputs(self, inputs: Tensor) -> Tensor:
        """See :meth:`Circuit.shared_inputs`; where it is not known what goes in, all are numbers."""
        return super().shared_inputs(inputs) if self.input_size else inputs.to(example(self).dtype)

    def initial_state(self, batch_size: int) -> Any:
        """Nothing: the module begins by itself."""
        return ()

    def check_state(self, state: Any, inputs: Tensor) -> Any:
        """The state as it is: it is the module's."""
        return () if state is None else state

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One step; see :meth:`Circuit.step`."""
        with self.precision(x):
            outputs, state = self.run(x.unsqueeze(0), self.check_state(state, x))
            return outputs[0].to(example(self).dtype), state

    def run(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        """A whole sequence; see :meth:`Circuit.run`."""
        answered = self.module(inputs) if isinstance(state, tuple) and not state else self.module(inputs, state)
        return answered if isinstance(answered, tuple) else (answered, ())

    _run = run
