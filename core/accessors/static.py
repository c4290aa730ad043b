"""The static accessor: NTM heads, which address by content and by location (Graves et al. 2014, section 3)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .. import addressing
from ..circuit import check_sizes, register_state
from ..heads import HeadInit, StaticHeads, StaticInterface
from ..memory import InitialMemory, InitialWeights, MemoryInit, WeightInit
from .base import Accessor


@register_state
class StaticState(NamedTuple):
    """Memory and weightings after a step."""

    memory: Tensor
    """``[B, N, W]``"""
    read_weights: Tensor
    """``[B, R, N]``"""
    write_weights: Tensor
    """``[B, H, N]``"""


def _weights(memory: Tensor, heads: StaticHeads, last: Tensor) -> Tensor:
    """Weightings ``[B, K, N]`` of some heads on a memory ``[B, N, W]``, from their last ones."""
    content = addressing.content_weights(memory, heads.keys, heads.strengths, heads.mask)
    return addressing.location_weights(content, last, heads.gate, heads.shift, heads.sharpness)


class StaticAccessor(Accessor):
    """NTM memory: every head finds its slot by content, by its last position and by a shift.

    Write heads look content up in the memory of the last step; read heads in the one just written, from which they
    read (NTM eqs. 2 and 5).
    """

    kind = "static"

    def __init__(
        self,
        hidden_size: int,
        memory_size: int,
        word_size: int,
        num_reads: int,
        num_writes: int,
        *,
        shift_range: int = 1,
        memory_init: MemoryInit = "constant",
        weight_init: WeightInit = "first",
        head_init: HeadInit = "parked",
        masked_content: bool = False,
    ) -> None:
        """
        Args:
            hidden_size, memory_size, word_size, num_reads, num_writes: see :class:`Accessor`.
            shift_range: largest shift in slots, to either side.
            memory_init: contents before the first step; see :class:`~papertape.core.memory.InitialMemory`.
            weight_init: weightings before the first step; see :class:`~papertape.core.memory.InitialWeights`.
            head_init: how the heads start; see :data:`~papertape.core.heads.HeadInit`.
            masked_content: lookups weigh the elements of a word (improved DNC).

        Raises:
            ValueError: a size below 1, a negative shift range or an unknown initialiser.
        """
        super().__init__(hidden_size, memory_size, word_size, num_reads, num_writes)
        check_sizes(at_least=0, shift_range=shift_range)
        self.shift_range = int(shift_range)
        self.memory_init = memory_init
        self.weight_init = weight_init
        self.head_init = head_init
        self.masked_content = masked_content
        self.interface = StaticInterface(
            hidden_size,
            word_size,
            num_reads,
            num_writes,
            shift_range,
            masked_content=masked_content,
            head_init=head_init,
        )
        self.initial_memory = InitialMemory(memory_init, memory_size, word_size)
        self.initial_weights = InitialWeights(weight_init, num_reads + num_writes, memory_size)

    def initial_state(self, batch_size: int, memory_size: int | None = None) -> StaticState:
        """State before the first step, for N = ``memory_size`` slots (default: as built)."""
        slots = self.memory_size if memory_size is None else memory_size
        # Laid out in memory as every later state is, so that a compiled step serves the first one too.
        read_weights, write_weights = self.initial_weights(batch_size, slots).split(
            [self.num_reads, self.num_writes], 1
        )
        memory = self.initial_memory(batch_size, slots).contiguous()
        return StaticState(memory, read_weights.contiguous(), write_weights.contiguous())

    def forward(self, hidden: Tensor, state: StaticState) -> tuple[Tensor, StaticState, StaticHeads]:
        """One step of access; see :meth:`Accessor.forward`."""
        heads = self.interface(hidden)
        write_weights = _weights(state.memory, heads.only(slice(self.num_reads, None)), state.write_weights)
        memory = addressing.write(state.memory, write_weights, heads.erase, heads.add)
        read_weights = _weights(memory, heads.only(slice(self.num_reads)), state.read_weights)
        return addressing.read(memory, read_weights), StaticState(memory, read_weights, write_weights), heads
