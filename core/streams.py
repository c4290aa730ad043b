"""Streams of data: what a run learns from, what judges it while it learns, and what tests it when it is over.

Training moves the weights. Validation decides: which weights are the best, when the curriculum moves on, when the run
stops or begins again. The test decides nothing. No run draws from it, so what it says was not chosen by looking at it.
"""

from __future__ import annotations

import random
from typing import Literal

import torch

Stream = Literal["validation", "test"]
"""A stream that circuits are judged on."""

_PARTS = ("training", "strategy", "validation", "confirmation", "test")


def stream_seed(seed: int, part: Literal["training", "strategy", "validation", "confirmation", "test"]) -> int:
    """The seed of one stream; no two streams of a run have the same, nor do those of runs with other seeds.

    That holds as long as they fit into the 32 bits that torch reads on a CPU, for runs with seeds below 858,993,459;
    those of larger ones are drawn from all numbers of 32 bits.

    Args:
        seed: of the run.
        part: a stream; ``strategy`` for what evolution draws besides training sequences; ``confirmation`` for the
            validation sequences that are looked at only once the target seems to be reached.
    """
    number = len(_PARTS) * seed + _PARTS.index(part)
    return number if number < 2**32 else random.Random(f"stream {number}").getrandbits(32)


def task_generator(seed: int, number: int) -> torch.Generator:
    """Of what makes up one task of a stream of tasks, such as its permutation: both numbers alone decide.

    Args:
        seed: of the stream, which is no seed of a run: runs with other seeds meet the same tasks.
        number: of the task.
    """
    return torch.Generator().manual_seed(random.Random(f"task {seed} {number}").getrandbits(63))
