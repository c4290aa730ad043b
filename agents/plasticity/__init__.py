"""Plasticity: methods that keep a circuit able to learn, and those that keep it sparse, as options of agents."""

from .base import AnyPlasticity, PlasticityMethod, Update
from .continual_backprop import ContinualBackprop
from .penalties import EWC, L2Init, ShrinkPerturb
from .redo import DORMANT, ReDo
from .sparse import GraNet, SparseEvolutionaryTraining
from .units import Activity, dormant_share, watched
from .upkeep import Upkeep

__all__ = [
    "DORMANT",
    "EWC",
    "Activity",
    "AnyPlasticity",
    "ContinualBackprop",
    "GraNet",
    "L2Init",
    "PlasticityMethod",
    "ReDo",
    "ShrinkPerturb",
    "SparseEvolutionaryTraining",
    "Update",
    "Upkeep",
    "dormant_share",
    "watched",
]
