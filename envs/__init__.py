"""Envs: tasks that hand out batches, and worlds that hand out rewards."""

from .associative_recall import AssociativeRecallEnv
from .copy import CopyEnv
from .cued_tmaze import CuedTMazeWorld
from .curriculum import Curriculum, FixedCurriculum, GrowingCurriculum, LessonsCurriculum
from .dynamic_ngrams import DynamicNGramsEnv
from .gym import GymWorld
from .images import DataError, ImagesEnv
from .letters import LettersEnv
from .popgym import (
    AutoencodeWorld,
    BattleshipWorld,
    ConcentrationWorld,
    CountRecallWorld,
    HigherLowerWorld,
    MineSweeperWorld,
    MultiarmedBanditWorld,
    NoisyPositionOnlyCartPoleWorld,
    NoisyPositionOnlyPendulumWorld,
    PositionOnlyCartPoleWorld,
    PositionOnlyPendulumWorld,
    RepeatFirstWorld,
    RepeatPreviousWorld,
    VelocityOnlyCartPoleWorld,
)
from .priority_sort import PrioritySortEnv
from .repeat_copy import RepeatCopyEnv
from .sequence import SequenceEnv
from .tmaze import TMazeWorld
from .xor import XorEnv

__all__ = [
    "AssociativeRecallEnv",
    "AutoencodeWorld",
    "BattleshipWorld",
    "ConcentrationWorld",
    "CopyEnv",
    "CountRecallWorld",
    "CuedTMazeWorld",
    "Curriculum",
    "DataError",
    "DynamicNGramsEnv",
    "FixedCurriculum",
    "GrowingCurriculum",
    "GymWorld",
    "HigherLowerWorld",
    "ImagesEnv",
    "LessonsCurriculum",
    "LettersEnv",
    "MineSweeperWorld",
    "MultiarmedBanditWorld",
    "NoisyPositionOnlyCartPoleWorld",
    "NoisyPositionOnlyPendulumWorld",
    "PositionOnlyCartPoleWorld",
    "PositionOnlyPendulumWorld",
    "PrioritySortEnv",
    "RepeatCopyEnv",
    "RepeatFirstWorld",
    "RepeatPreviousWorld",
    "SequenceEnv",
    "TMazeWorld",
    "VelocityOnlyCartPoleWorld",
    "XorEnv",
]
