"""Sparse Access Memory (Rae et al. 2016, arXiv 1610.09027): each step touches a little of a memory of any size."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..core.accessors import SparseAccessor
from ..core.controllers import Controller, ControllerOptions
from .memory_augmented import MemoryAugmentedCircuit, MemoryAugmentedOptions, build_controller


class SAMOptions(MemoryAugmentedOptions):
    """Options of :class:`SAM`."""

    type: Literal["sam"] = "sam"
    memory_size: int = Field(1024, ge=1)
    """N, number of slots; more of them cost memory, but hardly time."""
    word_size: int = Field(32, ge=1)
    """W, length of a slot."""
    num_reads: int = Field(4, ge=1)
    slots_per_read: int = Field(4, ge=1)
    """K, slots that a read head reads."""


class SAM(MemoryAugmentedCircuit):
    """Sparse Access Memory: reads the few slots most like a key, writes the least recently used or those read last."""

    Options = SAMOptions

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        controller: str | ControllerOptions | Controller = "lstm",
        hidden_size: int = 100,
        num_layers: int = 1,
        memory_size: int = 1024,
        word_size: int = 32,
        num_reads: int = 4,
        num_writes: int = 1,
        slots_per_read: int = 4,
        masked_content: bool = False,
        clip: float | None = 20.0,
        checkpoint_every: int | None = None,
        batch_first: bool = False,
        backend: str = "auto",
    ) -> None:
        """
        Args:
            input_size: I, channels of each input step.
            output_size: O, channels of each output step.
            controller: ``lstm``, ``gru``, ``feedforward``, a controller's options, or a controller that takes
                ``input_size + num_reads * word_size`` channels (with the latter two, ``hidden_size`` and
                ``num_layers`` are its own).
            hidden_size: size of the controller's layers.
            num_layers: number of the controller's layers.
            memory_size: N, number of slots.
            word_size: W, length of a slot.
            num_reads: R, number of read heads.
            num_writes: H, number of write heads.
            slots_per_read: K, slots that a read head reads; all of them where the memory has fewer.
            masked_content: lookups weigh the elements of a word (improved DNC); each lookup then costs twice as much.
            clip: hidden state, cell state and outputs are kept in [-clip, clip]; None leaves them.
            checkpoint_every: steps of time per chunk: training keeps the state between chunks and runs each chunk again
                in the backward pass, for less memory; None keeps every step.
            batch_first: sequences are ``[B, T, …]`` rather than ``[T, B, …]``.
            backend: what runs sequences; ``auto`` takes the fastest that can. None has second derivatives.

        Raises:
            ValueError: an argument that is not allowed; names it, what was given and what is allowed.
        """
        built = build_controller(controller, input_size, num_reads, word_size, hidden_size, num_layers, clip)
        accessor = SparseAccessor(
            built.hidden_size,
            memory_size,
            word_size,
            num_reads,
            num_writes,
            slots_per_read=slots_per_read,
            masked_content=masked_content,
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
