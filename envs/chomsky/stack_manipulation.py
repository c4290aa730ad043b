"""Stack manipulation: what is on a stack in the end (Delétang et al. 2023, deterministic context-free)."""

from __future__ import annotations

import torch

from ...core.registry import register
from ..strings import StringEnv, Strings


@register("env", "stack-manipulation")
class StackManipulationEnv(StringEnv):
    """Bits of a stack from the bottom up, then pops and pushes; the answer is the stack from the top down, and an end.

    What comes after the end counts neither in the loss nor in the accuracy; the suite trains on it as well. To pop from
    an empty stack does nothing.
    """

    symbols = ("0", "1", "pop", "push 0", "push 1")
    classes = ("0", "1", "end")

    def strings(self, length: int, batch_size: int, generator: torch.Generator) -> Strings:
        """See :meth:`StringEnv.strings`."""
        filled = 1 + self.uniform(max(length - 1, 1), batch_size, generator=generator)
        bits = self.uniform(2, length, batch_size, generator=generator)
        actions = 2 + self.uniform(3, length, batch_size, generator=generator)
        question = torch.where(self.steps(length) < filled, bits, actions)
        stack, depth = torch.zeros_like(question), torch.zeros_like(filled)
        for token in question:
            pops = token == 2
            # What lies above the top does not count, so that a pop may leave it there.
            stack.scatter_(0, depth.unsqueeze(0), torch.where(token > 2, token - 3, token).unsqueeze(0))
            depth = torch.where(pops, (depth - 1).clamp(min=0), depth + 1)
        place = self.steps(length + 1)
        popped = stack.gather(0, (depth - 1 - place).clamp(min=0))
        answer = torch.where(place < depth, popped, torch.where(place == depth, 2, 0))
        return Strings(question, answer, place <= depth)
