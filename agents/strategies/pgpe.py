"""PGPE with ClipUp (Sehnke et al. 2010; Toklu, Liskowski & Srivastava 2020, arXiv 2008.02387)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ...core.members import Stack
from ...core.registry import register
from .base import Strategy
from .shaping import centred_ranks


@register("strategy", "pgpe")
class PGPE(Strategy):
    """Policy gradients with parameter-based exploration: mirrored sampling, centred ranks, ClipUp.

    With ranks r+ and r- of the pair ``center ± ε``, means over pairs:
    gradient of the centre ``(r+ - r-) / 2 · ε``, of a standard deviation ``((r+ + r-) / 2) (ε² - σ²) / σ``.
    """

    remembered: ClassVar[tuple[str, ...]] = ("center", "deviations", "velocity")
    adapted: ClassVar[Mapping[str, str]] = {"sigma": "deviations"}

    population: int = Field(
        default=200, ge=2, description="P, members of a generation; even, for they come in mirrored pairs"
    )
    max_speed: float = Field(default=0.15, gt=0, description="largest norm of a step of the centre (ClipUp)")
    lr: float | None = Field(
        default=None, gt=0, description="length of the gradient once normalised (ClipUp); null: max_speed / 2"
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="share of the last step that is kept (ClipUp)")
    sigma: float | None = Field(
        default=None, gt=0, description="standard deviation of each weight at the start; null: 15 max_speed / sqrt(D)"
    )
    sigma_lr: float = Field(default=0.1, ge=0, description="learning rate of the standard deviations")
    sigma_max_change: float = Field(
        default=0.2, gt=0, lt=1, description="largest share by which a standard deviation changes in a generation"
    )

    @classmethod
    def check_options(cls, options: Any) -> None:
        """See :meth:`Component.check_options`."""
        super().check_options(options)
        if options.population % 2:
            raise ValueError(
                f"population: got {options.population}; allowed is an even number, for sampling is mirrored"
            )
        if options.lr is not None and options.lr > options.max_speed:
            raise ValueError(f"lr: got {options.lr}; allowed is at most max_speed ({options.max_speed})")

    def setup(self) -> None:
        """See :class:`Strategy`."""
        super().setup()
        self.step_length = self.lr or self.max_speed / 2
        """Of the normalised gradient."""
        self.center = self.genome.clone()
        """``[D]``"""
        self.deviations: Tensor = self.asked("sigma")
        """Standard deviation of each weight, ``[D]``."""
        self.velocity = torch.zeros_like(self.genome)
        """Last step of the centre, ``[D]``."""
        self._noise = self.genome.new_empty(0)

    def asked(self, option: str) -> Any:
        """See :meth:`Strategy.asked`; sigma of each weight, ``[D]``."""
        sigma = self.options.sigma or 15 * self.max_speed / math.sqrt(len(self.genome))
        return torch.full_like(self.genome, sigma)

    def draw(self) -> dict[str, Stack]:
        """Mirrored stacks around the centre."""
        self._noise = torch.randn(
            self.population // 2,
            len(self.genome),
            generator=self.generator,
            device=self.genome.device,
            dtype=self.genome.dtype,
        ).mul_(self.deviations)
        return dict(self.layout.mirrored(self.center, self._noise))

    def update(self, fitness: Tensor, drawn: Any) -> None:
        """One step of ClipUp, and of the standard deviations."""
        # Ranks are centred, so the baseline of the standard deviations is 0.
        ranks = centred_ranks(fitness).to(self.genome.dtype)
        plus, minus = ranks[0::2], ranks[1::2]
        noise, pairs = self._noise, self.population // 2
        gradient = ((plus - minus) / 2) @ noise / pairs
        both = (plus + minus) / 2
        sigma_gradient = (both @ noise.square_() / pairs - both.mean() * self.deviations.square()) / self.deviations
        self.velocity = self._clip_up(gradient)
        self.center = self.center + self.velocity
        largest = self.sigma_max_change * self.deviations
        self.deviations = self.deviations + (self.sigma_lr * sigma_gradient).clamp(-largest, largest)

    def _clip_up(self, gradient: Tensor) -> Tensor:
        """ClipUp (algorithm 1): the normalised gradient, momentum, and a limit on the length of the step."""
        norm = torch.linalg.vector_norm(gradient)
        # Members that are all equal have no direction to go.
        direction = gradient / norm if norm > 0 else gradient
        velocity = self.momentum * self.velocity + self.step_length * direction
        speed = torch.linalg.vector_norm(velocity)
        return velocity * (self.max_speed / speed) if speed > self.max_speed else velocity

    @property
    def best(self) -> Tensor:
        """The centre."""
        return self.center

    def center_and_spread(self) -> tuple[Tensor, float]:
        """The centre and the root mean square of the standard deviations."""
        return self.center, float(self.deviations.square().mean().sqrt())

    def metrics(self) -> dict[str, float]:
        """See :meth:`Strategy.metrics`; also the length of the last step."""
        return {**super().metrics(), "speed": float(torch.linalg.vector_norm(self.velocity))}
