"""The Neural Turing Machine (Graves, Wayne & Danihelka 2014, arXiv 1410.5401)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..core.accessors import StaticAccessor
from ..core.controllers import Controller, ControllerOptions
from ..core.heads import HeadInit
from ..core.memory import MemoryInit, WeightInit
from .memory_augmented import MemoryAugmentedCircuit, MemoryAugmentedOptions, build_controller


class NTMOptions(MemoryAugmentedOptions):
    """Options of :class:`NTM`."""

    kept = MemoryAugmentedOptions.kept | {"head_init"}

    type: Literal["ntm"] = "ntm"
    shift_range: int = Field(1, ge=0)
    """Largest shift in slots, to either side."""
    memory_init: MemoryInit = "constant"
    weight_init: WeightInit = "first"
    head_init: HeadInit = "parked"
    """How the heads start: parked keeps each where it is, sharply; uniform as torch.nn.Linear."""


class NTM(MemoryAugmentedCircuit):
    """Neural Turing Machine: a controller with heads that address by content and by location."""

    Options = NTMOptions

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        controller: str | ControllerOptions | Controller = "lstm",
        hidden_size: int = 100,
        num_layers: int = 1,
        memory_size: int = 128,
        word_size: int = 20,
        num_reads: int = 1,
        num_writes: int = 1,
        shift_range: int = 1,
        memory_init: MemoryInit = "constant",
        weight_init: WeightInit = "first",
        head_init: HeadInit = "parked",
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
            controller: ``lstm``, ``gru``, ``feedforward``, ``neat``, a controller's options, or a controller that
                takes ``input_size + num_reads * word_size`` channels (with the latter two, ``hidden_size`` and
                ``num_layers`` are its own).
            hidden_size: size of the controller's layers.
            num_layers: number of the controller's layers.
            memory_size: N, number of slots.
            word_size: W, length of a slot.
            num_reads: R, number of read heads.
            num_writes: H, number of write heads.
            shift_range: largest shift in slots, to either side.
            memory_init: contents before the first step: ``constant``, ``learned`` or ``truncated_normal``.
            weight_init: weightings before the first step: ``first``, ``uniform`` or ``learned``.
            head_init: how the heads start: ``parked`` keeps each where it is, sharply; ``uniform`` as torch.nn.Linear.
            masked_content: lookups weigh the elements of a word (improved DNC).
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
        accessor = StaticAccessor(
            built.hidden_size,
            memory_size,
            word_size,
            num_reads,
            num_writes,
            shift_range=shift_range,
            memory_init=memory_init,
            weight_init=weight_init,
            head_init=head_init,
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
