"""CR-FM-NES: fast moving natural evolution strategy for many weights (Nomura & Ono 2022, arXiv 2201.11422)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ...core.registry import register
from .base import Strategy, in_range
from .cma_es import rates
from .snes import utilities

SMALLEST_SCALE = 1e-150


def distance_rate(size: int) -> float:
    """The a for which (1 + a²) exp(a²/2) / 0.24 = 10 + D, by which distance counts (section III-A); by bisection."""
    low, high = 0.0, 100.0
    for _ in range(200):
        middle = (low + high) / 2
        above = math.log((1 + middle**2) / 0.24) + middle**2 / 2 > math.log(10 + size)
        low, high = (low, middle) if above else (middle, high)
    return (low + high) / 2


@register("strategy", "cr-fm-nes")
class CRFMNES(Strategy):
    """Natural gradient on a covariance ``sigma² D (I + v vᵀ) D``: the scale of each weight and one direction.

    Linear in the number of weights, as ``sep-cma-es`` and ``snes`` are, but it follows a valley that lies across the
    weights, and moves fast towards a distant optimum. Members come in mirrored pairs; computes in float64. Where all
    directions are as good, or one is better without end, v and the scales grow until they are not finite: the search
    then begins again around its last mean.
    """

    remembered: ClassVar[tuple[str, ...]] = ("mean", "sigma", "scales", "direction", "path_sigma", "path_c")
    adapted: ClassVar[Mapping[str, str]] = {"sigma": "sigma"}

    population: int | None = Field(  # type: ignore[assignment]
        default=None,
        ge=4,
        description="P, members of a generation, an even number; null: 4 + floor(3 log D) or one more",
    )
    sigma: float = Field(default=0.1, gt=0, description="standard deviation of each weight at the start")

    @classmethod
    def check_options(cls, options: Any) -> None:
        """See :meth:`Component.check_options`."""
        super().check_options(options)
        if options.population is not None and options.population % 2:
            raise ValueError(
                f"population: got {options.population}; allowed is an even number, for sampling is mirrored"
            )

    def setup(self) -> None:
        """See :class:`Strategy`."""
        size = len(self.genome)
        self.population = self.population or math.ceil((4 + math.floor(3 * math.log(size))) / 2) * 2
        super().setup()
        self._ranks = utilities(self.population).to(self.genome.device)
        """Weight of each rank, best first, ``[P]``, summing to 0."""
        mu_eff = float(1 / (self._ranks + 1 / self.population).square().sum())
        self.c_sigma = (mu_eff + 2) / (size + mu_eff + 5)
        self.c_c = (4 + mu_eff / size) / (size + 4 + 2 * mu_eff / size)
        self.c_1 = max(0.0, 2 / ((size + 1.3) ** 2 + mu_eff) * (size - 5) / 6)
        self.mu_eff = mu_eff
        self.expected_norm = rates(size, self.population).expected_norm
        self._farness = distance_rate(size) * min(1.0, math.sqrt(self.population / size))
        self.mean = self.genome.double()
        """``[D]``"""
        self._begin()
        self._normal = self._shaped = self.mean.new_empty(0)

    def _begin(self) -> None:
        """Nothing is known but the mean."""
        size = len(self.mean)
        self.sigma = self.options.sigma
        self.scales = torch.ones_like(self.mean)
        """D, the scale of each weight, ``[D]``."""
        normal = torch.randn(size, generator=self.generator, device=self.mean.device, dtype=torch.float64)
        self.direction = normal / math.sqrt(size)
        """v, ``[D]``."""
        self.path_sigma = torch.zeros_like(self.mean)
        """``[D]``"""
        self.path_c = torch.zeros_like(self.mean)
        """``[D]``"""

    @property
    def _is_finite(self) -> bool:
        """Whether the mean, and members around it, are numbers of the genome's type, and what is computed with them."""
        square = self.direction.square()
        spread = self.sigma * (self.scales.square() * (1 + square)).sqrt()
        known = torch.cat([self.path_sigma, self.path_c, square.sum().square().view(1)])
        return in_range(self.mean, spread, self.genome.dtype) and bool(known.isfinite().all()) and self.sigma > 0

    def draw(self) -> Tensor:
        """Members around the mean, ``[P, D]``."""
        assert self.population is not None
        half = torch.randn(
            self.population // 2,
            len(self.mean),
            generator=self.generator,
            device=self.mean.device,
            dtype=torch.float64,
        )
        self._normal = torch.stack([half, -half], 1).flatten(0, 1)
        length = torch.linalg.vector_norm(self.direction)
        unit = self.direction / length
        self._shaped = self._normal + ((1 + length**2).sqrt() - 1) * torch.outer(self._normal @ unit, unit)
        return (self.mean + self.sigma * self._shaped * self.scales).to(self.genome.dtype)

    def update(self, fitness: Tensor, drawn: Any) -> None:
        """Algorithm 1 of the paper."""
        size, count, before = len(self.mean), len(self._ranks), self.mean
        order = torch.argsort(fitness, descending=True, stable=True)
        z, y, ranks = self._normal[order], self._shaped[order], self._ranks
        self.path_sigma = (1 - self.c_sigma) * self.path_sigma + math.sqrt(
            self.c_sigma * (2 - self.c_sigma) * self.mu_eff
        ) * (ranks @ z)
        norm = float(torch.linalg.vector_norm(self.path_sigma))
        moving = norm >= self.expected_norm
        weights = self._far(z) if moving else ranks
        step = weights @ (y * self.scales)
        self.path_c = (1 - self.c_c) * self.path_c + math.sqrt(self.c_c * (2 - self.c_c) * self.mu_eff) * step
        self.mean = self.mean + self.sigma * step
        growth = float(weights @ (z.square() - 1).sum(1)) / size
        rate = math.tanh((min(0.02 * count, 3 * math.log(size)) + 5) / (0.23 * size + 25))
        drawn_along = torch.cat([y, (self.path_c / self.scales).unsqueeze(0)])
        self._turn(drawn_along, torch.cat([rate * weights, weights.new_tensor([self.c_1])]))
        self.scales = self.scales / self._volume()
        self.sigma *= math.exp(self._sigma_rate(norm) / 2 * growth)
        if not self._is_finite:
            self.mean = before
            self._begin()

    def _far(self, z: Tensor) -> Tensor:
        """Weights of ranks that count more the farther a member was drawn, best first, ``[P]``."""
        positive = self._ranks + 1 / len(z)
        lengths = self._farness * torch.linalg.vector_norm(z, dim=1)
        # The largest exponent cancels in the ratio.
        far = positive * (lengths - lengths.max()).exp()
        return far / far.sum() - 1 / len(z)

    def _sigma_rate(self, norm: float) -> float:
        """Learning rate of sigma: moving, stagnating or converging, by the length of the path (section II-C)."""
        size, count = len(self.mean), len(self._ranks)
        if norm >= self.expected_norm:
            return 1.0
        if norm >= 0.1 * self.expected_norm:
            return math.tanh((0.024 * count + 0.7 * size + 20) / (size + 12))
        return 2 * math.tanh((0.025 * count + 0.75 * size + 10) / (size + 4))

    def _volume(self) -> float:
        """The D-th root of the determinant of ``D (I + v vᵀ)^½``."""
        logs = self.scales.log().sum() + (1 + self.direction.square().sum()).log() / 2
        return math.exp(float(logs) / len(self.scales))

    def _turn(self, vectors: Tensor, weights: Tensor) -> None:
        """Natural gradient of v and of the scales (Akimoto, Auger & Hansen 2014, theorem 3.6).

        Args:
            vectors: what was drawn, before scaling, ``[N, D]``.
            weights: of each, ``[N]``.
        """
        length = torch.linalg.vector_norm(self.direction)
        unit = self.direction / length
        square, gamma, unit2 = length**2, 1 + length**2, unit.square()
        projected = (vectors @ unit).unsqueeze(1)
        root = (square**2 + (2 * gamma - gamma.sqrt()) / unit2.max()).sqrt() / (2 + square)
        alpha = root.clamp(max=1)
        t = vectors * projected - unit * (projected.square() + gamma) / 2
        b = -(1 - alpha**2) * square**2 / gamma + 2 * alpha**2
        inverse = 1 / (2 - (b + 2 * alpha**2) * unit2)
        s = vectors.square() - square / gamma * (vectors * unit * projected) - 1
        s = s - alpha / gamma * ((2 + square) * (t * unit) - square * torch.outer(t @ unit, unit2))
        weighted = inverse * unit2
        s = s * inverse - b / (1 + b * (unit2 @ weighted)) * torch.outer(s @ weighted, weighted)
        t = t - alpha * ((2 + square) * (s * unit) - torch.outer(s @ unit2, unit))
        self.direction = self.direction + (weights @ t) / length
        self.scales = (self.scales * (1 + weights @ s)).clamp(min=SMALLEST_SCALE)

    @property
    def best(self) -> Tensor:
        """The mean."""
        return self.mean.to(self.genome.dtype)

    def center_and_spread(self) -> tuple[Tensor, float]:
        """The mean, and the root mean square of the standard deviations."""
        variances = self.scales.square() * (1 + self.direction.square())
        return self.mean, self.sigma * float(variances.mean().sqrt())

    def metrics(self) -> dict[str, float]:
        """See :meth:`Strategy.metrics`; also the step size."""
        return {**super().metrics(), "sigma": self.sigma}
