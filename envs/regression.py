"""What tasks share whose answers are numbers: squared errors, and errors as shares of what is due."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from ..core.env import Batch, Env

CLOSE = 0.05
"""Relative error up to which an answer counts as right."""


class RegressionEnv(Env):
    """Answers are numbers, ``[T, B, O]``; the loss is the mean squared error of each position that counts."""

    error_metric: ClassVar[str] = "loss"

    loss_per: Literal["sequence"] = Field(default="sequence", init=False)

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Masked squared error of each position, the mean over its numbers.

        Args:
            outputs: ``[T, B, O]``.
            batch: the batch that was answered.

        Returns:
            ``[T, B]``.
        """
        return (outputs - batch.targets).square().mean(-1) * batch.mask

    def surprises(self, outputs: Tensor, batch: Batch) -> Tensor:
        """See :meth:`Env.surprises`; there are none."""
        raise ValueError(f"answers of {type(self).__name__} are numbers, which have no probabilities")

    def errors(self, outputs: Tensor, batch: Batch) -> Tensor:
        """How far each position's numbers are off, as shares of what they are to be, or of 1 where that is less.

        Args:
            outputs: ``[T, B, O]``.
            batch: the batch that was answered.

        Returns:
            ``[T, B]``, of which those that count matter.
        """
        return ((outputs - batch.targets).abs() / batch.targets.abs().clamp(min=1)).mean(-1)

    def right(self, outputs: Tensor, batch: Batch) -> Tensor:
        """1 where the :meth:`errors` are at most :data:`CLOSE`, 0 elsewhere, ``[T, B]``."""
        return (self.errors(outputs, batch) <= CLOSE) * batch.mask

    def normaliser(self, batch: Batch) -> Tensor:
        """What the sum of :meth:`losses` is divided by: the number of positions that count."""
        return batch.mask.sum().clamp(min=1)

    def tallies(self, outputs: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Sum and count of the loss; see :meth:`Env.tallies`."""
        return {"loss": (self.losses(outputs, batch).sum(), batch.mask.sum())}
