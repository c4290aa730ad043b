"""Circuits: one controller and one accessor make one recurrent module."""

from .dnc import DNC, DNCOptions
from .feedforward import FeedForwardCircuit, FeedForwardCircuitOptions
from .memory_augmented import MemoryAugmentedCircuit
from .neat import NeatCircuit, NeatCircuitOptions
from .ntm import NTM, NTMOptions
from .sam import SAM, SAMOptions
from .sdnc import SDNC, SDNCOptions
from .tape import Tape, TapeOptions

__all__ = [
    "DNC",
    "DNCOptions",
    "FeedForwardCircuit",
    "FeedForwardCircuitOptions",
    "MemoryAugmentedCircuit",
    "NTM",
    "NTMOptions",
    "SAM",
    "SAMOptions",
    "SDNC",
    "SDNCOptions",
    "Tape",
    "TapeOptions",
    "NeatCircuit",
    "NeatCircuitOptions",
]
