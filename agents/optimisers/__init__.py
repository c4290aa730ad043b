"""Optimisers: what makes updates out of gradients, each with its published settings."""

from .adam import Adam, AdamW
from .base import AnyOptimiser, Optimiser, Share, build_optimiser, load_moments
from .paper_rmsprop import GravesRMSprop, TensorFlowRMSprop
from .rmsprop import RMSprop
from .sgd import SGD

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "AnyOptimiser",
    "GravesRMSprop",
    "Optimiser",
    "RMSprop",
    "Share",
    "TensorFlowRMSprop",
    "build_optimiser",
    "load_moments",
]
