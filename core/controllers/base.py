"""The contract of a controller."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ..circuit import check_clip, check_sizes
from ..options import Options
from ..specification import specification


class ControllerOptions(Options):
    """Options that every controller has."""

    type: str


class LayeredControllerOptions(ControllerOptions):
    """Options of a controller with layers."""

    hidden_size: int = Field(100, ge=1)
    """Size of each layer and of the controller's output."""
    num_layers: int = Field(1, ge=1, le=100)


class Controller(nn.Module, ABC):
    """Maps the input and the words read last to the hidden vector that drives the heads, with an explicit state."""

    Options: ClassVar[type[ControllerOptions]]
    kind: ClassVar[str] = ""
    """By which kernels know what it is; none for what they do not know."""

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, *, clip: float | None = 20.0) -> None:
        """
        Args:
            input_size: channels of the input and of all words read, together.
            hidden_size: size of each layer and of the output.
            num_layers: layers, each fed by the one before.
            clip: hidden and cell states are kept in [-clip, clip]; None leaves them.

        Raises:
            ValueError: a size below 1 or a clip that is not positive.
        """
        super().__init__()
        check_sizes(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        check_clip(clip)
        self.input_size = int(input_size)
        self.hidden_size = int(hidden_size)
        self.num_layers = int(num_layers)
        self.clip = clip

    @abstractmethod
    def initial_state(self, batch_size: int) -> Any:
        """State before the first step, a NamedTuple of tensors ``[B, …]``."""

    @abstractmethod
    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One step: ``[B, input_size]`` and a state -> hidden ``[B, hidden_size]`` and the next state."""

    def specification(self) -> dict[str, Any]:
        """Every option that it was built with, by name: what kernels must know of it."""
        return specification(self, Controller)

    def clipped(self, x: Tensor) -> Tensor:
        """The tensor, kept in [-clip, clip]."""
        return x if self.clip is None else torch.clamp(x, -self.clip, self.clip)


def gated_layers(input_size: int, hidden_size: int, num_layers: int, gates: int) -> tuple[nn.ModuleList, nn.ModuleList]:
    """The input and the recurrent Linear of each layer of a gated network, initialised as in torch.nn."""
    bound = 1 / math.sqrt(hidden_size)
    inputs = nn.ModuleList(
        nn.Linear(hidden_size if layer else input_size, gates * hidden_size) for layer in range(num_layers)
    )
    recurrents = nn.ModuleList(nn.Linear(hidden_size, gates * hidden_size) for _ in range(num_layers))
    for parameter in [*inputs.parameters(), *recurrents.parameters()]:
        nn.init.uniform_(parameter, -bound, bound)
    return inputs, recurrents
