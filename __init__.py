"""Papertape: memory-augmented neural networks in PyTorch."""

from typing import TYPE_CHECKING, Any

from .circuits import DNC, NTM, SAM, SDNC, FeedForwardCircuit, NeatCircuit, Tape
from .core.circuit import CircuitState, Trace, detach, map_state, register_state

if TYPE_CHECKING:
    from .utils.factory import load_circuit

__version__ = "0.1.0"

__all__ = [
    "DNC",
    "NTM",
    "SAM",
    "SDNC",
    "CircuitState",
    "FeedForwardCircuit",
    "NeatCircuit",
    "Tape",
    "Trace",
    "detach",
    "load_circuit",
    "map_state",
    "register_state",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "load_circuit":  # knows all that options can name, which takes a while to load
        from .utils.factory import load_circuit

        return load_circuit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
