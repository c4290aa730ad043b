"""What the memory tasks after POPGym have in common.

Rules, rewards, lengths and spaces are those of version 1.0.7 of the package popgym (S. Morad, R. Kortvelesy, M.
Bettini, S. Liwicki, A. Prorok: POPGym: Benchmarking Partially Observable Reinforcement Learning, ICLR 2023).
"""

from __future__ import annotations

from typing import ClassVar, Literal, TypeVar

from pydantic import Field
from torch import Tensor

from ...core.tensor_world import TensorWorld
from ...core.world import Episodes

Situation = TypeVar("Situation")


class PopgymWorld(TensorWorld[Situation]):
    """A memory task in three difficulties, whose returns lie between -1 and 1, the best that there can be.

    Metrics: shortfall, which is 1 - return and so not always to be brought to zero, besides reward and steps.
    """

    error_metric: ClassVar[str] = "shortfall"

    difficulty: Literal["easy", "medium", "hard"] = Field(
        default="easy", description="which of the three published versions"
    )

    def metrics(self, episodes: Episodes) -> dict[str, float]:
        """See the class."""
        return {**super().metrics(episodes), "shortfall": float(1 - episodes.returns.double().mean())}


def for_and_against(right: Tensor, amount: float) -> Tensor:
    """Rewards ``[B]`` in float64: an amount where an answer is right, minus it elsewhere."""
    return (2 * right.double() - 1) * amount
