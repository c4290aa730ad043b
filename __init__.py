"""Papertape: memory-augmented neural networks in PyTorch."""

import importlib
from typing import TYPE_CHECKING, Any

from .circuits import DNC, NTM, SAM, SDNC, FeedForwardCircuit, MemoryCircuit, NeatCircuit, Tape
from .core.accessors import Accessor
from .core.circuit import Circuit
from .core.component import Component
from .core.controllers import Controller
from .core.env import Batch, Env
from .core.interface import Interface
from .core.registry import register
from .core.state import CircuitState, detach, map_state, register_state
from .core.trace import Trace, TraceField
from .core.world import World

if TYPE_CHECKING:
    from .agents.strategies import Strategy, maximise, minimise
    from .core.agent import Agent
    from .utils.factory import load_circuit
    from .utils.plots import plot_trace
    from .utils.sinks import Sink
    from .utils.zoo import load

__version__ = "0.1.0"

__all__ = [
    "DNC",
    "NTM",
    "SAM",
    "SDNC",
    "Accessor",
    "Agent",
    "Batch",
    "Circuit",
    "CircuitState",
    "Component",
    "Controller",
    "Env",
    "FeedForwardCircuit",
    "Interface",
    "MemoryCircuit",
    "NeatCircuit",
    "Sink",
    "Strategy",
    "Tape",
    "Trace",
    "TraceField",
    "World",
    "detach",
    "load",
    "load_circuit",
    "map_state",
    "maximise",
    "minimise",
    "plot_trace",
    "register",
    "register_state",
    "__version__",
]

_LATER = {
    "Agent": ".core.agent",
    "Sink": ".utils.sinks",
    "Strategy": ".agents.strategies",
    "load": ".utils.zoo",
    "load_circuit": ".utils.factory",
    "maximise": ".agents.strategies",
    "minimise": ".agents.strategies",
    "plot_trace": ".utils.plots",
}
"""Names whose modules take a while to load: when they are first asked for."""


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
