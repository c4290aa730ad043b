"""Separable CMA-ES: CMA-ES with a diagonal covariance, linear in the number of weights (Ros & Hansen 2008)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ...core.registry import register
from .cma_es import CMAES, RESTARTS


@register("strategy", "sep-cma-es")
class SepCMAES(CMAES):
    """Learns the mean, the step size and the variance of each weight.

    The covariance learns faster than the full one by (D + 2) / 3, and from the better half of the members only.
    """

    remembered: ClassVar[tuple[str, ...]] = ("mean", "sigma", "path_sigma", "path_c", "scales", *RESTARTS)
    separable = True

    def _check_size(self, size: int) -> None:
        """Any size will do."""

    def _start_covariance(self) -> None:
        """The scales are all there is."""

    def _shape(self, normal: Tensor) -> Tensor:
        return normal * self.scales

    def _whiten(self, vectors: Tensor) -> Tensor:
        return vectors / self.scales

    def _learn_covariance(self, decay: float, weights: Tensor, steps: Tensor) -> None:
        variances = (
            decay * self.scales.square()
            + self.rates.c_1 * self.path_c.square()
            + self.rates.c_mu * (weights @ steps.square())
        )
        self.scales = torch.sqrt(variances)
