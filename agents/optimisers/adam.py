"""Adam (Kingma & Ba 2015) and AdamW (Loshchilov & Hutter 2019) as in torch.optim."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ...core.registry import register
from .base import Optimiser, Share


@register("optimiser", "adam")
class Adam(Optimiser):
    """Adam as in torch.optim."""

    made: ClassVar[type[torch.optim.Adam] | type[torch.optim.AdamW]] = torch.optim.Adam
    """The optimiser that it makes."""
    betas: tuple[Share, Share] = Field(
        default=(0.9, 0.999), strict=False, description="averaging of the gradient and the squared gradient"
    )
    epsilon: float = Field(default=1e-8, gt=0, description="added to the root of the average")
    weight_decay: float = Field(default=0.0, ge=0, description="L2 penalty, added to the gradient")

    def make(self, parameters: Iterable[Tensor], lr: float) -> torch.optim.Adam | torch.optim.AdamW:
        """See :meth:`Optimiser.make`."""
        # Fused: one kernel instead of a dozen for every parameter.
        return self.made(parameters, lr, self.betas, eps=self.epsilon, weight_decay=self.weight_decay, fused=True)


@register("optimiser", "adamw")
class AdamW(Adam):
    """Adam with decoupled weight decay, as in torch.optim: each weight shrinks by a share, whatever its gradient."""

    made: ClassVar[type[torch.optim.Adam] | type[torch.optim.AdamW]] = torch.optim.AdamW
    weight_decay: float = Field(
        default=1e-2, ge=0, description="times the learning rate: the share of each weight that an update takes off"
    )
