"""The soft tape: cells that move under a head by degrees (the Tape-RNN of Delétang et al. 2023, arXiv 2207.02098).

Unlike the hard tape (:mod:`.tape`) it has a gradient: its next contents are a mixture of those after each move. B
batch, H tapes, N cells, W word size.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from ..component import Component
from ..interface import Interface
from ..registry import register
from ..state import example, register_state
from ..trace import TraceField
from .base import Accessor

MOVES = ("left", "stay", "right", "jump left", "jump right")


class SoftTapeOptions(Component):
    """Options of :class:`SoftTapeAccessor`, which :class:`papertape.TapeRNN` has as well."""

    num_tapes: int = Field(default=1, ge=1, description="H, tapes, each with a head of its own")
    memory_size: int = Field(
        default=128, ge=1, description="N, cells of a tape, joined at its ends; another number may be chosen for a test"
    )
    word_size: int = Field(default=20, ge=1, description="W, length of a cell")
    write_layers: list[Annotated[int, Field(ge=1)]] = Field(
        default=[],
        strict=False,
        description="hidden layers, of ReLU, that make the word to write, [64, 64] in the paper; without any words are "
        "linear in the hidden vector, which runs natively",
    )
    gated_write: bool = Field(
        default=False,
        description="a gate says to which degree the cell under the head is replaced; in the paper it always is, so "
        "that what is read must be written again",
    )


@register_state
class SoftTapeState(NamedTuple):
    """The tapes, and how far a jump goes."""

    memory: Tensor
    """The cell under the head first, ``[B, H, N, W]``"""
    input_length: Tensor
    """Cells of a jump: steps of the input so far, ``[B]``"""
    input_ended: Tensor
    """Whether the input is over, so that further steps do not count, ``[B]``"""


class SoftTapeHeads(NamedTuple):
    """What the heads do at one step."""

    words: Tensor
    """What is written to the cell under each head, ``[B, H, W]``"""
    moves: Tensor
    """Shares of :data:`MOVES`, ``[B, H, 5]``"""
    write_gates: Tensor
    """To which degree the words replace what is there, ``[B, H]``; 1 without ``gated_write``"""


@register("accessor", "soft-tape")
class SoftTapeAccessor(SoftTapeOptions, Accessor):
    """Tapes with one head each, which writes, moves by degrees, and reads.

    Each step: the cell under the head is replaced by a new word, or moved towards it as far as a gate says; the next
    contents are a mixture of the tape moved by one cell to either side, by none, and by the length of the input to
    either side; the cell then under the head is read. The tape starts empty (zeros).

    The length of the input is that of the paper, known from the start, where ``initial_state`` is told of it. Else it
    is the steps so far, which :meth:`end_input` stops, as :class:`papertape.TapeRNN` does at the end of the input: from
    there on both are the same.
    """

    kind = "soft-tape"
    readers = ("interface.linear", "layers.0")

    trace_fields = {
        "moves": TraceField("H A", "weighting", "shares of the moves", MOVES),
        "memory": TraceField("H N W", "memory", "contents after the step, the cell under the head first"),
        "words": TraceField("H W", "words", "words written"),
        "write_gates": TraceField("H", "gate", "degree to which a word replaces what is under the head"),
        "input_length": TraceField("", "gate", "cells of a jump"),
    }

    @classmethod
    def read_shape(cls, options: Any) -> tuple[int, int]:
        """The cell under each head."""
        return options.num_tapes, options.word_size

    def setup(self) -> None:
        """Make the interface, which says where to move, and the layers that say what to write."""
        gates = {"write_gates": self.num_tapes} if self.gated_write else {}
        self.interface = Interface(self.hidden_size, {"moves": self.num_tapes * len(MOVES)} | gates)
        sizes = [self.hidden_size, *self.write_layers, self.num_tapes * self.word_size]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(sizes))

    def initial_state(
        self, batch_size: int, memory_size: int | None = None, input_length: int | None = None
    ) -> SoftTapeState:
        """Empty tapes of N = ``memory_size`` cells (default: as built); None counts the steps of the input."""
        cells, weight = self.memory_size if memory_size is None else memory_size, example(self.interface)
        filled = torch.zeros if input_length is None else torch.ones  # torch.jit.trace cannot save torch.full of a bool
        return SoftTapeState(
            weight.new_zeros(batch_size, self.num_tapes, cells, self.word_size),
            torch.full((batch_size,), input_length or 0, dtype=torch.int64, device=weight.device),
            filled(batch_size, dtype=torch.bool, device=weight.device),
        )

    def sizes_of(self, state: SoftTapeState) -> dict[str, int]:
        """The number of cells."""
        return {"memory_size": state.memory.shape[2]}

    def end_input(self, state: SoftTapeState, ended: Tensor) -> SoftTapeState:
        """The same state, in which the steps of some sequences count no longer.

        Args:
            state: before the first step that is not of the input.
            ended: of which sequences, ``[B]``.
        """
        return state._replace(input_ended=state.input_ended | ended)

    def jumps(self, state: SoftTapeState, ended: Tensor | None, steps: int) -> tuple[Tensor, SoftTapeState]:
        """How far a jump goes at each of many steps.

        Args:
            state: before the first step.
            ended: of which steps :meth:`end_input` would be told, ``[T, B]``; None: of none.
            steps: T.

        Returns:
            Cells ``[T, B]``, and the state after the last step but for the memory.
        """
        over = state.input_ended.expand(steps, -1)
        if ended is not None:
            over = over | (ended.cumsum(0) > 0)
        lengths = state.input_length + (~over).cumsum(0)
        # Copies: views would keep all steps.
        return lengths, state._replace(input_length=lengths[-1].clone(), input_ended=over[-1].clone())

    def heads(self, hidden: Tensor) -> SoftTapeHeads:
        """What to do, from the controller's output ``[B, hidden_size]``."""
        words = hidden
        for layer in self.layers[:-1]:
            words = torch.relu(layer(words))
        words = self.layers[-1](words).unflatten(-1, (self.num_tapes, -1))
        parts = self.interface.parts(self.interface(hidden))
        moves = torch.softmax(parts["moves"].unflatten(-1, (self.num_tapes, -1)), dim=-1)
        gates = torch.sigmoid(parts["write_gates"]) if self.gated_write else torch.ones_like(moves[..., 0])
        return SoftTapeHeads(words, moves, gates)

    def forward(self, hidden: Tensor, state: SoftTapeState) -> tuple[Tensor, SoftTapeState, SoftTapeHeads]:
        """One step of access; see :meth:`Accessor.forward`."""
        heads = self.heads(hidden)
        words = heads.words
        if self.gated_write:
            words = torch.lerp(state.memory[:, :, 0], words, heads.write_gates.unsqueeze(-1))
        memory = torch.cat([words.unsqueeze(2), state.memory[:, :, 1:]], dim=2)
        length = state.input_length + (~state.input_ended).to(state.input_length.dtype)
        cells = torch.arange(memory.shape[2], device=memory.device)
        far = [(cells + way * length.unsqueeze(1)) % len(cells) for way in (-1, 1)]
        moved = [memory.roll(1, 2), memory, memory.roll(-1, 2)]
        moved += [memory.gather(2, index[:, None, :, None].expand_as(memory)) for index in far]
        shares = heads.moves[..., None, None].unbind(2)
        memory = torch.stack([share * tape for share, tape in zip(shares, moved, strict=True)]).sum(0)
        # Copies, so that who changes a state changes neither what was read nor the state before.
        return memory[:, :, 0].clone(), SoftTapeState(memory, length, state.input_ended.clone()), heads
