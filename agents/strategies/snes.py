"""SNES: separable natural evolution strategies (Schaul, Glasmachers & Schmidhuber 2011)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...core.stacked import Layout
from .base import Strategy, StrategyOptions


class SNESOptions(StrategyOptions):
    """Options of :class:`SNES`; null takes the default of the paper, which depends on the size of the genome."""

    type: Literal["snes"] = "snes"
    population: int | None = Field(None, ge=2)
    """P, members of a generation; null: 4 + floor(3 log D)."""
    sigma: float = Field(0.1, gt=0)
    """Standard deviation of each weight at the start."""
    lr: float = Field(1.0, gt=0)
    """Learning rate of the centre."""
    sigma_lr: float | None = Field(None, gt=0)
    """Learning rate of the standard deviations; null: (3 + log D) / (5 sqrt D)."""


def utilities(population: int) -> Tensor:
    """Utility of each rank, best first, ``[P]`` of float64, summing to 0 (section 3.1, as in exponential NES)."""
    ranks = torch.arange(1, population + 1, dtype=torch.float64)
    raw = (math.log(population / 2 + 1) - ranks.log()).clamp(min=0)
    return raw / raw.sum() - 1 / population


class SNES(Strategy):
    """Natural gradient on the mean and the standard deviation of each weight (algorithm 1, separable case).

    ``center += lr * sigma * Σ u_p z_p`` and ``sigma *= exp(sigma_lr / 2 * Σ u_p (z_p² - 1))``.
    """

    Options = SNESOptions
    remembered = ("center", "sigma")
    adapted = {"sigma": "sigma"}  # noqa: RUF012 (as the base declares it)
    options: SNESOptions

    def __init__(self, options: SNESOptions, initial: Tensor, *, seed: int = 0, layout: Layout | None = None) -> None:
        """See :class:`Strategy`."""
        size = len(initial)
        population = options.population or 4 + math.floor(3 * math.log(size))
        super().__init__(options, initial, population=population, seed=seed, layout=layout)
        self.sigma_lr = options.sigma_lr or (3 + math.log(size)) / (5 * math.sqrt(size))
        self.center = self.initial.clone()
        """``[D]``"""
        self.sigma: Tensor = self.asked("sigma")
        """``[D]``"""
        self._utilities = utilities(population).to(self.initial)
        self._normal = self.initial.new_empty(0)

    def asked(self, option: str) -> Any:
        """See :meth:`Strategy.asked`; sigma of each weight, ``[D]``."""
        return torch.full_like(self.initial, self.options.sigma)

    def draw(self) -> Tensor:
        """Members around the centre, ``[P, D]``."""
        self._normal = torch.randn(
            self.population,
            len(self.initial),
            generator=self.generator,
            device=self.initial.device,
            dtype=self.initial.dtype,
        )
        return torch.addcmul(self.center, self.sigma, self._normal)

    def update(self, fitness: Tensor, drawn: Any) -> None:
        """One natural gradient step."""
        order = torch.argsort(fitness, descending=True, stable=True)
        weights = torch.empty_like(self._utilities)
        weights[order] = self._utilities
        normal = self._normal
        self.center = self.center + self.options.lr * self.sigma * (weights @ normal)
        # The utilities sum to 0, so the -1 of z² - 1 falls out.
        self.sigma = self.sigma * torch.exp(self.sigma_lr / 2 * (weights @ normal.square_()))

    @property
    def best(self) -> Tensor:
        """The centre."""
        return self.center

    def center_and_spread(self) -> tuple[Tensor, float]:
        """The centre and the root mean square of the standard deviations."""
        return self.center, float(self.sigma.square().mean().sqrt())
