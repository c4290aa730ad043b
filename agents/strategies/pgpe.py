"""PGPE with ClipUp (Sehnke et al. 2010; Toklu, Liskowski & Srivastava 2020, arXiv 2008.02387)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ...core.stacked import Layout, Stack
from .base import Strategy, StrategyOptions
from .shaping import centred_ranks


class PGPEOptions(StrategyOptions):
    """Options of :class:`PGPE`; null takes the rule of thumb of Toklu et al., which needs only ``max_speed``."""

    type: Literal["pgpe"] = "pgpe"
    population: int = Field(200, ge=2)
    """P, members of a generation; even, for they come in mirrored pairs."""
    max_speed: float = Field(0.15, gt=0)
    """Largest norm of a step of the centre (ClipUp)."""
    lr: float | None = Field(None, gt=0)
    """Length of the gradient once normalised (ClipUp); null: max_speed / 2."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Share of the last step that is kept (ClipUp)."""
    sigma: float | None = Field(None, gt=0)
    """Standard deviation of each weight at the start; null: 15 max_speed / sqrt(D)."""
    sigma_lr: float = Field(0.1, ge=0)
    """Learning rate of the standard deviations."""
    sigma_max_change: float = Field(0.2, gt=0, lt=1)
    """Largest share by which a standard deviation changes in a generation."""

    @model_validator(mode="after")
    def _check(self) -> PGPEOptions:
        if self.population % 2:
            raise ValueError(f"population: got {self.population}; allowed is an even number, for sampling is mirrored")
        if self.lr is not None and self.lr > self.max_speed:
            raise ValueError(f"lr: got {self.lr}; allowed is at most max_speed ({self.max_speed})")
        return self


class PGPE(Strategy):
    """Policy gradients with parameter-based exploration: mirrored sampling, centred ranks, ClipUp.

    With ranks r+ and r- of the pair ``center ± ε``, means over pairs:
    gradient of the centre ``(r+ - r-) / 2 · ε``, of a standard deviation ``((r+ + r-) / 2) (ε² - σ²) / σ``.
    """

    Options = PGPEOptions
    remembered = ("center", "sigma", "velocity")
    adapted = {"sigma": "sigma"}  # noqa: RUF012 (as the base declares it)
    options: PGPEOptions

    def __init__(self, options: PGPEOptions, initial: Tensor, *, seed: int = 0, layout: Layout | None = None) -> None:
        """See :class:`Strategy`."""
        super().__init__(options, initial, population=options.population, seed=seed, layout=layout)
        self.lr = options.lr or options.max_speed / 2
        self.center = self.initial.clone()
        """``[D]``"""
        self.sigma: Tensor = self.asked("sigma")
        """``[D]``"""
        self.velocity = torch.zeros_like(self.initial)
        """Last step of the centre, ``[D]``."""
        self._noise = self.initial.new_empty(0)

    def asked(self, option: str) -> Any:
        """See :meth:`Strategy.asked`; sigma of each weight, ``[D]``."""
        options = self.options
        sigma = options.sigma or 15 * options.max_speed / math.sqrt(len(self.initial))
        return torch.full_like(self.initial, sigma)

    def draw(self) -> dict[str, Stack]:
        """Mirrored stacks around the centre."""
        self._noise = torch.randn(
            self.population // 2,
            len(self.initial),
            generator=self.generator,
            device=self.initial.device,
            dtype=self.initial.dtype,
        ).mul_(self.sigma)
        return dict(self.layout.mirrored(self.center, self._noise))

    def update(self, fitness: Tensor, drawn: Any) -> None:
        """One step of ClipUp, and of the standard deviations."""
        # Ranks are centred, so the baseline of the standard deviations is 0.
        ranks = centred_ranks(fitness).to(self.initial.dtype)
        plus, minus = ranks[0::2], ranks[1::2]
        noise, pairs = self._noise, self.population // 2
        gradient = ((plus - minus) / 2) @ noise / pairs
        both = (plus + minus) / 2
        sigma_gradient = (both @ noise.square_() / pairs - both.mean() * self.sigma.square()) / self.sigma
        self.velocity = self._clip_up(gradient)
        self.center = self.center + self.velocity
        largest = self.options.sigma_max_change * self.sigma
        self.sigma = self.sigma + (self.options.sigma_lr * sigma_gradient).clamp(-largest, largest)

    def _clip_up(self, gradient: Tensor) -> Tensor:
        """ClipUp (algorithm 1): the normalised gradient, momentum, and a limit on the length of the step."""
        norm = torch.linalg.vector_norm(gradient)
        # Members that are all equal have no direction to go.
        direction = gradient / norm if norm > 0 else gradient
        velocity = self.options.momentum * self.velocity + self.lr * direction
        speed = torch.linalg.vector_norm(velocity)
        return velocity * (self.options.max_speed / speed) if speed > self.options.max_speed else velocity

    @property
    def best(self) -> Tensor:
        """The centre."""
        return self.center

    def center_and_spread(self) -> tuple[Tensor, float]:
        """The centre and the root mean square of the standard deviations."""
        return self.center, float(self.sigma.square().mean().sqrt())

    def metrics(self) -> dict[str, float]:
        """See :meth:`Strategy.metrics`; also the length of the last step."""
        return {**super().metrics(), "speed": float(torch.linalg.vector_norm(self.velocity))}
