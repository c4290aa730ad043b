"""Accessors: a memory with its heads, and one step of access to it."""

from ..sparse_memory import SparseState
from .base import Accessor, AnyAccessor
from .delta import DeltaAccessor, DeltaState
from .dynamic import DynamicAccessor, DynamicState
from .sparse import SparseAccessor
from .static import StaticAccessor, StaticState
from .tape import OpenTape, TapeAccessor, TapeState

__all__ = [
    "Accessor",
    "AnyAccessor",
    "DeltaAccessor",
    "DeltaState",
    "DynamicAccessor",
    "DynamicState",
    "OpenTape",
    "SparseAccessor",
    "SparseState",
    "StaticAccessor",
    "StaticState",
    "TapeAccessor",
    "TapeState",
]
