"""Seeds of streams."""

from __future__ import annotations

from papertape.core.streams import stream_seed


def test_no_two_streams_share_a_seed() -> None:
    parts = ("training", "strategy", "validation", "confirmation", "test")
    for seeds in (range(50), range(2**31 - 50, 2**31)):
        # Generators on the CPU look at no more than 32 bits.
        assert len({stream_seed(seed, part) % 2**32 for seed in seeds for part in parts}) == 5 * 50
