"""Augmented random search (Mania, Guy & Recht 2018, arXiv 1803.07055)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ...core.members import Mirrored, Stack
from ...core.registry import register
from .base import Strategy


@register("strategy", "ars")
class ARS(Strategy):
    """Steps along the best of a few random directions, by how much their two ends differ (algorithm 1).

    ``center += lr / (b σ_R) Σ (r⁺ - r⁻) δ`` over the b directions δ with the highest max(r⁺, r⁻), where members are
    ``center ± sigma δ``, r their fitness and σ_R the standard deviation of the 2b that count. As the paper has it,
    version 1 takes all observations as they are, and version 2 standardises them: that is a circuit of type
    ``normalised``. With ``top`` both are the versions called V1-t and V2-t.
    """

    remembered: ClassVar[tuple[str, ...]] = ("center", "sigma", "lr")
    adapted: ClassVar[Mapping[str, str]] = {"sigma": "sigma", "lr": "lr"}

    population: int = Field(
        default=16, ge=2, description="P, members of a generation; even, two for each of N directions"
    )
    top: int | None = Field(
        default=None, ge=1, description="b, directions that count, those with the best member; null takes all"
    )
    sigma: float = Field(default=0.03, gt=0, description="ν, standard deviation of the perturbation of each weight")
    lr: float = Field(
        default=0.02, gt=0, description="α, length of a step in units of the standard deviation of fitness"
    )

    @classmethod
    def check_options(cls, options: Any) -> None:
        """See :meth:`Component.check_options`."""
        super().check_options(options)
        if options.population % 2:
            raise ValueError(
                f"population: got {options.population}; allowed is an even number, for sampling is mirrored"
            )
        if options.top is not None and options.top > options.population // 2:
            raise ValueError(
                f"top: got {options.top}; allowed is at most the number of directions ({options.population // 2})"
            )

    def setup(self) -> None:
        """See :class:`Strategy`."""
        super().setup()
        self.center = self.genome.clone()
        """``[D]``"""
        self._directions = self.genome.new_empty(0)

    def draw(self) -> dict[str, Stack]:
        """Mirrored stacks around the centre; see :class:`Mirrored`."""
        shape = self.population // 2, len(self.genome)
        self._directions = torch.randn(
            shape, generator=self.generator, device=self.genome.device, dtype=self.genome.dtype
        )
        stacks: dict[str, Mirrored] = self.layout.mirrored(self.center, self.sigma * self._directions)
        return dict(stacks)

    def update(self, fitness: Tensor, drawn: Any) -> None:
        """One step; none where all that count are equally fit."""
        pairs = fitness.view(-1, 2)
        order = torch.argsort(pairs.amax(1), descending=True, stable=True)[: self.top]
        chosen = pairs[order]
        spread = chosen.std(correction=0)
        if spread > 0:
            weights = (chosen[:, 0] - chosen[:, 1]) * (self.lr / len(chosen) / spread)
            self.center = self.center + weights.to(self.center) @ self._directions[order]

    @property
    def best(self) -> Tensor:
        """The centre."""
        return self.center

    def center_and_spread(self) -> tuple[Tensor, float]:
        """The centre and sigma."""
        return self.center, self.sigma

    def metrics(self) -> dict[str, float]:
        """See :meth:`Strategy.metrics`."""
        return {**super().metrics(), "sigma": self.sigma, "learning_rate": self.lr}
