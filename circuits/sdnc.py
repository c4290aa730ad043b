"""The sparse Differentiable Neural Computer (Rae et al. 2016, arXiv 1610.09027): SAM with temporal links."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..core.accessors import SparseAccessor
from ..core.circuit import check_sizes
from ..core.controllers import Controller, ControllerOptions
from .memory_augmented import MemoryAugmentedCircuit, build_controller
from .sam import SAMOptions


class SDNCOptions(SAMOptions):
    """Options of :class:`SDNC`."""

    type: Literal["sdnc"] = "sdnc"  # type: ignore[assignment]
    num_writes: Literal[1] = 1
    links_per_slot: int = Field(8, ge=1)
    """L, temporal links that each slot keeps to slots before it, and to slots after it."""


class SDNC(MemoryAugmentedCircuit):
    """Sparse DNC: reads and writes as SAM does, and also reads what was written before or after what it read last."""

    Options = SDNCOptions

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
        links_per_slot: int = 8,
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
            num_writes: 1; temporal links follow one write head.
            slots_per_read: K, slots that a read head reads; all of them where the memory has fewer.
            links_per_slot: L, temporal links that each slot keeps to slots before it, and to slots after it; all of
                them where the memory has fewer slots.
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
        check_sizes(links_per_slot=links_per_slot)
        accessor = SparseAccessor(
            built.hidden_size,
            memory_size,
            word_size,
            num_reads,
            num_writes,
            slots_per_read=slots_per_read,
            links_per_slot=links_per_slot,
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
