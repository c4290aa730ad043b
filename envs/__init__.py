"""Envs: tasks that hand out batches, and worlds that hand out rewards."""

from .arithmetic import ArithmeticEnv
from .associative_recall import AssociativeRecallEnv
from .brackets import BracketsEnv
from .copy import CopyEnv
from .cued_tmaze import CuedTMazeWorld
from .curriculum import Curriculum, FixedCurriculum, GrowingCurriculum, LessonsCurriculum
from .dynamic_ngrams import DynamicNGramsEnv
from .gym import GymWorld
from .images import DataError, ImagesEnv
from .induction_heads import InductionHeadsEnv
from .letters import LettersEnv
from .mqar import MQAREnv
from .n_delayed_match import NDelayedMatchToSampleEnv
from .n_parity import NParityEnv
from .nth_farthest import NthFarthestEnv
from .one_shot import OneShotEnv
from .permuted_images import PermutedImagesEnv
from .popgym.game import PopgymWorld  # with all the tasks of that room
from .priority_sort import PrioritySortEnv
from .recent_bits import RecentBitsEnv
from .repeat_copy import RepeatCopyEnv
from .selective_copying import SelectiveCopyingEnv
from .sequence import SequenceEnv
from .slowly_changing import SlowlyChangingEnv
from .stream import StreamEnv
from .strings import StringEnv, Strings
from .tmaze import TMazeWorld
from .word_problem import WordProblemEnv
from .xor import XorEnv

# isort: split
from . import chomsky as chomsky  # so that its tasks have their names; they come last where tasks are listed

__all__ = [
    "ArithmeticEnv",
    "AssociativeRecallEnv",
    "BracketsEnv",
    "CopyEnv",
    "CuedTMazeWorld",
    "Curriculum",
    "DataError",
    "DynamicNGramsEnv",
    "FixedCurriculum",
    "GrowingCurriculum",
    "GymWorld",
    "ImagesEnv",
    "InductionHeadsEnv",
    "LessonsCurriculum",
    "LettersEnv",
    "MQAREnv",
    "NDelayedMatchToSampleEnv",
    "NParityEnv",
    "NthFarthestEnv",
    "OneShotEnv",
    "PermutedImagesEnv",
    "PopgymWorld",
    "PrioritySortEnv",
    "RecentBitsEnv",
    "RepeatCopyEnv",
    "SelectiveCopyingEnv",
    "SequenceEnv",
    "SlowlyChangingEnv",
    "StreamEnv",
    "StringEnv",
    "Strings",
    "TMazeWorld",
    "WordProblemEnv",
    "XorEnv",
]
