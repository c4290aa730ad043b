"""A controller and an accessor wired into one recurrent module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.accessors import Accessor
from ..core.circuit import Circuit, CircuitState, Trace, check_choice, check_clip, check_sizes, example
from ..core.controllers import CONTROLLERS, AnyControllerOptions, Controller, ControllerOptions, LSTMOptions
from ..core.kernels import checkpointing, dispatch
from ..core.kernels.transforms import one_call
from ..core.options import Options
from ..core.stacked import Stack
from ..core.tied import TiedLinear


class MemoryAugmentedOptions(Options):
    """Options that every circuit with a controller, heads and memory has."""

    controller: AnyControllerOptions = LSTMOptions()
    memory_size: int = Field(128, ge=1)
    """N, number of slots."""
    word_size: int = Field(20, ge=1)
    """W, length of a slot."""
    num_reads: int = Field(1, ge=1)
    num_writes: int = Field(1, ge=1)
    masked_content: bool = False
    """Lookups weigh the elements of a word (improved DNC)."""
    clip: float | None = Field(20.0, gt=0)
    """Hidden state, cell state and outputs are kept in [-clip, clip]; null leaves them."""
    checkpoint_every: int | None = Field(None, ge=1)
    """Steps of time per chunk: training keeps the state between chunks and runs each again; null keeps all steps."""


def build_controller(
    controller: str | ControllerOptions | Controller,
    input_size: int,
    num_reads: int,
    word_size: int,
    hidden_size: int,
    num_layers: int,
    clip: float | None,
) -> Controller:
    """A controller by its name or its options, or the given one if it fits the input and all words read.

    Raises:
        ValueError: a size below 1, an unknown name, or a controller with another input size than
            ``input_size + num_reads * word_size``.
    """
    check_sizes(input_size=input_size, num_reads=num_reads, word_size=word_size)
    input_size += num_reads * word_size
    if isinstance(controller, Controller):
        if controller.input_size != input_size:
            raise ValueError(
                f"controller: its input_size is {controller.input_size}; expected {input_size}, "
                "the circuit's input_size + num_reads * word_size"
            )
        return controller
    if isinstance(controller, ControllerOptions):
        values = {name: getattr(controller, name) for name in type(controller).model_fields if name != "type"}
        return CONTROLLERS[controller.type](input_size, clip=clip, **values)
    check_choice("controller", controller, tuple(CONTROLLERS))
    return CONTROLLERS[controller](input_size, hidden_size, num_layers, clip=clip)


class MemoryAugmentedCircuit(Circuit):
    """controller(x_t, r_{t-1}) -> h_t; heads(h_t) write, then read r_t; y_t = Linear([h_t, r_t]).

    Under ``torch.autocast`` the matrix products of the controller and of the output layer take the lower precision.
    The interface vector, addressing, the memory and every state stay in the circuit's own type, and so do the outputs:
    weightings that are carried over many steps would not survive 8 bits.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        controller: Controller,
        accessor: Accessor,
        *,
        clip: float | None = 20.0,
        checkpoint_every: int | None = None,
        batch_first: bool = False,
        backend: str = "auto",
    ) -> None:
        """
        Args:
            input_size: I, channels of each input step.
            output_size: O, channels of each output step.
            controller: takes ``input_size + R * W`` channels.
            accessor: takes the controller's hidden vector.
            clip: hidden vector and outputs are kept in [-clip, clip]; None leaves them.
            checkpoint_every: steps of time per chunk: training keeps the state between chunks and runs each chunk again
                in the backward pass, for less memory; None keeps every step.
            batch_first: sequences are ``[B, T, …]``.
            backend: what runs sequences; ``auto`` takes the fastest that can.

        Raises:
            ValueError: a size or number of steps below 1, a clip that is not positive, or an unknown backend.
        """
        super().__init__(input_size, output_size, batch_first=batch_first)
        check_clip(clip)
        if checkpoint_every is not None:
            check_sizes(checkpoint_every=checkpoint_every)
        dispatch.check_backend(backend)
        self.controller = controller
        self.accessor = accessor
        features = controller.hidden_size + accessor.num_reads * accessor.word_size
        self.output: nn.Linear | TiedLinear = nn.Linear(features, output_size)
        self.clip = clip
        self.checkpoint_every = checkpoint_every
        self.backend = backend
        self.chosen_backend: str | None = None

    def initial_state(self, batch_size: int, memory_size: int | None = None) -> CircuitState:
        """State before the first step; the initial reads are zero.

        Args:
            batch_size: B.
            memory_size: number of slots, where it is to differ from the number at construction.

        Raises:
            ValueError: a size below 1, or another number of slots than initial contents were made for.
        """
        accessor = self.accessor
        check_sizes(batch_size=batch_size, memory_size=accessor.memory_size if memory_size is None else memory_size)
        return CircuitState(
            self.controller.initial_state(batch_size),
            accessor.initial_state(batch_size, memory_size),
            example(self.output).new_zeros(batch_size, accessor.num_reads, accessor.word_size),
        )

    def transition(self, x: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState, Any]:
        """One step without the output layer.

        Args:
            x: ``[B, I]``.
            state: from :meth:`initial_state` or the last step.

        Returns:
            Features ``[B, F]`` (hidden vector and words read), the next state, and the head parameters.
        """
        hidden, controller_state = self.controller(torch.cat([x, state.reads.flatten(1)], dim=-1), state.controller)
        device = hidden.device.type
        if device != "meta" and torch.is_autocast_enabled(device):
            hidden = hidden.to(state.reads.dtype)
            with torch.autocast(device, enabled=False):
                reads, accessor_state, heads = self.accessor(hidden, state.accessor)
        else:
            reads, accessor_state, heads = self.accessor(hidden, state.accessor)
        features = torch.cat([hidden, reads.flatten(1)], dim=-1)
        return features, CircuitState(controller_state, accessor_state, reads), heads

    @property
    def changed_transition(self) -> bool:
        """Whether a subclass or a user replaced :meth:`transition`, so that no kernel knows what a step is."""
        return type(self).transition is not _TRANSITION or "transition" in vars(self)

    def answer(self, features: Tensor) -> Tensor:
        """Logits from features, ``[…, F]`` -> ``[…, O]``."""
        outputs = self.output(features).to(features.dtype)
        return outputs if self.clip is None else torch.clamp(outputs, -self.clip, self.clip)

    def initial_state_like(self, state: Any) -> CircuitState:
        """An initial state of one sequence, with as many slots as this one; see :meth:`Circuit.initial_state_like`."""
        memory = getattr(getattr(state, "accessor", None), "memory", None)
        return self.initial_state(1, memory.shape[1] if isinstance(memory, Tensor) and memory.dim() == 3 else None)

    def step(self, x: Tensor, state: CircuitState | None = None) -> tuple[Tensor, CircuitState]:
        """One step; see :meth:`Circuit.step`."""
        x = self.check_inputs(x, "[B, {}]")
        state = self.check_state(state, x)
        with self.precision(x):
            features, state, _ = self.transition(x, state)
            return self.answer(features), state

    def run(self, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState]:
        """A whole sequence through the chosen backend; see :meth:`Circuit.run`."""
        if self.checkpoint_every is None:
            features, state = one_call(self.backend, dispatch.run, self, inputs, state)
        else:
            features, state = one_call(self.backend, checkpointing.run, self, inputs, state, self.checkpoint_every)
        return self.answer(features), state

    def run_population(self, parameters: Mapping[str, Stack], inputs: Tensor) -> Tensor:
        """The answers of many members to the same inputs, from their initial states, through the chosen backend.

        Args:
            parameters: a stack of P members for each named parameter.
            inputs: ``[T, B, I]``

        Returns:
            ``[T, P, B, O]``
        """
        return dispatch.run_population(self, parameters, inputs)

    def run_traced(self, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState, Trace]:
        """Like :meth:`run`, step by step, and records what the heads did."""
        features, state, recorded = one_call(self.backend, self._run_traced, inputs, state)
        return self.answer(features), state, recorded

    def _run_traced(self, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState, Trace]:
        features, steps = [], []
        for x in inputs.unbind(0):
            feature, state, heads = self.transition(x, state)
            features.append(feature)
            seen = {**heads._asdict(), **self.accessor.observed(state.accessor), "reads": state.reads}
            steps.append(Trace(*(seen.get(name) for name in Trace._fields)))
        recorded = Trace(*(None if parts[0] is None else torch.stack(parts) for parts in zip(*steps, strict=True)))
        return torch.stack(features), state, recorded


_TRANSITION = MemoryAugmentedCircuit.transition
"""As it was written, whatever is put in its place."""
