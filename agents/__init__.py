"""Agents: how a circuit learns."""

from .actor_critic import ActorCritic
from .backprop import BackpropAgent
from .empty import EmptyAgent
from .evolution import EvolutionAgent
from .mixed import MixedAgent
from .node_perturbation import NodePerturbationAgent
from .ppo import PPOAgent
from .self_modifying import SelfModifyingAgent

__all__ = [
    "ActorCritic",
    "BackpropAgent",
    "EmptyAgent",
    "EvolutionAgent",
    "MixedAgent",
    "NodePerturbationAgent",
    "PPOAgent",
    "SelfModifyingAgent",
]
