"""Agents: how a circuit learns."""

from .backprop import BackpropAgent, BackpropOptions
from .empty import EmptyAgent, EmptyOptions
from .evolution import EvolutionAgent, EvolutionOptions
from .mixed import MixedAgent, MixedOptions
from .node_perturbation import NodePerturbationAgent, NodePerturbationOptions

__all__ = [
    "BackpropAgent",
    "BackpropOptions",
    "EmptyAgent",
    "EmptyOptions",
    "EvolutionAgent",
    "EvolutionOptions",
    "MixedAgent",
    "MixedOptions",
    "NodePerturbationAgent",
    "NodePerturbationOptions",
]
