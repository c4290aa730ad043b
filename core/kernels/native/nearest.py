"""The lookups of sparse access in C++: one pass over a large memory for all keys."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ... import addressing
from ..operators import operator
from . import library


class Search(ctypes.Structure):
    """Sizes of a search; mirrors ``Search`` in source/nearest.h."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ("batch", "rows", "word", "reads", "count", "threads", "stride", "norm_stride")
        ),
        ("epsilon", ctypes.c_double),
    ]


def nearest(memory: Tensor, norms: Tensor, keys: Tensor, key_norms: Tensor, count: int) -> Tensor:
    """The slots most similar (cosine) to each key; of equally similar ones the first.

    Args:
        memory: ``[B, N, W]``, rows of which lie one after another.
        norms: of its words, ``[B, N]``.
        keys: ``[B, R, W]``.
        key_norms: ``[B, R]``.
        count: K, at most N.

    Returns:
        ``[B, R, K]``, in ascending order.

    Raises:
        MemoryError: no room for the scratch memory.
    """
    slots: Tensor = _nearest(memory, norms, keys, key_norms, count)
    return slots


def _search(memory: Tensor, norms: Tensor, keys: Tensor, key_norms: Tensor, count: int) -> Tensor:
    batch, rows, word = memory.shape
    if memory.stride()[1:] != (word, 1) or norms.stride(1) != 1:
        memory, norms = memory.contiguous(), norms.contiguous()
    keys, key_norms = keys.contiguous(), key_norms.contiguous()
    slots = _empty_slots(memory, norms, keys, key_norms, count)
    sizes = Search(
        batch,
        rows,
        word,
        keys.shape[1],
        count,
        torch.get_num_threads(),
        memory.stride(0),
        norms.stride(0),
        addressing.NORM_EPSILON,
    )
    loaded = library.load()
    assert not isinstance(loaded, str), loaded
    function = getattr(loaded, f"nearest_{library.type_name(memory.dtype)}")
    tensors = (memory, norms, keys, key_norms, slots)
    if function(ctypes.byref(sizes), *(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors)):
        raise MemoryError("native backend: no memory for the scratch space of a lookup")
    return slots


def _empty_slots(memory: Tensor, norms: Tensor, keys: Tensor, key_norms: Tensor, count: int) -> Tensor:
    return keys.new_empty((*keys.shape[:2], count), dtype=torch.int64)


_nearest = operator(
    "native_nearest(Tensor memory, Tensor norms, Tensor keys, Tensor key_norms, int count) -> Tensor",
    "CPU",
    _search,
    _empty_slots,
    on_memory=True,
)
