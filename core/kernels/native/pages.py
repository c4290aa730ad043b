"""Large memory that is kept from one call for the next.

The system clears fresh pages before it gives them, which takes a tenth of a training step of a large DNC. What is kept
here the system may take back at any time, as soon as something else needs the memory.
"""

from __future__ import annotations

import contextlib
import mmap
import weakref

import torch
from torch import Tensor

LEAST = 2**25
"""Bytes of a block that is kept here. Smaller ones malloc keeps by itself; larger ones glibc always gives back."""

_kept: list[mmap.mmap] = []
"""The largest block that nothing uses."""


def empty(count: int, like: Tensor) -> Tensor:
    """A tensor ``[count]`` with any contents, of the type of one on the CPU; a large one where an earlier one was.

    Args:
        count: of elements.
        like: whose type it has; where it has no values, as torch's fake tensors, neither has the result.
    """
    size = count * like.element_size()
    if size < LEAST or type(like) is not Tensor or not hasattr(mmap, "MADV_FREE"):
        return like.new_empty(count)
    block = _take(size)
    if block is None:
        return like.new_empty(count)  # which says what is wrong
    used = memoryview(block)
    weakref.finalize(used, _keep, block).atexit = False
    return torch.frombuffer(used, dtype=like.dtype, count=count)


def _take(size: int) -> mmap.mmap | None:
    try:
        block = _kept.pop()
    except IndexError:
        pass
    else:
        if len(block) >= size:
            return block
        del block  # before there is a larger one
    try:
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:
        return None


def _keep(block: mmap.mmap) -> None:
    """Keep a block that is used no more, or a larger one that is kept already."""
    with contextlib.suppress(OSError):  # a system that cannot take it back on demand gets it at once
        block.madvise(mmap.MADV_FREE)
        with contextlib.suppress(IndexError):
            block = max(block, _kept.pop(), key=len)
        _kept.append(block)
