"""Envs: tasks that hand out batches, and worlds that hand out rewards."""

from .associative_recall import AssociativeRecallEnv, AssociativeRecallOptions
from .copy import CopyEnv, CopyOptions
from .dynamic_ngrams import DynamicNGramsEnv, DynamicNGramsOptions
from .gym import GymOptions, GymWorld
from .images import DataError, ImagesEnv, ImagesOptions
from .letters import LettersEnv, LettersOptions
from .priority_sort import PrioritySortEnv, PrioritySortOptions
from .repeat_copy import RepeatCopyEnv, RepeatCopyOptions
from .tmaze import TMazeOptions, TMazeWorld
from .xor import XorEnv, XorOptions

__all__ = [
    "AssociativeRecallEnv",
    "AssociativeRecallOptions",
    "CopyEnv",
    "CopyOptions",
    "DataError",
    "DynamicNGramsEnv",
    "DynamicNGramsOptions",
    "GymOptions",
    "GymWorld",
    "ImagesEnv",
    "ImagesOptions",
    "LettersEnv",
    "LettersOptions",
    "PrioritySortEnv",
    "PrioritySortOptions",
    "RepeatCopyEnv",
    "RepeatCopyOptions",
    "TMazeOptions",
    "TMazeWorld",
    "XorEnv",
    "XorOptions",
]
