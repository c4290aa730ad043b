"""Trust: the selection of GENREG, an individual's standing that fades unless it is earned again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...core.recorder import Chart, Histogram
from ...core.registry import register
from .base import LARGEST_FITNESS, Initial, Strategy, resample


def survivor_count(options: Any) -> int:
    """Members that live on: the share ``survivors`` of the ``population``, rounded, and at least one."""
    return max(1, round(options.survivors * options.population))


@register("strategy", "trust")
class Trust(Strategy):
    """Trust fades and is earned; the most trusted live on, and beget children in proportion to their trust.

    Each generation: ``trust = trust * (1 - decay) + fitness``. The share of the population with the highest trust
    survives; of equal trust, the one that comes first in the population (survivors come before children, the more
    trusted first). Parents are drawn among survivors with probability ``w / sum(w)`` where
    ``w = trust - min(0, lowest trust among survivors)``: in proportion to trust where no survivor's is negative, and
    counted from the lowest otherwise. Where all ``w`` are 0 every survivor is as likely as any other. A child is a
    mutated copy of its parent (or of a uniform mix of two) and inherits a share of the trust.
    """

    kept: ClassVar[frozenset[str]] = Strategy.kept | {"initial"}
    holds_members: ClassVar[bool] = True
    remembered: ClassVar[tuple[str, ...]] = ("genomes", "trust", "champion", "mutation_scale")
    adapted: ClassVar[Mapping[str, str]] = {"mutation_scale": "mutation_scale"}

    population: int = Field(default=200, ge=2, description="P, members of a generation")
    survivors: float = Field(
        default=0.2, gt=0, le=1, description="share of the population with the highest trust that lives on"
    )
    decay: float = Field(
        default=0.2, ge=0, lt=1, description="share of its trust that a member loses before its fitness is added"
    )
    decay_per: Literal["generation", "sample"] = Field(
        default="generation",
        description="whether trust decays once per generation, or before the fitness of every single sequence",
    )
    inheritance: float = Field(default=0.03, ge=0, description="share of its parents' trust that a child starts with")
    crossover: bool = Field(
        default=False,
        description="each weight of a child comes from one of two parents; its trust is a share of the sum of theirs",
    )
    child_mutation: float = Field(
        default=0.07, ge=0, le=1, description="share of a child's weights that mutation touches"
    )
    base_mutation: float = Field(
        default=0.08, ge=0, le=1, description="share of a survivor's weights that mutation touches"
    )
    mutation_scale: float = Field(
        default=0.1, gt=0, description="standard deviation of the noise that mutation adds to a weight"
    )
    mutation_decay: float = Field(
        default=1.0, gt=0, le=1, description="what mutation_scale is multiplied by after each generation"
    )
    elite: int = Field(default=0, ge=0, description="members with the highest trust that live on without mutation")
    initial: Initial = Field(
        default="resampled",
        description="first genomes: drawn anew from the distribution of the circuit's weights, or mutated copies of "
        "these weights",
    )

    @classmethod
    def check_options(cls, options: Any) -> None:
        """See :meth:`Component.check_options`."""
        super().check_options(options)
        survivors = survivor_count(options)
        if options.crossover and survivors < 2:
            raise ValueError(
                f"survivors: got {options.survivors}, {survivors} of {options.population}; crossover needs two parents"
            )
        if options.elite > survivors:
            raise ValueError(f"elite: got {options.elite}; allowed is at most the number of survivors ({survivors})")

    def setup(self) -> None:
        """See :class:`Strategy`."""
        super().setup()
        self.survivor_count = survivor_count(self)
        self.trust = torch.zeros(self.population, device=self.genome.device, dtype=torch.float64)
        """``[P]``"""
        self.champion = self.genome.clone()
        """The genome that had the highest trust in the last generation, as it was evaluated, ``[D]``."""
        if self.initial == "resampled":
            self.genomes = resample(self.genome, self.layout, self.generator, self.population)
        else:
            self.genomes = self.genome.repeat(self.population, 1)
            self._mutate(self.genomes[1:], self.child_mutation)
        # Two buffers in turn: fresh memory of this size would cost as much as the mutation.
        self._next = torch.empty_like(self.genomes)

    @property
    def per_sample(self) -> bool:
        """Decay per sample needs the fitness of each sequence."""
        return self.decay_per == "sample"

    def draw(self) -> Tensor:
        """The genomes, ``[P, D]``."""
        return self.genomes

    def exchange(self, genomes: Tensor) -> None:
        """See :meth:`Strategy.exchange`."""
        self.genomes.copy_(genomes)

    def _earn(self, fitness: Tensor) -> Tensor:
        kept = 1 - self.decay
        if not self.per_sample:
            trust = self.trust * kept + fitness
        else:
            samples = fitness.shape[1]
            ages = torch.arange(samples - 1, -1, -1, device=fitness.device, dtype=fitness.dtype)
            trust = self.trust * kept**samples + fitness @ kept**ages
        # Children that inherit more than decays would outgrow all numbers.
        return trust.clamp(-LARGEST_FITNESS, LARGEST_FITNESS)

    def update(self, fitness: Tensor, drawn: Any) -> None:
        """Trust, survivors, children, mutation."""
        trust, order = torch.sort(self._earn(fitness), descending=True, stable=True)
        count, children = self.survivor_count, self.population - self.survivor_count
        self.champion = self.genomes[order[0]].clone()
        torch.index_select(self.genomes, 0, order[:count], out=self._next[:count])
        chosen = self.parents(trust[:count], children)
        inherited = trust[chosen[0]] * self.inheritance
        torch.index_select(self.genomes, 0, order[chosen[0]], out=self._next[count:])
        if self.crossover:
            born = self._next[count:]
            other = torch.index_select(self.genomes, 0, order[chosen[1]])
            # With coins of exactly 0 and 1 this copies exactly, ten times as fast as torch.where.
            torch.lerp(born, other, self._coins(*born.shape), out=born)
            inherited = (trust[chosen[0]] + trust[chosen[1]]) * self.inheritance
        self._mutate(self._next[self.elite : count], self.base_mutation)
        self._mutate(self._next[count:], self.child_mutation)
        self.trust = torch.cat([trust[:count], inherited])
        self.genomes, self._next = self._next, self.genomes
        self.mutation_scale *= self.mutation_decay

    def parents(self, trust: Tensor, children: int) -> Tensor:
        """Indices of the parents of each child, ``[2, children]`` (``[1, children]`` without crossover).

        Args:
            trust: of the survivors, ``[S]``, the highest first.
            children: how many to draw for; two parents of one child are different survivors.
        """
        if children == 0:
            return torch.empty(2, 0, dtype=torch.long, device=trust.device)
        weights = trust - trust[-1].clamp(max=0)
        if not weights.sum() > 0:
            weights = torch.ones_like(weights)
        if not self.crossover:
            return torch.multinomial(weights, children, replacement=True, generator=self.generator).unsqueeze(0)
        # A second parent must be found even where one survivor holds all the trust.
        weights = weights / weights.sum() + 1e-12
        return torch.multinomial(weights.expand(children, -1), 2, generator=self.generator).T

    def _coins(self, rows: int, columns: int) -> Tensor:
        """Fair coins, ``[rows, columns]`` of 0 and 1: the bits of random words, 64 for each draw."""
        words = torch.empty(rows, math.ceil(columns / 64), dtype=torch.long, device=self.genome.device)
        drawn = words.random_(-(2**63), None, generator=self.generator).view(torch.uint8)
        bits = 1 << torch.arange(8, device=self.genome.device, dtype=torch.uint8)
        return (drawn.unsqueeze(-1) & bits).ne_(0).flatten(1)[:, :columns].to(self.genome.dtype)

    def _mutate(self, genomes: Tensor, rate: float) -> None:
        """Add noise to a share of the weights of each genome ``[rows, D]``, in place.

        Positions are drawn with replacement, as many as touch the share of different ones that is asked for on
        average, ``-D log(1 - rate)``; what is drawn twice gets both. This costs draws for the share alone. At least one
        is drawn, so that no child is a mere copy: of a genome of few weights, that is a larger share.
        """
        rows, size = genomes.shape
        if rate == 0 or rows == 0:
            return
        if rate > 0.5:
            noise = torch.randn(rows, size, generator=self.generator, device=genomes.device, dtype=genomes.dtype)
            if rate < 1:
                noise *= torch.rand(rows, size, generator=self.generator, device=genomes.device) < rate
            genomes.add_(noise, alpha=self.mutation_scale)
            return
        touched = max(1, round(-size * math.log1p(-rate)))
        index = torch.randint(size, (rows, touched), generator=self.generator, device=genomes.device)
        noise = torch.randn(rows, touched, generator=self.generator, device=genomes.device, dtype=genomes.dtype)
        genomes.scatter_add_(1, index, noise.mul_(self.mutation_scale))

    @property
    def best(self) -> Tensor:
        """The genome with the highest trust in the last generation."""
        return self.champion

    def center_and_spread(self) -> tuple[Tensor, float]:
        """Of the genomes."""
        variance, center = torch.var_mean(self.genomes, dim=0, correction=0)
        return center, float(variance.mean().sqrt())

    def charts(self) -> dict[str, Chart]:
        """The trust of the members."""
        return {"trust": Histogram(self.trust.tolist(), "trust")}

    def metrics(self) -> dict[str, float]:
        """See :meth:`Strategy.metrics`; also the trust of the population, least to most."""
        shares = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], device=self.trust.device, dtype=self.trust.dtype)
        names = ("trust_least", "trust_lower_quartile", "trust_median", "trust_upper_quartile", "trust_most")
        quantiles = torch.quantile(self.trust, shares).tolist()
        return {**super().metrics(), **dict(zip(names, quantiles, strict=True)), "mutation_scale": self.mutation_scale}
