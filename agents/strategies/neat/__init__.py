"""NEAT: genomes as padded tensors, their mutations, their species, and the strategy made of these."""

from .strategy import Neat

__all__ = ["Neat"]
