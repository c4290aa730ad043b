"""CMA-ES with a full covariance matrix (Hansen, "The CMA evolution strategy: a tutorial", arXiv 1604.00772)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from ...core.registry import register
from .base import Strategy

MAX_SIZE = 10_000
"""Weights up to which a full covariance matrix is kept; its eigenvectors take 10 D³ operations, 1.6 GB at this size."""


class Rates(NamedTuple):
    """Weights and learning rates (table 1 of the tutorial), in its names."""

    weights: Tensor
    """``[P]``, best first; the first half is positive and sums to 1, the rest is negative or 0."""
    mu: int
    mu_eff: float
    c_sigma: float
    d_sigma: float
    c_c: float
    c_1: float
    c_mu: float
    expected_norm: float
    """Expected length of a standard normal vector."""


def rates(size: int, population: int, *, separable: bool = False) -> Rates:
    """Table 1 of the tutorial, for D weights and P members.

    Args:
        size: D
        population: P
        separable: learn faster by (D + 2) / 3, with positive weights only, as suits a diagonal covariance
            (Ros & Hansen 2008).
    """
    raw = math.log((population + 1) / 2) - torch.arange(1, population + 1, dtype=torch.float64).log()
    mu = population // 2
    positive, negative = raw[:mu], raw[mu:]
    mu_eff = float(positive.sum() ** 2 / positive.square().sum())
    mu_eff_negative = float(negative.sum() ** 2 / negative.square().sum())
    c_sigma = (mu_eff + 2) / (size + mu_eff + 5)
    c_1 = 2 / ((size + 1.3) ** 2 + mu_eff)
    c_mu = min(1 - c_1, 2 * (0.25 + mu_eff + 1 / mu_eff - 2) / ((size + 2) ** 2 + mu_eff))
    if separable:
        factor = (size + 2) / 3
        c_1 = min(1.0, c_1 * factor)
        c_mu = min(1 - c_1, c_mu * factor)
        scale = 0.0
    else:
        scale = min(1 + c_1 / c_mu, 1 + 2 * mu_eff_negative / (mu_eff + 2), (1 - c_1 - c_mu) / (size * c_mu)) / -float(
            negative.clamp(max=0).sum()
        )
    return Rates(
        weights=torch.cat([positive / positive.sum(), negative * scale]),
        mu=mu,
        mu_eff=mu_eff,
        c_sigma=c_sigma,
        d_sigma=1 + 2 * max(0.0, math.sqrt((mu_eff - 1) / (size + 1)) - 1) + c_sigma,
        c_c=(4 + mu_eff / size) / (size + 4 + 2 * mu_eff / size),
        c_1=c_1,
        c_mu=c_mu,
        expected_norm=math.sqrt(size) * (1 - 1 / (4 * size) + 1 / (21 * size**2)),
    )


@register("strategy", "cma-es")
class CMAES(Strategy):
    """Learns the mean, the step size and the covariance of its search distribution; computes in float64.

    Our own, in torch, rather than a package: the state goes into a checkpoint as plain tensors and resumes bit for
    bit, and nothing needs numpy's global random state.
    """

    remembered: ClassVar[tuple[str, ...]] = (
        "mean",
        "sigma",
        "path_sigma",
        "path_c",
        "covariance",
        "axes",
        "scales",
        "decomposed_at",
    )
    adapted: ClassVar[Mapping[str, str]] = {"sigma": "sigma"}

    population: int | None = Field(  # type: ignore[assignment]
        default=None, ge=4, description="P, members of a generation; null: 4 + floor(3 log D)"
    )
    sigma: float = Field(default=0.1, gt=0, description="standard deviation of each weight at the start")

    separable = False

    def setup(self) -> None:
        """See :class:`Strategy`.

        Raises:
            ValueError: the genome is too long for a full covariance matrix.
        """
        size = len(self.genome)
        self._check_size(size)
        self.population = self.population or 4 + math.floor(3 * math.log(size))
        super().setup()
        self.rates = rates(size, self.population, separable=self.separable)
        self.mean = self.genome.double()
        """``[D]``"""
        self.path_sigma = torch.zeros_like(self.mean)
        """``[D]``"""
        self.path_c = torch.zeros_like(self.mean)
        """``[D]``"""
        self.scales = torch.ones_like(self.mean)
        """Standard deviation along each axis, ``[D]``."""
        self.decomposed_at = 0
        """Generation in which the axes were last computed."""
        self._start_covariance()
        self._steps = self.mean.new_empty(0)

    def _check_size(self, size: int) -> None:
        if size > MAX_SIZE:
            raise ValueError(
                f"strategy: cma-es keeps a full covariance matrix, for at most {MAX_SIZE:,} weights; the circuit has "
                f"{size:,}: take sep-cma-es"
            )

    def _start_covariance(self) -> None:
        self.covariance = torch.eye(len(self.mean), dtype=torch.float64, device=self.mean.device)
        """``[D, D]``"""
        self.axes = self.covariance.clone()
        """Eigenvectors of the covariance, one per column, ``[D, D]``."""

    def _shape(self, normal: Tensor) -> Tensor:
        """Standard normal vectors ``[P, D]`` -> vectors with the covariance."""
        return (normal * self.scales) @ self.axes.T

    def _whiten(self, vectors: Tensor) -> Tensor:
        """C^(-1/2) times vectors, ``[..., D]``."""
        return ((vectors @ self.axes) / self.scales) @ self.axes.T

    def _learn_covariance(self, decay: float, weights: Tensor, steps: Tensor) -> None:
        """Equation 47: decay, the evolution path (rank one), and the weighted steps (rank µ)."""
        # Steps that made things worse count with a fixed length, so that the covariance stays positive definite.
        lengths = self._whiten(steps).square().sum(1)
        scaled = torch.where(weights < 0, weights * len(self.mean) / lengths, weights)
        self.covariance = (
            decay * self.covariance
            + self.rates.c_1 * torch.outer(self.path_c, self.path_c)
            + self.rates.c_mu * (steps.T * scaled) @ steps
        )
        lag = max(1, math.floor(1 / (10 * len(self.mean) * (self.rates.c_1 + self.rates.c_mu))))
        if self.generation + 1 - self.decomposed_at >= lag:
            self._decompose()

    def _decompose(self) -> None:
        self.covariance = (self.covariance + self.covariance.T) / 2
        variances, self.axes = torch.linalg.eigh(self.covariance)
        self.scales = variances.clamp(min=1e-20).sqrt()
        self.decomposed_at = self.generation + 1

    def draw(self) -> Tensor:
        """Members around the mean, ``[P, D]``."""
        normal = torch.randn(
            len(self.rates.weights),
            len(self.mean),
            generator=self.generator,
            device=self.mean.device,
            dtype=torch.float64,
        )
        self._steps = self._shape(normal)
        return (self.mean + self.sigma * self._steps).to(self.genome.dtype)

    def update(self, fitness: Tensor, drawn: Any) -> None:
        """Equations 41 to 47 of the tutorial."""
        r, size = self.rates, len(self.mean)
        steps = self._steps
        weights = torch.empty(len(steps), dtype=steps.dtype, device=steps.device)
        weights[torch.argsort(fitness, descending=True, stable=True)] = r.weights.to(steps)
        step = weights.clamp(min=0) @ steps
        self.mean = self.mean + self.sigma * step
        self.path_sigma = (1 - r.c_sigma) * self.path_sigma + math.sqrt(
            r.c_sigma * (2 - r.c_sigma) * r.mu_eff
        ) * self._whiten(step)
        norm = float(torch.linalg.vector_norm(self.path_sigma))
        settled = math.sqrt(1 - (1 - r.c_sigma) ** (2 * (self.generation + 1)))
        on_path = float(norm / settled < (1.4 + 2 / (size + 1)) * r.expected_norm)
        self.path_c = (1 - r.c_c) * self.path_c + on_path * math.sqrt(r.c_c * (2 - r.c_c) * r.mu_eff) * step
        decay = 1 + r.c_1 * (1 - on_path) * r.c_c * (2 - r.c_c) - r.c_1 - r.c_mu * float(r.weights.sum())
        self._learn_covariance(decay, weights, steps)
        self.sigma *= math.exp(min(1.0, r.c_sigma / r.d_sigma * (norm / r.expected_norm - 1)))

    @property
    def best(self) -> Tensor:
        """The mean."""
        return self.mean.to(self.genome.dtype)

    def center_and_spread(self) -> tuple[Tensor, float]:
        """The mean, and the step size times the root mean square of the scales."""
        return self.mean, self.sigma * float(self.scales.square().mean().sqrt())

    def metrics(self) -> dict[str, float]:
        """See :meth:`Strategy.metrics`; also the step size and the ratio of the longest to the shortest axis."""
        ratio = float(self.scales.max() / self.scales.min())
        return {**super().metrics(), "sigma": self.sigma, "axis_ratio": ratio}
