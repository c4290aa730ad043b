"""CMA-ES with a full covariance matrix (Hansen, "The CMA evolution strategy: a tutorial", arXiv 1604.00772)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from ...core.registry import register
from .base import Strategy, in_range

MAX_SIZE = 10_000
"""Weights up to which a full covariance matrix is kept; its eigenvectors take 10 D³ operations, 1.6 GB at this size."""


MOST_ROUNDED = 1e14
"""Ratio of the longest to the shortest axis of the covariance, beyond which its eigenvectors are mostly rounding."""
SMALLEST_CHANGE = 1e-12
"""Of fitness, or of the first step size, under which a search has come to rest (Auger & Hansen 2005)."""

RESTARTS = (
    *("population", "restarts_done", "began_at", "history"),
    *("large", "spent", "last_large", "kept_mean", "kept_fitness"),
)
"""Attributes that restarts need."""

MOST_DOUBLINGS = 9
"""After which restarts keep the size of the population (Hansen 2009 ends there); it would outgrow the memory."""


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
    raw = math.log((population + 1) / 2) - torch.arange(1, population + 1, dtype=torch.float64, device="cpu").log()
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

    Where fitness grows without end, it begins again around its last mean once members would no longer be finite.

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
        *RESTARTS,
    )
    adapted: ClassVar[Mapping[str, str]] = {"sigma": "sigma"}

    population: int | None = Field(  # type: ignore[assignment]
        default=None, ge=4, description="P, members of a generation; null: 4 + floor(3 log D)"
    )
    sigma: float = Field(default=0.1, gt=0, description="standard deviation of each weight at the start")
    restarts: Literal["none", "ipop", "bipop"] = Field(
        default="none",
        description="whether a search that has come to rest begins again around the first weights: ipop with twice the "
        "population each time (Auger & Hansen 2005), bipop in turn with that and with small populations and small "
        "steps, as many evaluations for each, and for a small one at most half of the last large one's (Hansen 2009). "
        "For fitness without noise, which never rests",
    )

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
        self.restarts_done = 0
        self.large = True
        """Whether this search is one of those with a growing population."""
        self.spent = (0, 0)
        """Evaluations that bipop has spent on large and on small populations."""
        self.last_large = 0
        """Evaluations of the last search with a large population."""
        self.kept_mean = self.genome.double()
        """Where the best search so far has come to rest, ``[D]``."""
        self.kept_fitness = -math.inf
        """Its best fitness there."""
        self._begin(self.genome.double(), self.sigma, self.population)

    def _begin(self, mean: Tensor, sigma: float, population: int) -> None:
        """Begin a search."""
        self.population = population
        self.rates = rates(len(mean), population, separable=self.separable)
        self.began_at = self.generation
        """Generation in which this search began."""
        self.history: tuple[float, ...] = ()
        """Best fitness of its last generations, the last one last."""
        self.mean, self.sigma = mean, sigma
        self.path_sigma = torch.zeros_like(mean)
        """``[D]``"""
        self.path_c = torch.zeros_like(mean)
        """``[D]``"""
        self.scales = torch.ones_like(mean)
        """Standard deviation along each axis, ``[D]``."""
        self.decomposed_at = self.generation
        """Generation in which the axes were last computed."""
        self._start_covariance()
        self._steps = mean.new_empty(0)

    def at_rest(self, fitness: Tensor) -> bool:
        """Whether this search has nothing more to find: fitness ``[P]`` or steps that no longer differ, or axes of too
        different lengths (Auger & Hansen 2005, section II; Hansen 2009, section 3).
        """
        length = 10 + math.ceil(30 * len(self.mean) / len(fitness))
        self.history = (*self.history, float(fitness.max()))[-length:]
        everything = torch.cat([fitness.cpu(), fitness.new_tensor(self.history).cpu()])
        flat = len(self.history) == length and float(everything.max() - everything.min()) < SMALLEST_CHANGE
        widest = max(float(self.scales.max()), float(self.path_c.abs().max()))
        short = self.sigma * widest < SMALLEST_CHANGE * self.options.sigma
        rounded = float(self.scales.max() / self.scales.min()) ** 2 > MOST_ROUNDED
        lost = bool((self.mean == self.mean + 0.2 * self.sigma * self.scales.min()).any())
        return flat or short or rounded or lost

    @property
    def _evaluations(self) -> int:
        """Of this search, those of the generation that ends included."""
        assert self.population is not None
        return (self.generation + 1 - self.began_at) * self.population

    def _begin_again(self) -> None:
        """Begin another search, around the first weights."""
        if max(self.history) > self.kept_fitness:
            self.kept_fitness, self.kept_mean = max(self.history), self.mean
        assert self.population is not None
        first = self.options.population or 4 + math.floor(3 * math.log(len(self.mean)))
        evaluations = self._evaluations
        if self.large:
            self.last_large = evaluations
        large, small = self.spent
        self.spent = (large + self.large * evaluations, small + (not self.large) * evaluations)
        wanted = first * 2 ** min(self.restarts_done + 1, MOST_DOUBLINGS)
        size, sigma = wanted, self.options.sigma
        self.large = not (self.restarts == "bipop" and self.restarts_done and self.spent[1] < self.spent[0])
        if not self.large:
            chance = torch.rand(2, generator=self.generator, device=self.mean.device, dtype=torch.float64).tolist()
            size = max(4, math.floor(first * (wanted / 2 / first / 2) ** (chance[0] ** 2)))
            sigma = self.options.sigma * 10 ** (-2 * chance[1])
        else:
            self.restarts_done += 1
        normal = torch.randn(len(self.mean), generator=self.generator, device=self.mean.device, dtype=torch.float64)
        self._begin_next(self.genome.double() + self.options.sigma * normal, sigma, size)

    def _begin_next(self, mean: Tensor, sigma: float, population: int) -> None:
        """Begin a search with the next generation; the one that ends is counted when all is told."""
        self.generation += 1
        self._begin(mean, sigma, population)
        self.generation -= 1

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`Strategy.load_state_dict`."""
        super().load_state_dict(state)
        assert self.population is not None
        self.rates = rates(len(self.mean), self.population, separable=self.separable)

    def _check_size(self, size: int) -> None:
        if size > MAX_SIZE:
            raise ValueError(
                f"strategy: got cma-es, whose full covariance matrix is for at most {MAX_SIZE:,} weights; there are "
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
        step, before = weights.clamp(min=0) @ steps, self.mean
        self.mean = self.mean + self.sigma * step
        self.path_sigma = (1 - r.c_sigma) * self.path_sigma + math.sqrt(
            r.c_sigma * (2 - r.c_sigma) * r.mu_eff
        ) * self._whiten(step)
        norm = float(torch.linalg.vector_norm(self.path_sigma))
        settled = math.sqrt(1 - (1 - r.c_sigma) ** (2 * (self.generation - self.began_at + 1)))
        on_path = float(norm / settled < (1.4 + 2 / (size + 1)) * r.expected_norm)
        self.path_c = (1 - r.c_c) * self.path_c + on_path * math.sqrt(r.c_c * (2 - r.c_c) * r.mu_eff) * step
        decay = 1 + r.c_1 * (1 - on_path) * r.c_c * (2 - r.c_c) - r.c_1 - r.c_mu * float(r.weights.sum())
        self._learn_covariance(decay, weights, steps)
        self.sigma *= math.exp(min(1.0, r.c_sigma / r.d_sigma * (norm / r.expected_norm - 1)))
        lost = not in_range(self.mean, self.sigma * self.scales.max(), self.genome.dtype)
        if lost:
            self.mean = before
        if self.restarts != "none":
            used_up = not self.large and 2 * self._evaluations >= self.last_large
            if self.at_rest(fitness) or used_up or lost:
                self._begin_again()
        elif lost:
            self._begin_next(before, self.options.sigma, len(steps))

    @property
    def best(self) -> Tensor:
        """The mean; after a restart that of an earlier search, as long as that has found better."""
        earlier = self.kept_fitness > max(self.history, default=-math.inf)
        return (self.kept_mean if earlier else self.mean).to(self.genome.dtype)

    def center_and_spread(self) -> tuple[Tensor, float]:
        """The mean, and the step size times the root mean square of the scales."""
        return self.mean, self.sigma * float(self.scales.square().mean().sqrt())

    def metrics(self) -> dict[str, float]:
        """See :meth:`Strategy.metrics`; also the step size and the ratio of the longest to the shortest axis."""
        ratio = float(self.scales.max() / self.scales.min())
        restarts = {"restarts": float(self.restarts_done)} if self.restarts != "none" else {}
        return {**super().metrics(), "sigma": self.sigma, "axis_ratio": ratio, **restarts}
