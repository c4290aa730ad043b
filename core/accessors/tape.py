"""The tape: one hard head that writes, jumps, moves by at most one cell and reads (Greve, Jacobsen & Risi 2016).

"Evolving Neural Turing Machines for Reward-based Learning" (GECCO 2016), section 3. B batch, N cells, W word size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..circuit import example, register_state
from ..heads import Interface
from .base import Accessor

JUMP_THRESHOLD = 0.5
"""The head jumps where its jump gate is above this."""

SHIFTS = 3
"""One cell back, none, one cell on."""


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


class TapeInterface(Interface):
    """Interface of the tape's head: a word, two gates, and three numbers of which the largest says where to move."""

    def __init__(self, hidden_size: int, word_size: int) -> None:
        """Sizes as in :class:`TapeAccessor`."""
        super().__init__(hidden_size, {"add": word_size, "interpolation": 1, "jump": 1, "shift": SHIFTS})

    def heads(self, vector: Tensor) -> TapeHeads:
        """Head parameters from an interface vector, ``[…, W + 5]``."""
        add, interpolation, jump, shift = vector.split(list(self.sizes.values()), dim=-1)
        return TapeHeads(
            add=torch.sigmoid(add).unsqueeze(-2),
            interpolation=torch.sigmoid(interpolation.squeeze(-1)),
            jump=torch.sigmoid(jump.squeeze(-1)),
            shift=shift.argmax(-1) - 1,
        )

    def forward(self, hidden: Tensor) -> TapeHeads:
        """Head parameters from the controller's output ``[B, hidden_size]``."""
        return self.heads(self.linear(hidden))


def nearest(memory: Tensor, word: Tensor) -> Tensor:
    """The cell whose contents are closest to a word (Euclidean), the first of equals.

    Args:
        memory: ``[B, N, W]``
        word: ``[B, W]``

    Returns:
        ``[B]``
    """
    return (memory - word.unsqueeze(1)).square().sum(-1).argmin(-1)


class TapeAccessor(Accessor):
    """A tape with one head that reads and writes one cell per step; where it is, is not blurred.

    Each step, in this order: write, ``M(h) = (1 - i) M(h) + i a``; jump to the cell most similar to ``a`` if the jump
    gate is open; move by -1, 0 or 1; read ``M(h)``. The tape is empty (zeros) before the first step and joined at its
    ends. As the head starts at cell 0 and can only jump to what it has written or to the first empty cell, T steps
    cannot tell a tape of 2T + 1 cells from a longer one.

    Only forward: the choices of cells have no gradient.
    """

    def __init__(self, hidden_size: int, memory_size: int, word_size: int) -> None:
        """
        Args:
            hidden_size, memory_size, word_size: see :class:`Accessor`.

        Raises:
            ValueError: a size below 1.
        """
        super().__init__(hidden_size, memory_size, word_size, 1, 1)
        self.interface = TapeInterface(hidden_size, word_size)

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

    def observed(self, state: TapeState) -> dict[str, Tensor]:
        """The state for a trace, weightings over all cells; see :meth:`Accessor.observed`."""
        cells, kind = state.memory.shape[1], state.memory.dtype
        written = functional.one_hot(state.written, cells).to(kind) * state.interpolation.unsqueeze(-1)
        return {
            "memory": state.memory,
            "read_weights": functional.one_hot(state.position, cells).to(kind).unsqueeze(1),
            "write_weights": written.unsqueeze(1),
        }

    def forward(self, hidden: Tensor, state: TapeState) -> tuple[Tensor, TapeState, TapeHeads]:
        """One step of access; see :meth:`Accessor.forward`."""
        heads = self.interface(hidden)
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
        position = self._jump(heads, state.position, memory, some=opened)
        position = (position + heads.shift) % memory.shape[1]
        reads = memory[tapes, position].unsqueeze(1)
        return reads, type(state)(memory, position, state.position, heads.interpolation)

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
