"""Stochastic gradient descent as in torch.optim."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from pydantic import Field
from torch import Tensor

from ...core.registry import register
from .base import Optimiser


@register("optimiser", "sgd")
class SGD(Optimiser):
    """Gradient descent, with momentum where asked for, as in torch.optim."""

    momentum: float = Field(default=0.0, ge=0, lt=1, description="share of the last update that is kept")
    weight_decay: float = Field(default=0.0, ge=0, description="L2 penalty, added to the gradient")

    def make(self, parameters: Iterable[Tensor], lr: float) -> torch.optim.SGD:
        """See :meth:`Optimiser.make`."""
        return torch.optim.SGD(parameters, lr, self.momentum, weight_decay=self.weight_decay)
