"""The Tape-RNN (Delétang et al. 2023, "Neural Networks and the Chomsky Hierarchy", arXiv 2207.02098)."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor

from ..core.accessors.soft_tape import SoftTapeOptions
from ..core.controllers import AnyController
from ..core.registry import register
from .memory import MemoryCircuit


@register("circuit", "tape-rnn")
class TapeRNN(SoftTapeOptions, MemoryCircuit):
    """A recurrent network that writes to tapes and moves them, by a cell or by the length of the input.

    The paper's network is told the length of the input. Here it is counted: a jump goes by the steps so far, and no
    more of them count from the first step on at which one of the ``end_channels`` says that the input is over.
    """

    controller: AnyController = "rnn"
    accessor: Any = Field(default="soft-tape", init=False)
    end_channels: int = Field(
        default=1,
        ge=0,
        description="how many of the last channels of the input, or of the last tokens, say that the input is over, as "
        "those of a step to think and of a step of the answer do; 0 counts all steps",
    )

    def setup(self) -> None:
        """Build the circuit.

        Raises:
            ValueError: there are not so many channels.
        """
        if self.end_channels > self.input_size:
            raise ValueError(
                f"end_channels: got {self.end_channels}; allowed is at most input_size ({self.input_size})"
            )
        super().setup()

    def ended(self, inputs: Tensor) -> Tensor | None:
        """See :meth:`MemoryCircuit.ended`."""
        if not self.end_channels:
            return None
        if self.embedding is None:
            return (inputs[..., -self.end_channels :] > 0.5).any(-1)
        # The vector of a token is its row, to the last bit.
        return (inputs.unsqueeze(-2) == self.embedding.weight[-self.end_channels :]).all(-1).any(-1)
