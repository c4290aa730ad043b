"""Agents: how a circuit learns."""

from .backprop import BackpropAgent
from .empty import EmptyAgent
from .evolution import EvolutionAgent
from .mixed import MixedAgent
from .node_perturbation import NodePerturbationAgent
from .self_modifying import SelfModifyingAgent

__all__ = [
    "BackpropAgent",
    "EmptyAgent",
    "EvolutionAgent",
    "MixedAgent",
    "NodePerturbationAgent",
    "SelfModifyingAgent",
]
