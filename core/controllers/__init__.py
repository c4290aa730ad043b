"""Controllers: input and last read -> hidden.

The table of controllers is here, below the circuits that look names up in it; ``utils/factory.py`` shows it to users.
"""

from typing import Annotated

from pydantic import Field

from .base import Controller, ControllerOptions
from .direct import DirectController, DirectOptions
from .feedforward import FeedForwardController, FeedForwardOptions
from .gru import GRUController, GRUOptions
from .lstm import LSTMController, LSTMOptions
from .neat import NeatController, NeatControllerOptions

CONTROLLERS: dict[str, type[Controller]] = {
    "lstm": LSTMController,
    "gru": GRUController,
    "feedforward": FeedForwardController,
    "neat": NeatController,
    "direct": DirectController,
}
"""Every controller by the name that options and constructors use."""

AnyControllerOptions = Annotated[
    LSTMOptions | GRUOptions | FeedForwardOptions | NeatControllerOptions | DirectOptions, Field(discriminator="type")
]
"""The ``controller:`` block of a circuit."""

__all__ = [
    "CONTROLLERS",
    "AnyControllerOptions",
    "Controller",
    "ControllerOptions",
    "DirectController",
    "DirectOptions",
    "FeedForwardController",
    "FeedForwardOptions",
    "GRUController",
    "GRUOptions",
    "LSTMController",
    "LSTMOptions",
    "NeatController",
    "NeatControllerOptions",
]
