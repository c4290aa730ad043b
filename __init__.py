"""Papertape: memory-augmented neural networks in PyTorch."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .agents.strategies import Strategy, maximise, minimise
    from .circuits import (
        DNC,
        GRU,
        LSTM,
        NTM,
        SAM,
        SDNC,
        FeedForwardCircuit,
        MemoryCircuit,
        NeatCircuit,
        NormalisedCircuit,
        RecurrentCircuit,
        RoutedCircuit,
        StackRNN,
        Tape,
        TapeRNN,
        Transformer,
    )
    from .core.accessors import Accessor
    from .core.agent import Agent
    from .core.circuit import Circuit
    from .core.component import Component
    from .core.controllers import Controller
    from .core.env import Batch, Env
    from .core.interface import Interface
    from .core.registry import register
    from .core.state import CircuitState, detach, map_state, register_state
    from .core.tensor_world import Outcome, TensorWorld
    from .core.token_env import TokenEnv
    from .core.trace import Trace, TraceField
    from .core.world import World
    from .utils.factory import load_circuit
    from .utils.plots import plot_trace
    from .utils.sinks import Sink
    from .utils.zoo import load

__version__ = "0.1.0"

__all__ = [
    "DNC",
    "GRU",
    "LSTM",
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
    "NormalisedCircuit",
    "RecurrentCircuit",
    "RoutedCircuit",
    "Outcome",
    "Sink",
    "StackRNN",
    "Strategy",
    "Tape",
    "TapeRNN",
    "TokenEnv",
    "TensorWorld",
    "Trace",
    "TraceField",
    "Transformer",
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

_MODULES = {
    ".agents.strategies": "Strategy maximise minimise",
    ".circuits": "DNC GRU LSTM NTM SAM SDNC FeedForwardCircuit MemoryCircuit NeatCircuit NormalisedCircuit "
    "RecurrentCircuit RoutedCircuit StackRNN Tape TapeRNN Transformer",
    ".core.accessors": "Accessor",
    ".core.agent": "Agent",
    ".core.circuit": "Circuit",
    ".core.component": "Component",
    ".core.controllers": "Controller",
    ".core.env": "Batch Env",
    ".core.interface": "Interface",
    ".core.registry": "register",
    ".core.state": "CircuitState detach map_state register_state",
    ".core.token_env": "TokenEnv",
    ".core.tensor_world": "Outcome TensorWorld",
    ".core.trace": "Trace TraceField",
    ".core.world": "World",
    ".utils.factory": "load_circuit",
    ".utils.plots": "plot_trace",
    ".utils.sinks": "Sink",
    ".utils.zoo": "load",
}
"""Where public names are: they are loaded when they are first asked for, since torch alone takes seconds."""
_ROOMS = ("agents", "circuits", "core", "envs", "utils")


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names.split():
            return getattr(importlib.import_module(module, __name__), name)
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__, *_ROOMS]
