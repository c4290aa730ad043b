"""Circuits: one controller and one accessor make one recurrent module."""

from .dnc import DNC, DNCOptions
from .memory_augmented import MemoryAugmentedCircuit
from .ntm import NTM, NTMOptions

__all__ = ["DNC", "DNCOptions", "MemoryAugmentedCircuit", "NTM", "NTMOptions"]
