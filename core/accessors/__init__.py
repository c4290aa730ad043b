"""Accessors: a memory with its heads, and one step of access to it."""

from ..sparse_memory import SparseState
from .attention import AttentionAccessor, AttentionState
from .base import Accessor, AnyAccessor
from .delta import DeltaAccessor, DeltaState
from .dynamic import DynamicAccessor, DynamicState
from .soft_tape import SoftTapeAccessor, SoftTapeState
from .sparse import SparseAccessor
from .srwm import SelfReferentialAccessor, SelfReferentialState
from .stack import StackAccessor, StackState
from .static import StaticAccessor, StaticState
from .tape import OpenTape, TapeAccessor, TapeState

__all__ = [
    "Accessor",
    "AnyAccessor",
    "AttentionAccessor",
    "AttentionState",
    "DeltaAccessor",
    "DeltaState",
    "DynamicAccessor",
    "DynamicState",
    "OpenTape",
    "SelfReferentialAccessor",
    "SelfReferentialState",
    "SoftTapeAccessor",
    "SoftTapeState",
    "SparseAccessor",
    "SparseState",
    "StackAccessor",
    "StackState",
    "StaticAccessor",
    "StaticState",
    "TapeAccessor",
    "TapeState",
]
