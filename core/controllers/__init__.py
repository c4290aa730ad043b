"""Controllers: input and last read -> hidden."""

from .automaton import AutomatonController
from .base import AnyController, Controller
from .convolution import ConvolutionController
from .ctm import CTMController
from .direct import DirectController
from .feedforward import FeedForwardController
from .gru import GRUController
from .hyper_lstm import HyperLSTMController
from .leaky import LeakyController
from .lstm import LSTMController
from .neat import NeatController
from .plastic import PlasticController
from .relational import RelationalController
from .reservoir import ReservoirController
from .rnn import RNNController

__all__ = [
    "AnyController",
    "AutomatonController",
    "CTMController",
    "Controller",
    "ConvolutionController",
    "DirectController",
    "FeedForwardController",
    "GRUController",
    "HyperLSTMController",
    "LSTMController",
    "LeakyController",
    "NeatController",
    "PlasticController",
    "RelationalController",
    "ReservoirController",
    "RNNController",
]
