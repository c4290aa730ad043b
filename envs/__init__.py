"""Envs: tasks that hand out batches, and worlds that hand out rewards."""

from .associative_recall import AssociativeRecallEnv
from .copy import CopyEnv
from .cued_tmaze import CuedTMazeWorld
from .curriculum import Curriculum, FixedCurriculum, GrowingCurriculum, LessonsCurriculum
from .dynamic_ngrams import DynamicNGramsEnv
from .gym import GymWorld
from .images import DataError, ImagesEnv
from .letters import LettersEnv
from .popgym.game import PopgymWorld  # with all the tasks of that room
from .priority_sort import PrioritySortEnv
from .repeat_copy import RepeatCopyEnv
from .sequence import SequenceEnv
from .tmaze import TMazeWorld
from .xor import XorEnv

__all__ = [
    "AssociativeRecallEnv",
    "CopyEnv",
    "CuedTMazeWorld",
    "Curriculum",
    "DataError",
    "DynamicNGramsEnv",
    "FixedCurriculum",
    "GrowingCurriculum",
    "GymWorld",
    "ImagesEnv",
    "LessonsCurriculum",
    "LettersEnv",
    "PopgymWorld",
    "PrioritySortEnv",
    "RepeatCopyEnv",
    "SequenceEnv",
    "TMazeWorld",
    "XorEnv",
]
