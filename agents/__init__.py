"""Agents: how a circuit learns."""

from .backprop import BackpropAgent, BackpropOptions
from .empty import EmptyAgent, EmptyOptions

__all__ = ["BackpropAgent", "BackpropOptions", "EmptyAgent", "EmptyOptions"]
