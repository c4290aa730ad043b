"""Optimisers that torch.optim lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class TensorFlowRMSprop(Optimizer):
    """RMSprop as in TensorFlow 1: the squared average starts at one and epsilon is inside the root.

    The published settings of the DNC assume it: with ``torch.optim.RMSprop``, whose average starts at zero, the first
    steps are many times larger.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        *,
        smoothing: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-10,
    ) -> None:
        """
        Args:
            parameters: what to optimise.
            lr: learning rate.
            smoothing: share of the squared average that each step keeps.
            momentum: share of the last update that each step keeps.
            epsilon: added to the squared average under the root.
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
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["square_average"] = torch.ones_like(parameter)
                    state["update"] = torch.zeros_like(parameter)
                square, update = state["square_average"], state["update"]
                square.lerp_(parameter.grad.square(), 1 - group["smoothing"])
                update.mul_(group["momentum"]).addcdiv_(
                    parameter.grad, (square + group["epsilon"]).sqrt_(), value=group["lr"]
                )
                parameter.sub_(update)
        return loss


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
