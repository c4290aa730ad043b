"""OpenAI-ES (Salimans et al. 2017, arXiv 1703.03864), with low-rank perturbations as an option."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ...core.members import Mirrored, Stack
from ...core.options import SMALLEST
from ...core.registry import register
from ..optimisers import Share, load_moments
from .base import Strategy
from .shaping import centred_ranks


@register("strategy", "openai-es")
class OpenAIES(Strategy):
    """Gradient ascent on the mean fitness of a cloud of mirrored perturbations: centred ranks, Adam, weight decay.

    With ``rank`` r the perturbation of an ``[O, I]`` weight matrix is ``A @ B.T / sqrt(r)`` with standard normal A
    ``[O, r]`` and B ``[I, r]`` (Sarkar et al. 2025, "Evolution strategies at the hyperscale", arXiv 2511.16652): the
    same variance per element and an unbiased estimate, at a fraction of the draws and products. Parameters that are
    no matrices, and matrices with no more than r rows or columns, are perturbed element by element.
    """

    remembered: ClassVar[tuple[str, ...]] = ("center", "moments", "sigma", "lr")
    adapted: ClassVar[Mapping[str, str]] = {"sigma": "sigma", "lr": "lr"}

    population: int = Field(
        default=200, ge=2, description="P, members of a generation; even, for they come in mirrored pairs"
    )
    sigma: float = Field(default=0.02, gt=0, description="standard deviation of the perturbation of each weight")
    sigma_decay: float = Field(default=1.0, gt=0, le=1, description="what sigma is multiplied by after each generation")
    lr: float = Field(default=0.01, gt=0, description="learning rate of Adam")
    lr_decay: float = Field(
        default=1.0, gt=0, le=1, description="what the learning rate is multiplied by after each generation"
    )
    betas: tuple[Share, Share] = Field(
        default=(0.9, 0.999), strict=False, description="averaging of Adam's gradient and squared gradient"
    )
    weight_decay: float = Field(default=0.005, ge=0, description="L2 penalty, added to the gradient")
    rank: int | None = Field(
        default=None,
        ge=1,
        description="rank of the perturbation of each weight matrix; null perturbs every weight on its own",
    )

    @classmethod
    def check_options(cls, options: Any) -> None:
        """See :meth:`Component.check_options`."""
        super().check_options(options)
        if options.population % 2:
            raise ValueError(
                f"population: got {options.population}; allowed is an even number, for sampling is mirrored"
            )

    def setup(self) -> None:
        """See :class:`Strategy`."""
        super().setup()
        self._center = self.genome.clone()
        # Adam descends -gradient + decay * center, as the authors' code does.
        self._adam = torch.optim.Adam(
            [self._center], self.lr, self.betas, weight_decay=self.weight_decay, maximize=True
        )
        # Adam makes them at the first step; what is made in torch.inference_mode() cannot be changed outside it.
        averages = {name: torch.zeros_like(self._center) for name in ("exp_avg", "exp_avg_sq")}
        load_moments(self._adam, {0: {"step": torch.zeros((), device="cpu"), **averages}})

    @property
    def center(self) -> Tensor:
        """Mean of the search distribution, ``[D]``."""
        return self._center

    @center.setter
    def center(self, value: Tensor) -> None:
        self._center.copy_(value)

    @property
    def moments(self) -> dict[str, Any]:
        """Adam's averages."""
        return self._adam.state_dict()["state"]

    @moments.setter
    def moments(self, value: dict[str, Any]) -> None:
        load_moments(self._adam, value)

    def draw(self) -> dict[str, Stack]:
        """Mirrored stacks around the centre; see :class:`Mirrored`."""
        pairs, rank = self.population // 2, self.rank
        if rank is None:
            return dict(self.layout.mirrored(self.center, self._normal(pairs, self.layout.size).mul_(self.sigma)))
        stacks: dict[str, Stack] = {}
        for name, center in self.layout.split(self.center).items():
            if center.dim() == 2 and min(center.shape) > rank:
                left = self._normal(pairs, center.shape[0], rank).mul_(self.sigma / rank**0.5)
                stacks[name] = Mirrored(center, left=left, right=self._normal(pairs, center.shape[1], rank))
            else:
                stacks[name] = Mirrored(center, self._normal(pairs, *center.shape).mul_(self.sigma))
        return stacks

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.genome.device, dtype=self.genome.dtype)

    def gradient(self, fitness: Tensor, drawn: dict[str, Mirrored]) -> Tensor:
        """Estimate of the gradient of the mean fitness, ``[D]``, times sigma: Σ_p rank_p ε_p / P.

        It is scaled by sigma as in the authors' code, on which the usual weight decay rests; Adam does not mind.
        """
        ranks = centred_ranks(fitness).to(self.genome.dtype)
        weights = (ranks[0::2] - ranks[1::2]) / (self.population * self.sigma)
        parts = []
        for stack in drawn.values():
            if stack.noise is not None:
                parts.append(torch.tensordot(weights, stack.noise, dims=1).flatten())
            else:
                assert stack.left is not None and stack.right is not None
                weighted = (stack.left * weights[:, None, None]).permute(1, 0, 2).flatten(1)
                parts.append((weighted @ stack.right.permute(0, 2, 1).flatten(0, 1)).flatten())
        return torch.cat(parts)

    def update(self, fitness: Tensor, drawn: Any) -> None:
        """One step of Adam along :meth:`gradient`."""
        self._center.grad = self.gradient(fitness, drawn)
        self._adam.param_groups[0]["lr"] = self.lr
        self._adam.step()
        self._center.grad = None
        self.lr *= self.lr_decay
        # The gradient is divided by it; a smaller one would be none in single precision.
        self.sigma = max(self.sigma * self.sigma_decay, SMALLEST)

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
