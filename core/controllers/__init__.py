"""Controllers: input and last read -> hidden."""

from .base import AnyController, Controller
from .convolution import ConvolutionController
from .direct import DirectController
from .feedforward import FeedForwardController
from .gru import GRUController
from .lstm import LSTMController
from .neat import NeatController
from .rnn import RNNController

__all__ = [
    "AnyController",
    "Controller",
    "ConvolutionController",
    "DirectController",
    "FeedForwardController",
    "GRUController",
    "LSTMController",
    "NeatController",
    "RNNController",
]
