"""Accessors: a memory with its heads, and one step of access to it."""

from .base import Accessor
from .dynamic import DynamicAccessor, DynamicState
from .static import StaticAccessor, StaticState

__all__ = ["Accessor", "DynamicAccessor", "DynamicState", "StaticAccessor", "StaticState"]
