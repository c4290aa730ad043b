"""The optimisers of the backprop agent, each with its published settings, and those that torch.optim lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer


class _RMSprop(Optimizer):
    """RMSprop with epsilon inside the root; see the two kinds of it."""

    first_square: ClassVar[float]
    """What the average of squares starts at."""
    centred: ClassVar[bool]
    """Whether the square of the average gradient is taken off the average of squares."""

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, *, smoothing: float, momentum: float, epsilon: float
    ) -> None:
        """
        Args:
            parameters: what to optimise.
            lr: learning rate.
            smoothing: share of the averages that each step keeps.
            momentum: share of the last update that each step keeps.
            epsilon: added under the root.
        """
        super().__init__(parameters, {"lr": lr, "smoothing": smoothing, "momentum": momentum, "epsilon": epsilon})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, **{name: group[name] for name in group if name != "params"})
        return loss

    def _update(
        self, parameter: Tensor, gradient: Tensor, *, lr: float, smoothing: float, momentum: float, epsilon: float
    ) -> None:
        state = self.state[parameter]
        if not state:
            state["square_average"] = torch.full_like(parameter, self.first_square)
            state["update"] = torch.zeros_like(parameter)
            if self.centred:
                state["average"] = torch.zeros_like(parameter)
        spread = state["square_average"].lerp_(gradient.square(), 1 - smoothing)
        if self.centred:
            average = state["average"].lerp_(gradient, 1 - smoothing)
            # A variance, which only rounding takes below zero.
            spread = (spread - average.square()).clamp_(min=0)
        state["update"].mul_(momentum).addcdiv_(gradient, (spread + epsilon).sqrt_(), value=lr)
        parameter.sub_(state["update"])


class TensorFlowRMSprop(_RMSprop):
    """RMSprop as in TensorFlow 1: the average of squares starts at one, and epsilon is inside the root.

    The published settings of the DNC assume it: with ``torch.optim.RMSprop``, whose average starts at zero, the first
    steps are many times larger.
    """

    first_square = 1.0
    centred = False


class GravesRMSprop(_RMSprop):
    """RMSprop centred on the average gradient (Graves 2013, arXiv 1308.0850, eqs. 38 to 41), which trained the NTM.

    ``n = a n + (1 - a) g²``, ``m = a m + (1 - a) g``, ``u = momentum u - lr g / sqrt(n - m² + epsilon)``, ``w = w + u``
    with ``a`` the smoothing, all starting at zero.
    """

    first_square = 0.0
    centred = True


def _adam(parameters: Iterable[Tensor], lr: float, *, epsilon: float, **options: Any) -> Optimizer:
    # Fused: one kernel instead of a dozen for every parameter.
    return torch.optim.Adam(parameters, lr, eps=epsilon, fused=True, **options)


def _rmsprop(parameters: Iterable[Tensor], lr: float, *, smoothing: float, epsilon: float, **options: Any) -> Optimizer:
    return torch.optim.RMSprop(parameters, lr, alpha=smoothing, eps=epsilon, **options)


class Entry(NamedTuple):
    """An optimiser that options can name."""

    build: Callable[..., Optimizer]
    """Takes parameters, and by name the options below."""
    defaults: Mapping[str, Any]
    """The options that it has, with their published values; it has no others."""


OPTIMISERS: Mapping[str, Entry] = {
    "adam": Entry(_adam, {"lr": 1e-3, "betas": (0.9, 0.999), "epsilon": 1e-8, "weight_decay": 0.0}),
    "rmsprop": Entry(_rmsprop, {"lr": 1e-2, "smoothing": 0.99, "momentum": 0.0, "epsilon": 1e-8, "weight_decay": 0.0}),
    "tensorflow-rmsprop": Entry(TensorFlowRMSprop, {"lr": 1e-4, "smoothing": 0.9, "momentum": 0.0, "epsilon": 1e-10}),
    "graves-rmsprop": Entry(GravesRMSprop, {"lr": 1e-4, "smoothing": 0.95, "momentum": 0.9, "epsilon": 1e-4}),
}
"""Adam and RMSprop as in torch.optim, TensorFlow's as DeepMind used it for the DNC, Graves' as in the NTM paper."""

OPTIONS = tuple(dict.fromkeys(name for entry in OPTIMISERS.values() for name in entry.defaults))
"""Every option that some optimiser has."""


def load_moments(optimiser: Optimizer, moments: Mapping[Any, Any]) -> None:
    """Give an optimiser what one of its kind has gathered, averages and counts; its settings stay as they are.

    Args:
        optimiser: of as many parameters.
        moments: the part ``state`` of the other's ``state_dict()``.
    """
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    if isinstance(optimiser, torch.optim.RMSprop):
        # It has a buffer only with momentum: one that is switched on begins at rest.
        for group in optimiser.param_groups:
            for gathered in (optimiser.state[parameter] for parameter in group["params"] if optimiser.state[parameter]):
                buffer = gathered.pop("momentum_buffer", torch.zeros_like(gathered["square_avg"]))
                if group["momentum"]:
                    gathered["momentum_buffer"] = buffer
