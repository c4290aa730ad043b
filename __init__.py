"""Papertape: memory-augmented neural networks in PyTorch."""

from torch.serialization import add_safe_globals

from .circuits import DNC, NTM, SAM, SDNC, FeedForwardCircuit, NeatCircuit, Tape
from .circuits.feedforward import FeedForwardCircuitState
from .core.accessors.dynamic import DynamicState
from .core.accessors.sparse import NoLinks, SparseLinks, SparseState
from .core.accessors.static import StaticState
from .core.accessors.tape import TapeState
from .core.controllers.direct import DirectState
from .core.controllers.feedforward import FeedForwardState
from .core.controllers.gru import GRUState
from .core.controllers.lstm import LSTMState
from .core.graph import GraphState
from .core.state import CircuitState, detach, map_state
from .core.trace import Trace
from .utils.factory import load_circuit
from .utils.plots import plot_trace

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
    "plot_trace",
    "__version__",
]

# States are NamedTuples of tensors: torch.load reads them with weights_only, its default.
add_safe_globals(
    [
        CircuitState,
        DirectState,
        DynamicState,
        FeedForwardCircuitState,
        FeedForwardState,
        GraphState,
        GRUState,
        LSTMState,
        NoLinks,
        SparseLinks,
        SparseState,
        StaticState,
        TapeState,
        Trace,
    ]
)
