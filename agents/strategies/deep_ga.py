"""Deep GA (Such et al. 2017, arXiv 1712.06567): truncation selection, Gaussian mutation, chains of seeds as genomes."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ...core.registry import register
from .base import Initial, Strategy, resample

_SEEDS = 2**32
"""Seeds lie below this: torch's generator on the CPU looks at no more bits."""


@register("strategy", "deep-ga")
class DeepGA(Strategy):
    """A genetic algorithm without crossover whose genomes are chains of seeds.

    A chain ``[s0, s1, ..., sn]`` stands for the genome ``first(s0) + sigma * noise(s1) + ... + sigma * noise(sn)``,
    added up in this order, each ``noise(s)`` standard normal and drawn from that seed alone, as are the weights that it
    touches where ``share`` leaves some alone. A checkpoint holds chains,
    and :meth:`rebuild` gives back every genome bit for bit, on any device (by the same version of torch).
    """

    kept: ClassVar[frozenset[str]] = Strategy.kept | {"sigma", "share", "initial"}
    remembered: ClassVar[tuple[str, ...]] = ("parents", "elite")

    population: int = Field(
        default=1000, ge=2, description="P, members of a generation; from the second on, the elite is one of them"
    )
    truncation: int = Field(default=20, ge=1, description="fittest members that may be parents")
    sigma: float = Field(
        default=0.002, gt=0, description="standard deviation of the noise that mutation adds to each weight"
    )
    share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of the weights that mutation touches, each by chance; 1 touches all, as in the paper",
    )
    initial: Initial = Field(
        default="resampled",
        description="first genomes: drawn anew from the distribution of the circuit's weights, or mutated copies of "
        "these weights",
    )
    elite_candidates: int = Field(
        default=10,
        ge=0,
        description="members that are evaluated again to find the elite, which lives on unchanged: the fittest, and "
        "the elite so far; 0: no second look",
    )
    elite_sequences: int = Field(default=30, ge=1, description="sequences of that second evaluation")

    @classmethod
    def check_options(cls, options: Any) -> None:
        """See :meth:`Component.check_options`."""
        super().check_options(options)
        for name in ("truncation", "elite_candidates"):
            if getattr(options, name) > options.population:
                raise ValueError(
                    f"{name}: got {getattr(options, name)}; allowed is at most population ({options.population})"
                )

    def setup(self) -> None:
        """See :class:`Strategy`."""
        super().setup()
        self.parents: list[list[int]] = []
        """Chains of those that may have children, the fittest first."""
        self.elite: list[int] = []
        """Chain of the elite; empty before the first generation."""
        self.chains: list[list[int]] = []
        """Chains of the population that was drawn last."""
        # On the CPU: from the same seed other devices draw other numbers, and a chain would be another genome there.
        self._noise = torch.Generator()
        self._parents = self.genome.new_empty(0, len(self.genome))
        self._elite = self.genome.clone()
        self._candidates: Tensor | None = None
        self._candidate_chains: list[list[int]] = []
        self._spread = 0.0
        self._mean = self.genome.clone()

    @property
    def recheck_sequences(self) -> int:
        """See :attr:`Strategy.recheck_sequences`."""
        return self.elite_sequences

    def first(self, seed: int) -> Tensor:
        """The first genome of a chain, ``[D]``."""
        if self.initial == "copied":
            return self._mutated(self.genome, seed)
        return resample(self.genome.cpu(), self.layout, self._noise.manual_seed(seed), 1)[0].to(self.genome)

    def _mutated(self, genome: Tensor, seed: int) -> Tensor:
        noise = torch.randn(len(genome), generator=self._noise.manual_seed(seed), dtype=genome.dtype, device="cpu")
        if self.share < 1:
            noise *= torch.rand(len(genome), generator=self._noise, device="cpu") < self.share
        # Multiplied, then added: a fused operation could round differently here and there.
        return noise.to(genome.device).mul_(self.sigma).add_(genome)

    def rebuild(self, chain: list[int]) -> Tensor:
        """The genome ``[D]`` that a chain of seeds stands for."""
        genome = self.first(chain[0])
        for seed in chain[1:]:
            genome = self._mutated(genome, seed)
        return genome

    def draw(self) -> Tensor:
        """The elite, then children of parents drawn evenly; in the first generation, fresh genomes; ``[P, D]``."""
        kept = 1 if self.elite else 0
        count = self.population - kept
        seeds = torch.randint(_SEEDS, (count,), generator=self.generator, device=self.genome.device).tolist()
        if not self.elite:
            self.chains = [[seed] for seed in seeds]
            return torch.stack([self.first(seed) for seed in seeds])
        chosen = torch.randint(len(self.parents), (count,), generator=self.generator, device=self.genome.device)
        genomes = self.genome.new_empty(self.population, len(self.genome))
        genomes[0] = self._elite
        for row, (parent, seed) in enumerate(zip(chosen.tolist(), seeds, strict=True), start=1):
            genomes[row] = self._mutated(self._parents[parent], seed)
        self.chains = [self.elite] + [
            [*self.parents[parent], seed] for parent, seed in zip(chosen.tolist(), seeds, strict=True)
        ]
        return genomes

    def update(self, fitness: Tensor, drawn: Any) -> None:
        """The fittest become the parents; the very fittest is the elite until :meth:`confirm` says otherwise.

        The candidates are the fittest; the elite so far takes the place of the last one if it is not among them, as in
        algorithm 1 of the paper.
        """
        order = torch.argsort(fitness, descending=True, stable=True)
        ranking = order.tolist()
        top = ranking[: self.truncation]
        self.parents = [self.chains[index] for index in top]
        self._parents = drawn[order[: len(top)]]
        rows = ranking[: self.elite_candidates]
        if rows and self.elite and 0 not in rows:  # the elite is the first of its generation
            rows = [*rows[: max(len(rows) - 1, 1)], 0]
        self.elite, self._elite = self.parents[0], self._parents[0].clone()
        self._candidates = drawn[rows] if rows else None
        self._candidate_chains = [self.chains[index] for index in rows]
        variance, self._mean = torch.var_mean(drawn, dim=0, correction=0)
        self._spread = float(variance.mean().sqrt())

    def candidates(self) -> Tensor | None:
        """The fittest members of the last generation and the elite so far, ``[C, D]``."""
        return self._candidates

    def confirm(self, fitness: Tensor) -> None:
        """The candidate with the highest fitness, ``[C]``, is the elite and a parent; of equal ones, the first.

        Raises:
            RuntimeError: there are no candidates.
            ValueError: the wrong shape.
        """
        if self._candidates is None:
            raise RuntimeError("confirm: there are no candidates")
        if fitness.shape != (len(self._candidates),):
            raise ValueError(f"fitness: got shape {list(fitness.shape)}; expected [{len(self._candidates)}]")
        fitness = self._finite(fitness)
        index = int(torch.argsort(fitness, descending=True, stable=True)[0])
        self.elite, self._elite = self._candidate_chains[index], self._candidates[index].clone()
        self._candidates = None
        if self.elite not in self.parents:
            self.parents = [self.elite, *self.parents[:-1]]
            self._parents = torch.cat([self._elite.unsqueeze(0), self._parents[:-1]])

    @property
    def best(self) -> Tensor:
        """The elite."""
        return self._elite

    def center_and_spread(self) -> tuple[Tensor, float]:
        """Of the last generation."""
        return self._mean, self._spread

    def metrics(self) -> dict[str, float]:
        """See :meth:`Strategy.metrics`; also how many mutations lie between the elite and its first genome."""
        return {**super().metrics(), "elite_mutations": float(max(len(self.elite) - 1, 0))}

    def load_state_dict(self, state: Any) -> None:
        """See :meth:`Strategy.load_state_dict`; parents and elite are rebuilt from their chains."""
        super().load_state_dict(state)
        self.parents = [list(chain) for chain in self.parents]
        self.elite = list(self.elite)
        self._candidates = None
        if self.elite:
            self._parents = torch.stack([self.rebuild(chain) for chain in self.parents])
            self._elite = self.rebuild(self.elite)
        else:
            self._elite = self.genome.clone()
