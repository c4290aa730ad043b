"""Fitness: what answers are worth where a population evolves."""

from .accuracy import AccuracyFitness
from .base import AnyFitness, Fitness, check_fitness, earned, made
from .loss import LossFitness
from .reward import RewardFitness

__all__ = [
    "AccuracyFitness",
    "AnyFitness",
    "Fitness",
    "LossFitness",
    "RewardFitness",
    "check_fitness",
    "earned",
    "made",
]
