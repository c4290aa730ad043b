"""Circuits: one controller and one accessor make one recurrent module."""

from .dnc import DNC
from .feedforward import FeedForwardCircuit
from .memory import MemoryCircuit
from .module import ModuleCircuit
from .neat import NeatCircuit
from .normalised import NormalisedCircuit
from .ntm import NTM
from .sam import SAM, SDNC
from .tape import Tape

__all__ = [
    "DNC",
    "NTM",
    "SAM",
    "SDNC",
    "FeedForwardCircuit",
    "MemoryCircuit",
    "ModuleCircuit",
    "NeatCircuit",
    "NormalisedCircuit",
    "Tape",
]
