"""Tapehead: memory-augmented neural networks in PyTorch."""

from .circuits import DNC, NTM, SAM, SDNC
from .core.circuit import CircuitState, Trace, detach, map_state
from .utils.factory import load_circuit

__version__ = "0.1.0"

__all__ = [
    "DNC",
    "NTM",
    "SAM",
    "SDNC",
    "CircuitState",
    "Trace",
    "detach",
    "load_circuit",
    "map_state",
    "__version__",
]
