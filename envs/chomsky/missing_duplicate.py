"""Missing duplicate: which bit was left out of a string that comes twice (Delétang et al. 2023, context-sensitive)."""

from __future__ import annotations

import torch

from ...core.registry import register
from ..strings import StringEnv, Strings


@register("env", "missing-duplicate")
class MissingDuplicateEnv(StringEnv):
    """A binary string twice, one bit of which is missing, and an empty token where the length is odd: 0110 0?10.

    The answer is the bit. A string of a single token is a 1, and so is its answer.
    """

    symbols = ("0", "1", "missing", "empty")
    classes = ("0", "1")

    def strings(self, length: int, batch_size: int, generator: torch.Generator) -> Strings:
        """See :meth:`StringEnv.strings`."""
        if length == 1:
            ones = torch.ones(1, batch_size, dtype=torch.int64, device=self.device)
            return Strings(ones, ones)
        half = self.uniform(2, length // 2, batch_size, generator=generator)
        whole = torch.cat([half, half])
        place = self.uniform(len(whole), 1, batch_size, generator=generator)
        question = torch.cat([whole.scatter(0, place, 2), whole.new_full((length % 2, batch_size), 3)])
        return Strings(question, whole.gather(0, place))
