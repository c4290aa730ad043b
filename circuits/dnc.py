"""The Differentiable Neural Computer (Graves et al. 2016, Nature 538) and its improvements (arXiv 1904.10278)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from ..core.accessors import DynamicAccessor
from ..core.addressing import allocation_weights
from ..core.circuit import CircuitState, Trace
from ..core.controllers import AnyControllerOptions, Controller, ControllerOptions, LSTMOptions
from .memory_augmented import MemoryAugmentedCircuit, MemoryAugmentedOptions, build_controller


class DNCOptions(MemoryAugmentedOptions):
    """Options of :class:`DNC`."""

    type: Literal["dnc"] = "dnc"
    controller: AnyControllerOptions = LSTMOptions(hidden_size=256)
    memory_size: int = Field(256, ge=1)
    """N, number of slots."""
    word_size: int = Field(64, ge=1)
    """W, length of a slot."""
    num_reads: int = Field(4, ge=1)
    squash: Literal["none", "tanh"] = "none"
    """Whether tanh bounds keys and write vectors."""
    memory_wipe: bool = False
    """A freed slot is emptied before writing (improved DNC)."""
    link_sharpening: bool = False
    """Forward and backward weightings are raised to a learned power (improved DNC)."""
    usage_gradient: bool = False
    """Let the gradient flow from the usage into the last write weights."""


class DNC(MemoryAugmentedCircuit):
    """Differentiable Neural Computer: a controller with heads that allocate, free, look up and follow links."""

    Options = DNCOptions

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        controller: str | ControllerOptions | Controller = "lstm",
        hidden_size: int = 256,
        num_layers: int = 1,
        memory_size: int = 256,
        word_size: int = 64,
        num_reads: int = 4,
        num_writes: int = 1,
        squash: Literal["none", "tanh"] = "none",
        masked_content: bool = False,
        memory_wipe: bool = False,
        link_sharpening: bool = False,
        usage_gradient: bool = False,
        clip: float | None = 20.0,
        checkpoint_every: int | None = None,
        batch_first: bool = False,
        backend: str = "auto",
    ) -> None:
        """
        Args:
            input_size: I, channels of each input step.
            output_size: O, channels of each output step.
            controller: ``lstm``, ``gru``, ``feedforward``, ``neat``, a controller's options, or a controller that
                takes ``input_size + num_reads * word_size`` channels (with the latter two, ``hidden_size`` and
                ``num_layers`` are its own).
            hidden_size: size of the controller's layers.
            num_layers: number of the controller's layers.
            memory_size: N, number of slots.
            word_size: W, length of a slot.
            num_reads: R, number of read heads.
            num_writes: H, number of write heads.
            squash: ``tanh`` bounds keys and write vectors; ``none`` as in the paper.
            masked_content: lookups weigh the elements of a word (improved DNC).
            memory_wipe: a freed slot is emptied before writing (improved DNC).
            link_sharpening: forward and backward weightings are raised to a learned power (improved DNC).
            usage_gradient: let the gradient flow from the usage into the last write weights.
            clip: hidden state, cell state and outputs are kept in [-clip, clip]; None leaves them.
            checkpoint_every: steps of time per chunk: training keeps the state between chunks and runs each chunk again
                in the backward pass, for less memory; None keeps every step.
            batch_first: sequences are ``[B, T, …]`` rather than ``[T, B, …]``.
            backend: what runs sequences; ``auto`` takes the fastest that can. Only ``eager`` has second
                derivatives (without ``checkpoint_every``).

        Raises:
            ValueError: an argument that is not allowed; names it, what was given and what is allowed.
        """
        built = build_controller(controller, input_size, num_reads, word_size, hidden_size, num_layers, clip)
        accessor = DynamicAccessor(
            built.hidden_size,
            memory_size,
            word_size,
            num_reads,
            num_writes,
            squash=squash,
            masked_content=masked_content,
            memory_wipe=memory_wipe,
            link_sharpening=link_sharpening,
            usage_gradient=usage_gradient,
        )
        super().__init__(
            input_size,
            output_size,
            built,
            accessor,
            clip=clip,
            checkpoint_every=checkpoint_every,
            batch_first=batch_first,
            backend=backend,
        )

    def run_traced(self, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState, Trace]:
        """Like :meth:`run`, step by step, and records what the heads did and where they would have allocated."""
        outputs, state, trace = super().run_traced(inputs, state)
        assert trace.usage is not None and trace.allocation_gates is not None and trace.write_gates is not None
        # A pure function of what is recorded, so all steps at once.
        gates = trace.allocation_gates * trace.write_gates
        allocation = allocation_weights(trace.usage.flatten(0, 1), gates.flatten(0, 1))
        return outputs, state, trace._replace(allocation_weights=allocation.unflatten(0, trace.usage.shape[:2]))
