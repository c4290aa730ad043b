"""Steps to think between a question and its answer, for tasks that ask at any step."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.env import Batch


def with_thinking(batch: Batch, steps: int, blank: int | float = 0) -> Batch:
    """The same batch with some more steps after each one that is answered; the last of them is answered instead.

    Args:
        batch: time first, with classes ``[T, B]`` as its targets.
        steps: how many, S.
        blank: what the inputs are meanwhile.

    Returns:
        A batch of T + AS steps, A the most answers of any sequence.
    """
    if not steps:
        return batch
    inputs, targets, mask = batch
    asked = (mask > 0).long()
    before = asked.cumsum(0) - asked
    place = torch.arange(len(mask), device=mask.device).unsqueeze(-1) + steps * before
    total = len(mask) + steps * int(asked.sum(0).max())

    def put(part: Tensor, where: Tensor, fill: float) -> Tensor:
        where = where.view(*where.shape, *[1] * (part.dim() - 2)).expand_as(part)
        return part.new_full((total, *part.shape[1:]), fill).scatter(0, where, part)

    later = place + steps * asked
    return Batch(put(inputs, place, blank), put(targets, later, 0), put(mask, later, 0))
