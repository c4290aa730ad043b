"""The Tape-RNN (Delétang et al. 2023, "Neural Networks and the Chomsky Hierarchy", arXiv 2207.02098)."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor

from ..core.accessors.soft_tape import SoftTapeOptions
from ..core.controllers import AnyController
from ..core.registry import register
from ..core.state import CircuitState
from .memory import MemoryCircuit


@register("circuit", "tape-rnn")
class TapeRNN(SoftTapeOptions, MemoryCircuit):
    """A recurrent network that writes to tapes and moves them, by a cell or by the length of the input.

    The paper's network is told the length of the input. Here it is counted: a jump goes by the steps so far, and no
    more of them count from the first step on whose ``end_channel`` says that the input is over.
    """

    controller: AnyController = "rnn"
    accessor: Any = Field(default="soft-tape", init=False)
    end_channel: int | None = Field(
        default=None,
        ge=0,
        description="channel of the input that is above 0.5 once the input is over; null counts all steps",
    )

    def setup(self) -> None:
        """Build the circuit.

        Raises:
            ValueError: there is no such channel.
        """
        if self.end_channel is not None and self.end_channel >= self.input_size:
            raise ValueError(
                f"end_channel: got {self.end_channel}; allowed is less than input_size ({self.input_size})"
            )
        super().setup()

    def transition(self, x: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState, Any]:
        """One step without the output layer; see :meth:`MemoryCircuit.transition`."""
        if self.end_channel is not None:
            ended = x[:, self.end_channel] > 0.5
            state = state._replace(accessor=self.accessor.end_input(state.accessor, ended))
        return super().transition(x, state)
