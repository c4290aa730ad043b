"""RMSprop (Tieleman & Hinton 2012) as in torch.optim."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from ...core.registry import register
from .base import Optimiser


@register("optimiser", "rmsprop")
class RMSprop(Optimiser):
    """RMSprop as in torch.optim: the average of squares starts at zero, and epsilon is outside the root."""

    published_lr = 1e-2
    smoothing: float = Field(default=0.99, ge=0, lt=1, description="averaging of the squared gradient")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="share of the last update that is kept")
    epsilon: float = Field(default=1e-8, gt=0, description="added to the root of the average")
    weight_decay: float = Field(default=0.0, ge=0, description="L2 penalty, added to the gradient")

    def make(self, parameters: Iterable[Tensor], lr: float) -> torch.optim.RMSprop:
        """See :meth:`Optimiser.make`."""
        return torch.optim.RMSprop(
            parameters, lr, self.smoothing, self.epsilon, self.weight_decay, momentum=self.momentum
        )

    def take_up(self, optimiser: Optimizer, moments: Mapping[Any, Any]) -> None:
        """See :meth:`Optimiser.take_up`; it has a buffer only with momentum: one that is switched on begins at rest."""
        super().take_up(optimiser, moments)
        for group in optimiser.param_groups:
            for gathered in (optimiser.state[parameter] for parameter in group["params"] if optimiser.state[parameter]):
                buffer = gathered.pop("momentum_buffer", torch.zeros_like(gathered["square_avg"]))
                if group["momentum"]:
                    gathered["momentum_buffer"] = buffer
