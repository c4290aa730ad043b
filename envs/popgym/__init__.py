"""Memory tasks after POPGym, in batched tensors; see :class:`papertape.envs.PopgymWorld`."""

from .autoencode import AutoencodeWorld
from .battleship import BattleshipWorld
from .cartpole import NoisyPositionOnlyCartPoleWorld, PositionOnlyCartPoleWorld, VelocityOnlyCartPoleWorld
from .concentration import ConcentrationWorld
from .count_recall import CountRecallWorld
from .higher_lower import HigherLowerWorld
from .minesweeper import MineSweeperWorld
from .multiarmed_bandit import MultiarmedBanditWorld
from .pendulum import NoisyPositionOnlyPendulumWorld, PositionOnlyPendulumWorld
from .repeat_first import RepeatFirstWorld
from .repeat_previous import RepeatPreviousWorld

__all__ = [
    "AutoencodeWorld",
    "BattleshipWorld",
    "ConcentrationWorld",
    "CountRecallWorld",
    "HigherLowerWorld",
    "MineSweeperWorld",
    "MultiarmedBanditWorld",
    "NoisyPositionOnlyCartPoleWorld",
    "NoisyPositionOnlyPendulumWorld",
    "PositionOnlyCartPoleWorld",
    "PositionOnlyPendulumWorld",
    "RepeatFirstWorld",
    "RepeatPreviousWorld",
    "VelocityOnlyCartPoleWorld",
]
