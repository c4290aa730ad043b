"""Controllers: input and last read -> hidden."""

from .base import AnyController, Controller
from .direct import DirectController
from .feedforward import FeedForwardController
from .gru import GRUController
from .lstm import LSTMController
from .neat import NeatController

__all__ = [
    "AnyController",
    "Controller",
    "DirectController",
    "FeedForwardController",
    "GRUController",
    "LSTMController",
    "NeatController",
]
