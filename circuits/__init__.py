"""Circuits: one controller and one accessor make one recurrent module."""

from .dnc import DNC
from .feedforward import FeedForwardCircuit
from .memory import MemoryCircuit
from .module import ModuleCircuit
from .neat import NeatCircuit
from .normalised import NormalisedCircuit
from .ntm import NTM
from .recurrent import GRU, LSTM, RecurrentCircuit
from .routed import RoutedCircuit
from .sam import SAM, SDNC
from .stack_rnn import StackRNN
from .tape import Tape
from .tape_rnn import TapeRNN
from .transformer import Transformer

__all__ = [
    "DNC",
    "GRU",
    "LSTM",
    "NTM",
    "SAM",
    "SDNC",
    "FeedForwardCircuit",
    "MemoryCircuit",
    "ModuleCircuit",
    "NeatCircuit",
    "RecurrentCircuit",
    "RoutedCircuit",
    "StackRNN",
    "Tape",
    "TapeRNN",
    "Transformer",
    "NormalisedCircuit",
]
