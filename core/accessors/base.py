"""The contract of an accessor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from ..circuit import check_sizes
from ..specification import specification


class Accessor(nn.Module, ABC):
    """A memory with its heads: one step maps the controller's output and a state to the words read and a new state."""

    kind: ClassVar[str] = ""
    """By which kernels know what it is; none for what they do not know."""

    def __init__(self, hidden_size: int, memory_size: int, word_size: int, num_reads: int, num_writes: int) -> None:
        """
        Args:
            hidden_size: size of the controller's output.
            memory_size: N, number of slots.
            word_size: W, length of a slot.
            num_reads: R, number of read heads.
            num_writes: H, number of write heads.

        Raises:
            ValueError: a size below 1.
        """
        super().__init__()
        check_sizes(
            hidden_size=hidden_size,
            memory_size=memory_size,
            word_size=word_size,
            num_reads=num_reads,
            num_writes=num_writes,
        )
        self.hidden_size = int(hidden_size)
        self.memory_size = int(memory_size)
        self.word_size = int(word_size)
        self.num_reads = int(num_reads)
        self.num_writes = int(num_writes)

    @abstractmethod
    def initial_state(self, batch_size: int, memory_size: int | None = None) -> Any:
        """State before the first step; another number of slots than was trained with is allowed where it can be."""

    @abstractmethod
    def forward(self, hidden: Tensor, state: Any) -> tuple[Tensor, Any, Any]:
        """One step of access: write, then read from the new memory.

        Args:
            hidden: the controller's output, ``[B, hidden_size]``.
            state: from :meth:`initial_state` or the last step.

        Returns:
            Words read ``[B, R, W]``, the next state, and the head parameters of this step.
        """

    def specification(self) -> dict[str, Any]:
        """Every option that it was built with, by name: what kernels must know of it."""
        return specification(self, Accessor)

    def begin(self, state: Any, steps: int) -> Any:
        """Open a state for so many calls of :meth:`forward`, each given what the last returned; here, the state itself.

        An accessor may return something private that :meth:`forward` changes in place, as long as the state stays as
        it was. Where torch records or transforms the steps, which nothing may then change in place, this is not called.
        """
        return state

    def end(self, state: Any) -> Any:
        """The state after those calls, from what the last returned."""
        return state

    def observed(self, state: Any) -> dict[str, Tensor]:
        """What a :class:`~papertape.core.circuit.Trace` shows of a state, by name; here, all of it."""
        seen: dict[str, Tensor] = state._asdict()
        return seen
