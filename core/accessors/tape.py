"""The tape: one hard head that writes, jumps, moves by at most one cell and reads (Greve, Jacobsen & Risi 2016).

"Evolving Neural Turing Machines for Reward-based Learning" (GECCO 2016), section 3. B batch, N cells, W word size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..component import Component
from ..interface import Interface
from ..registry import register
from ..state import example, register_state
from ..trace import TraceField
from .base import SlotAccessor

JUMP_THRESHOLD = 0.5
"""The head jumps where its jump gate is above this."""

SHIFTS = 3
"""One cell back, none, one cell on."""


class TapeOptions(Component):
    """Options of :class:`TapeAccessor`, which :class:`papertape.Tape` has as well."""

    memory_size: int = Field(
        default=128, ge=1, description="N, number of cells; another number may be chosen for a test"
    )
    word_size: int = Field(default=20, ge=1, description="W, length of a cell")


@register_state
class TapeState(NamedTuple):
    """The tape, and where its head is."""

    memory: Tensor
    """``[B, N, W]``"""
    position: Tensor
    """Cell under the head, the one that was read, ``[B]``"""
    written: Tensor
    """Cell that the last step wrote to, ``[B]``"""
    interpolation: Tensor
    """Share of that cell that the last step replaced, ``[B]``"""


class OpenTape(TapeState):
    """A private state, whose memory is changed in place."""

    __slots__ = ()


class TapeHeads(NamedTuple):
    """Parameters of the head at one step."""

    add: Tensor
    """The word to write, which a jump looks for as well, ``[B, 1, W]`` in (0, 1)"""
    interpolation: Tensor
    """Share of the cell that the word replaces, ``[B]`` in (0, 1)"""
    jump: Tensor
    """The head jumps above :data:`JUMP_THRESHOLD`, ``[B]`` in (0, 1)"""
    shift: Tensor
    """Cells that the head moves by, -1, 0 or 1, ``[B]``"""


def nearest(memory: Tensor, word: Tensor) -> Tensor:
    """The cell whose contents are closest to a word (Euclidean), the first of equals.

    Args:
        memory: ``[B, N, W]``
        word: ``[B, W]``

    Returns:
        ``[B]``
    """
    return (memory - word.unsqueeze(1)).square().sum(-1).argmin(-1)


@register("accessor", "tape")
class TapeAccessor(TapeOptions, SlotAccessor):
    """A tape with one head that reads and writes one cell per step; where it is, is not blurred.

    Each step, in this order: write, ``M(h) = (1 - i) M(h) + i a``; jump to the cell most similar to ``a`` if the jump
    gate is open; move by -1, 0 or 1; read ``M(h)``. The tape is empty (zeros) before the first step and joined at its
    ends. As the head starts at cell 0 and can only jump to what it has written or to the first empty cell, T steps
    cannot tell a tape of 2T + 1 cells from a longer one.

    Only forward: the choices of cells have no gradient.
    """

    differentiable = False
    trace_fields = {
        "read_weights": TraceField("R N", "weighting", "the cell that is read"),
        "write_weights": TraceField("H N", "weighting", "the cell that is written, by how much"),
        "memory": TraceField("N W", "memory", "contents after the step"),
        "add": TraceField("H W", "words", "words written"),
        "interpolation": TraceField("", "gate", "share of the cell that the word replaces"),
        "jump": TraceField("", "gate", "whether the head jumps"),
    }

    @classmethod
    def read_shape(cls, options: Any) -> tuple[int, int]:
        """One word."""
        return 1, options.word_size

    def setup(self) -> None:
        """Make the interface: a word, two gates, and three numbers of which the largest says where to move."""
        self.num_reads = self.num_writes = 1
        sizes = {"add": self.word_size, "interpolation": 1, "jump": 1, "shift": SHIFTS}
        self.interface = Interface(self.hidden_size, sizes)

    def heads(self, vector: Tensor) -> TapeHeads:
        """Head parameters from an interface vector, ``[…, W + 5]``."""
        add, interpolation, jump, shift = vector.split(list(self.interface.sizes.values()), dim=-1)
        return TapeHeads(
            add=torch.sigmoid(add).unsqueeze(-2),
            interpolation=torch.sigmoid(interpolation.squeeze(-1)),
            jump=torch.sigmoid(jump.squeeze(-1)),
            shift=shift.argmax(-1) - 1,
        )

    def initial_state(self, batch_size: int, memory_size: int | None = None) -> TapeState:
        """An empty tape of N = ``memory_size`` cells (default: as built), its head at cell 0."""
        weight = example(self.interface.linear)
        cells = self.memory_size if memory_size is None else memory_size
        start = torch.zeros(batch_size, dtype=torch.int64, device=weight.device)
        return TapeState(
            weight.new_zeros(batch_size, cells, self.word_size), start, start.clone(), weight.new_zeros(batch_size)
        )

    def begin(self, state: TapeState, steps: int) -> TapeState:
        """A private copy of the state; see :meth:`Accessor.begin`."""
        return OpenTape(state.memory.clone(), *state[1:])

    def end(self, state: TapeState) -> TapeState:
        """The state after the steps; see :meth:`Accessor.end`."""
        return TapeState(*state)

    def observed(self, heads: TapeHeads, state: TapeState) -> dict[str, Tensor]:
        """What a trace shows, weightings over all cells; see :meth:`Accessor.observed`."""
        cells, kind = state.memory.shape[1], state.memory.dtype
        written = functional.one_hot(state.written, cells).to(kind) * state.interpolation.unsqueeze(-1)
        return {
            "read_weights": functional.one_hot(state.position, cells).to(kind).unsqueeze(1),
            "write_weights": written.unsqueeze(1),
            "memory": state.memory,
            "add": heads.add,
            "interpolation": heads.interpolation,
            "jump": heads.jump,
        }

    def forward(self, hidden: Tensor, state: TapeState) -> tuple[Tensor, TapeState, TapeHeads]:
        """One step of access; see :meth:`Accessor.forward`."""
        heads = self.heads(self.interface(hidden))
        reads, state = self.access(heads, state)
        return reads, state, heads

    @torch.no_grad()
    def access(self, heads: TapeHeads, state: TapeState) -> tuple[Tensor, TapeState]:
        """Write, jump, move and read.

        Args:
            heads: what to do.
            state: stays as it is, unless it is an :class:`OpenTape`, whose memory is changed.

        Returns:
            The word read ``[B, 1, W]`` and the next state.
        """
        memory, opened = state.memory, isinstance(state, OpenTape)
        tapes = torch.arange(len(memory), device=memory.device)
        at = (tapes, state.position)
        words = torch.lerp(memory[at], heads.add.squeeze(1), heads.interpolation.unsqueeze(-1))
        memory = memory.index_put_(at, words) if opened else memory.index_put(at, words)
        position = self._jump(heads, state.position, memory, some=opened and memory.is_cpu)  # a GPU would have to wait
        position = (position + heads.shift) % memory.shape[1]
        reads = memory[tapes, position].unsqueeze(1)
        return reads, type(state)(memory, position, state.position.clone(), heads.interpolation)

    @staticmethod
    def _jump(heads: TapeHeads, position: Tensor, memory: Tensor, *, some: bool) -> Tensor:
        """Where the head is after the jump, ``[B]``; with ``some`` only the tapes on which it jumps are searched."""
        jumps = heads.jump > JUMP_THRESHOLD
        if not some:
            return torch.where(jumps, nearest(memory, heads.add.squeeze(1)), position)
        rows = jumps.nonzero().squeeze(1)
        if not len(rows):
            return position
        return position.index_put((rows,), nearest(memory[rows], heads.add[rows].squeeze(1)))
