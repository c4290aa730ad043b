"""Writing of all heads in one launch, and its backward.

Computes :func:`~papertape.core.addressing.write`. B batch, N slots, W word size, H write heads.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..transforms import kernel_backward, origin
from .launch import launch, parts, power_of_two, rows_per_tile, sigmoid, tanh, warps


@triton.jit
def _erase_add(erase, add, head, w, W: tl.constexpr, RAW: tl.constexpr, SQUASH: tl.constexpr):
    """What a head of a sequence erases and adds, ``[BLOCK_W]`` each.

    From the interface vector what is erased is RAW and gets a sigmoid, and what is added gets a tanh with SQUASH.
    """
    erased = tl.load(erase + head * W + w, mask=w < W, other=0.0)
    added = tl.load(add + head * W + w, mask=w < W, other=0.0)
    if RAW:
        erased = tl.where(w < W, sigmoid(erased), 0.0)
    if SQUASH:
        added = tanh(added)
    return erased, added


@triton.jit
def written(
    tile,
    weights,
    erase,
    add,
    n,
    w,
    N: tl.constexpr,
    W: tl.constexpr,
    H: tl.constexpr,
    RAW: tl.constexpr,
    SQUASH: tl.constexpr,
):
    """A tile of the memory of a sequence after all heads wrote."""
    added = tl.zeros_like(tile)
    for head in tl.static_range(H):
        weight = tl.load(weights + head * N + n, mask=n < N, other=0.0)[:, None]
        erase_row, add_row = _erase_add(erase, add, head, w, W, RAW, SQUASH)
        tile *= 1.0 - weight * erase_row[None, :]
        added += weight * add_row[None, :]
    return tile + added


@triton.jit
def write_backward(
    tile,
    d_tile,
    weights,
    erase,
    add,
    head,
    n,
    w,
    N: tl.constexpr,
    W: tl.constexpr,
    H: tl.constexpr,
    RAW: tl.constexpr,
    SQUASH: tl.constexpr,
):
    """Gradients of one head's weighting, ``erase`` and ``add`` of :func:`written`, and what its erasing leaves."""
    weight = tl.load(weights + head * N + n, mask=n < N, other=0.0)[:, None]
    erase_row, add_row = _erase_add(erase, add, head, w, W, RAW, SQUASH)
    # What the erasure of this head multiplied: not a quotient, since it may have erased everything.
    others = tile * d_tile
    for other in range(H):
        if other != head:
            other_weight = tl.load(weights + other * N + n, mask=n < N, other=0.0)[:, None]
            other_row, _ = _erase_add(erase, add, other, w, W, RAW, SQUASH)
            others *= 1.0 - other_weight * other_row[None, :]
    d_weight = tl.sum(d_tile * add_row[None, :] - others * erase_row[None, :], 1)
    d_erase = -tl.sum(others * weight, 0)
    d_add = tl.sum(d_tile * weight, 0)
    if RAW:
        d_erase *= erase_row * (1.0 - erase_row)
    if SQUASH:
        d_add *= 1.0 - add_row * add_row
    return d_weight, d_erase, d_add, 1.0 - weight * erase_row[None, :]


@triton.jit
def memory_forward(
    memory,
    weights,
    erase,
    add,
    new_memory,
    N: tl.constexpr,
    W: tl.constexpr,
    H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """One program per sequence and block of slots."""
    batch = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    w = tl.arange(0, BLOCK_W)
    inside = (n < N)[:, None] & (w < W)[None, :]
    offsets = batch * N * W + n[:, None] * W + w[None, :]
    tile = tl.load(memory + offsets, mask=inside, other=0.0)
    rows = batch * H * W
    tile = written(tile, weights + batch * H * N, erase + rows, add + rows, n, w, N, W, H, False, False)
    tl.store(new_memory + offsets, tile, mask=inside)


@triton.jit
def memory_backward(
    memory,
    weights,
    erase,
    add,
    d_new_memory,
    d_memory,
    d_weights,
    d_erase,
    d_add,
    N: tl.constexpr,
    W: tl.constexpr,
    H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """One program per sequence and block of slots; the gradients of words come in parts, one per block."""
    batch = tl.program_id(0).to(tl.int64)
    part = batch * tl.num_programs(1) + tl.program_id(1)
    weights += batch * H * N
    erase += batch * H * W
    add += batch * H * W
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    w = tl.arange(0, BLOCK_W)
    in_word, in_memory = w < W, n < N
    inside = in_memory[:, None] & in_word[None, :]
    offsets = batch * N * W + n[:, None] * W + w[None, :]
    tile = tl.load(memory + offsets, mask=inside, other=0.0)
    d_tile = tl.load(d_new_memory + offsets, mask=inside, other=0.0)
    kept = tl.full([BLOCK_N, BLOCK_W], 1.0, tile.dtype)
    # Loops, not copies of their bodies: of H² large bodies the compiler would not see the end.
    for head in range(H):
        d_weight, d_erased, d_added, left = write_backward(
            tile, d_tile, weights, erase, add, head, n, w, N, W, H, False, False
        )
        kept *= left
        tl.store(d_weights + (batch * H + head) * N + n, d_weight, mask=in_memory)
        tl.store(d_erase + (part * H + head) * W + w, d_erased, mask=in_word)
        tl.store(d_add + (part * H + head) * W + w, d_added, mask=in_word)
    tl.store(d_memory + offsets, d_tile * kept, mask=inside)


class _Write(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Tensor) -> Tensor:
        memory, weights, erase, add = (part.contiguous() for part in arguments)
        batch, slots, word = memory.shape
        block = rows_per_tile(slots, word)
        ctx.constants = {
            "N": slots,
            "W": word,
            "H": weights.shape[1],
            "BLOCK_N": block,
            "BLOCK_W": power_of_two(word),
            "num_warps": warps(block * power_of_two(word)),
        }
        new_memory = torch.empty_like(memory)
        launch(
            memory_forward,
            (batch, parts(slots, block)),
            *(memory, weights, erase, add, new_memory),
            **ctx.constants,
        )
        ctx.save_for_backward(memory, weights, erase, add)
        ctx.origin = origin(*arguments)
        return new_memory

    @staticmethod
    @kernel_backward
    def backward(ctx: Any, d_new_memory: Tensor) -> tuple[Tensor, ...]:
        memory, weights, erase, add = ctx.saved_tensors
        batch, slots, _ = memory.shape
        blocks = parts(slots, ctx.constants["BLOCK_N"])
        d_memory, d_weights = torch.empty_like(memory), torch.empty_like(weights)
        d_erase = erase.new_empty(batch, blocks, *erase.shape[1:])
        d_add = torch.empty_like(d_erase)
        launch(
            memory_backward,
            (batch, blocks),
            *(memory, weights, erase, add, d_new_memory.contiguous(), d_memory, d_weights, d_erase, d_add),
            **ctx.constants,
        )
        return d_memory, d_weights, d_erase.sum(1), d_add.sum(1)


def write(memory: Tensor, weights: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    """See :func:`papertape.core.addressing.write`."""
    return _Write.apply(memory, weights, erase, add)
