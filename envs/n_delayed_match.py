"""N-delayed match to sample: is the last bit the same as N - 1 before (Khajehabdollahi et al. 2024, section 2.1)?"""

from __future__ import annotations

from torch import Tensor

from ..core.registry import register
from .recent_bits import RecentBitsEnv


@register("env", "n-delayed-match-to-sample")
class NDelayedMatchToSampleEnv(RecentBitsEnv):
    """Yes if the last bit is what the first of the last N bits was."""

    def answer(self, bits: Tensor, n: int) -> Tensor:
        """See :meth:`RecentBitsEnv.answer`."""
        return bits[n - 1 :] == bits[: len(bits) - n + 1]
