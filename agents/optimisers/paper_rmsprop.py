"""RMSprop as the DNC and the NTM were trained by it: with epsilon inside the root, which torch.optim lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from ...core.registry import register
from .base import Optimiser


class PaperRMSprop(Optimizer):
    """RMSprop with epsilon inside the root; see the two kinds of it below."""

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        *,
        smoothing: float,
        momentum: float,
        epsilon: float,
        first_square: float,
        centred: bool,
    ) -> None:
        """
        Args:
            parameters: what to optimise.
            lr: learning rate.
            smoothing: share of the averages that each step keeps.
            momentum: share of the last update that each step keeps.
            epsilon: added under the root.
            first_square: what the average of squares starts at.
            centred: take the square of the average gradient off the average of squares.
        """
        super().__init__(parameters, {"lr": lr, "smoothing": smoothing, "momentum": momentum, "epsilon": epsilon})
        self.first_square = first_square
        self.centred = centred

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._update(parameters, **{name: group[name] for name in group if name != "params"})
        return loss

    def _update(
        self, parameters: list[Tensor], *, lr: float, smoothing: float, momentum: float, epsilon: float
    ) -> None:
        """Of all parameters at once: one after another, most of the time would go into calls, on a GPU above all."""
        gradients: Any = [parameter.grad for parameter in parameters]
        squares, updates = self._kept("square_average", parameters, self.first_square), self._kept("update", parameters)
        torch._foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), 1 - smoothing)
        spread: Any = squares
        if self.centred:
            averages = self._kept("average", parameters)
            torch._foreach_lerp_(averages, gradients, 1 - smoothing)
            # A variance, which only rounding takes below zero.
            spread = torch._foreach_sub(squares, torch._foreach_mul(averages, averages))
            torch._foreach_clamp_min_(spread, 0)
        roots = torch._foreach_add(spread, epsilon)
        torch._foreach_sqrt_(roots)
        torch._foreach_mul_(updates, momentum)
        torch._foreach_addcdiv_(updates, gradients, roots, lr)
        torch._foreach_sub_(parameters, updates)

    def _kept(self, name: str, parameters: list[Tensor], first: float = 0.0) -> list[Tensor]:
        """What is kept of each parameter under a name; at first the same number everywhere."""
        for parameter in parameters:
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.full_like(parameter, first)
        return [self.state[parameter][name] for parameter in parameters]


@register("optimiser", "tensorflow-rmsprop")
class TensorFlowRMSprop(Optimiser):
    """RMSprop as in TensorFlow 1: the average of squares starts at one, and epsilon is inside the root.

    The published settings of the DNC assume it: with ``torch.optim.RMSprop``, whose average starts at zero, the first
    steps are many times larger.
    """

    published_lr = 1e-4
    smoothing: float = Field(default=0.9, ge=0, lt=1, description="averaging of the squared gradient")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="share of the last update that is kept")
    epsilon: float = Field(default=1e-10, gt=0, description="added to the average, inside the root")

    def make(self, parameters: Iterable[Tensor], lr: float) -> PaperRMSprop:
        """See :meth:`Optimiser.make`."""
        return PaperRMSprop(
            parameters,
            lr,
            smoothing=self.smoothing,
            momentum=self.momentum,
            epsilon=self.epsilon,
            first_square=1.0,
            centred=False,
        )


@register("optimiser", "graves-rmsprop")
class GravesRMSprop(Optimiser):
    """RMSprop centred on the average gradient (Graves 2013, arXiv 1308.0850, eqs. 38 to 41), which trained the NTM.

    ``n = a n + (1 - a) g²``, ``m = a m + (1 - a) g``, ``u = momentum u - lr g / sqrt(n - m² + epsilon)``, ``w = w + u``
    with ``a`` the smoothing, all starting at zero.
    """

    published_lr = 1e-4
    smoothing: float = Field(default=0.95, ge=0, lt=1, description="averaging of the gradient and of its square")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="share of the last update that is kept")
    epsilon: float = Field(default=1e-4, gt=0, description="added to the variance, inside the root")

    def make(self, parameters: Iterable[Tensor], lr: float) -> PaperRMSprop:
        """See :meth:`Optimiser.make`."""
        return PaperRMSprop(
            parameters,
            lr,
            smoothing=self.smoothing,
            momentum=self.momentum,
            epsilon=self.epsilon,
            first_square=0.0,
            centred=True,
        )
