"""N-parity: is the number of ones among the last N bits odd (Khajehabdollahi et al. 2024, section 2.1)?"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from ..core.registry import register
from .recent_bits import RecentBitsEnv


@register("env", "n-parity")
class NParityEnv(RecentBitsEnv):
    """Yes if an odd number of the last N bits are 1."""

    def answer(self, bits: Tensor, n: int) -> Tensor:
        """See :meth:`RecentBitsEnv.answer`."""
        total = functional.pad(bits.cumsum(0), (0, 0, 1, 0))
        return (total[n:] - total[:-n]) % 2
