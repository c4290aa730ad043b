"""What a backend sees of a memory-augmented circuit."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from ..accessors.base import Accessor
from ..controllers.base import Controller
from ..state import CircuitState
from ..tied_bits import TiedBitsLinear


class CircuitView(Protocol):
    """The parts of a circuit that backends use; implemented by the circuits room, which lies above this one."""

    backend: str
    chosen_backend: str | None
    """Backend of the last call, so that a change is logged once."""

    @property
    def input_size(self) -> int:
        """I, channels of each input step, or how many tokens there are to choose from."""

    @property
    def output_size(self) -> int:
        """O, channels of each output step."""

    @property
    def vector_size(self) -> int:
        """Elements of what each step takes: I, or those of an embedding."""

    @property
    def embedding(self) -> nn.Embedding | None:
        """The vector of each token, if it is learned."""

    @property
    def controller(self) -> Controller:
        """Maps input and last reads to the hidden vector."""

    @property
    def accessor(self) -> Accessor:
        """Memory and heads."""

    @property
    def output(self) -> nn.Linear | TiedBitsLinear:
        """Maps features to logits."""

    @property
    def clip(self) -> float | None:
        """Bound of the outputs."""

    @property
    def read_feedback(self) -> bool:
        """Whether the controller sees the words that were read last."""

    @property
    def changed_transition(self) -> bool:
        """Whether a subclass or a user replaced :meth:`transition`, so that no kernel knows what a step is."""

    @property
    def plain_answer(self) -> bool:
        """Whether the circuit answers by its output layer, clipped, and by nothing else."""

    def ended(self, inputs: Tensor) -> Tensor | None:
        """Of which steps ``[…, B]`` of the inputs ``[…, B, I]`` the memory is told that they are beyond the input."""

    def transition(self, x: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState, Any]:
        """One step without the output layer: features ``[B, F]``, next state, head parameters."""

    def transitions(self, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState]:
        """Many steps: features ``[T, B, F]`` and the last state."""
