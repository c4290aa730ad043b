"""SNES: separable natural evolution strategies (Schaul, Glasmachers & Schmidhuber 2011)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ...core.registry import register
from .base import Strategy, in_range


def utilities(population: int) -> Tensor:
    """Utility of each rank, best first, ``[P]`` of float64, summing to 0 (section 3.1, as in exponential NES)."""
    ranks = torch.arange(1, population + 1, dtype=torch.float64, device="cpu")
    raw = (math.log(population / 2 + 1) - ranks.log()).clamp(min=0)
    return raw / raw.sum() - 1 / population


@register("strategy", "snes")
class SNES(Strategy):
    """Natural gradient on the mean and the standard deviation of each weight (algorithm 1, separable case).

    ``center += lr * sigma * Σ u_p z_p`` and ``sigma *= exp(sigma_lr / 2 * Σ u_p (z_p² - 1))``. Where fitness grows
    without end, it begins again around its last centre once members would no longer be finite.
    """

    remembered: ClassVar[tuple[str, ...]] = ("center", "deviations")
    adapted: ClassVar[Mapping[str, str]] = {"sigma": "deviations"}

    population: int | None = Field(  # type: ignore[assignment]
        default=None, ge=2, description="P, members of a generation; null: 4 + floor(3 log D)"
    )
    sigma: float = Field(default=0.1, gt=0, description="standard deviation of each weight at the start")
    lr: float = Field(default=1.0, gt=0, description="learning rate of the centre")
    sigma_lr: float | None = Field(
        default=None, gt=0, description="learning rate of the standard deviations; null: (3 + log D) / (5 sqrt D)"
    )

    def setup(self) -> None:
        """See :class:`Strategy`."""
        size = len(self.genome)
        self.population = self.population or 4 + math.floor(3 * math.log(size))
        super().setup()
        self.deviations_lr = self.sigma_lr or (3 + math.log(size)) / (5 * math.sqrt(size))
        self.center = self.genome.clone()
        """``[D]``"""
        self.deviations: Tensor = self.asked("sigma")
        """``[D]``"""
        self._utilities = utilities(self.population).to(self.genome)
        self._normal = self.genome.new_empty(0)

    def asked(self, option: str) -> Any:
        """See :meth:`Strategy.asked`; sigma of each weight, ``[D]``."""
        return torch.full_like(self.genome, self.options.sigma)

    def draw(self) -> Tensor:
        """Members around the centre, ``[P, D]``."""
        self._normal = torch.randn(
            len(self._utilities),
            len(self.genome),
            generator=self.generator,
            device=self.genome.device,
            dtype=self.genome.dtype,
        )
        return torch.addcmul(self.center, self.deviations, self._normal)

    def update(self, fitness: Tensor, drawn: Any) -> None:
        """One natural gradient step."""
        order = torch.argsort(fitness, descending=True, stable=True)
        weights = torch.empty_like(self._utilities)
        weights[order] = self._utilities
        normal, before = self._normal, self.center
        self.center = self.center + self.lr * self.deviations * (weights @ normal)
        # The utilities sum to 0, so the -1 of z² - 1 falls out.
        self.deviations = self.deviations * torch.exp(self.deviations_lr / 2 * (weights @ normal.square_()))
        if not in_range(self.center, self.deviations, self.genome.dtype):
            self.center, self.deviations = before, self.asked("sigma")

    @property
    def best(self) -> Tensor:
        """The centre."""
        return self.center

    def center_and_spread(self) -> tuple[Tensor, float]:
        """The centre and the root mean square of the standard deviations."""
        return self.center, float(self.deviations.double().square().mean().sqrt())
