"""Content addressing in one launch: normalise, dot product, strength, softmax over slots; and its backward.

Computes :func:`~tapehead.core.addressing.content_weights`. B batch, N slots, W word size, K heads.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...addressing import NORM_EPSILON
from .launch import launch, parts, power_of_two, rows_per_tile, warps


@triton.jit
def _tile(memory, batch, n, w, N: tl.constexpr, W: tl.constexpr):
    """Slots n of a memory, ``[BLOCK_N, BLOCK_W]``; 0 outside."""
    offsets = n[:, None] * W + w[None, :]
    return tl.load(memory + batch * N * W + offsets, mask=(n < N)[:, None] & (w < W)[None, :], other=0.0)


@triton.jit
def _logits(tile, key, element_weight, strength, key_norm, n, N: tl.constexpr, EPSILON: tl.constexpr):
    """Strength times similarity of the slots of a tile, -inf outside; ``element_weight`` is the squared mask."""
    dot = tl.sum(tile * key[None, :], 1)
    norm = tl.sqrt(tl.sum(tile * tile * element_weight[None, :], 1) + EPSILON)
    return tl.where(n < N, strength * (dot / (key_norm * norm + EPSILON)), float("-inf"))


@triton.jit
def content_forward(
    memory,
    keys,
    strengths,
    mask,
    weights,
    N: tl.constexpr,
    W: tl.constexpr,
    K: tl.constexpr,
    MASKED: tl.constexpr,
    EPSILON: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """One program per sequence and head."""
    batch = tl.program_id(0).to(tl.int64)
    row = batch * K + tl.program_id(1)
    w = tl.arange(0, BLOCK_W)
    key = tl.load(keys + row * W + w, mask=w < W, other=0.0)
    element_weight = tl.full([BLOCK_W], 1.0, key.dtype)
    if MASKED:
        element = tl.load(mask + row * W + w, mask=w < W, other=0.0)
        element_weight = element * element
        key *= element
    key_norm = tl.sqrt(tl.sum(key * key, 0) + EPSILON)
    if MASKED:
        key *= element
    strength = tl.load(strengths + row)
    if N <= BLOCK_N:
        n = tl.arange(0, BLOCK_N)
        tile = _tile(memory, batch, n, w, N, W)
        logits = _logits(tile, key, element_weight, strength, key_norm, n, N, EPSILON)
        shares = tl.exp(logits - tl.max(logits, 0))
        tl.store(weights + row * N + n, shares / tl.sum(shares, 0), mask=n < N)
    else:
        largest = tl.full([], float("-inf"), key.dtype)
        total = tl.full([], 0.0, key.dtype)
        for start in range(0, N, BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)
            tile = _tile(memory, batch, n, w, N, W)
            logits = _logits(tile, key, element_weight, strength, key_norm, n, N, EPSILON)
            larger = tl.maximum(largest, tl.max(logits, 0))
            total = total * tl.exp(largest - larger) + tl.sum(tl.exp(logits - larger), 0)
            largest = larger
        # Computed again rather than stored and loaded: the memory is in the cache, and no thread waits for another.
        for start in range(0, N, BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)
            tile = _tile(memory, batch, n, w, N, W)
            logits = _logits(tile, key, element_weight, strength, key_norm, n, N, EPSILON)
            tl.store(weights + row * N + n, tl.exp(logits - largest) / total, mask=n < N)


@triton.jit
def content_backward(
    memory,
    keys,
    strengths,
    mask,
    weights,
    d_weights,
    d_memory,
    d_keys,
    d_strengths,
    d_mask,
    N: tl.constexpr,
    W: tl.constexpr,
    K: tl.constexpr,
    MASKED: tl.constexpr,
    EPSILON: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """One program per sequence and block of slots, for all heads; what sums over slots comes in parts."""
    batch = tl.program_id(0).to(tl.int64)
    part = batch * tl.num_programs(1) + tl.program_id(1)
    w = tl.arange(0, BLOCK_W)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_word, in_memory = w < W, n < N
    tile = _tile(memory, batch, n, w, N, W)
    d_tile = tl.zeros_like(tile)
    for head in range(K):
        row = batch * K + head
        key = tl.load(keys + row * W + w, mask=in_word, other=0.0)
        masked_key = key
        dot_key = key
        element_weight = tl.full([BLOCK_W], 1.0, key.dtype)
        if MASKED:
            element = tl.load(mask + row * W + w, mask=in_word, other=0.0)
            element_weight = element * element
            masked_key = key * element
            dot_key = masked_key * element
        strength = tl.load(strengths + row)
        key_norm = tl.sqrt(tl.sum(masked_key * masked_key, 0) + EPSILON)
        norm = tl.sqrt(tl.sum(tile * tile * element_weight[None, :], 1) + EPSILON)
        denominator = key_norm * norm + EPSILON
        similarity = tl.sum(tile * dot_key[None, :], 1) / denominator

        # Softmax: the mean of the upstream gradient is over all slots, not only those of this block.
        mean = tl.full([], 0.0, key.dtype)
        for start in range(0, N, BLOCK_N):
            every = start + tl.arange(0, BLOCK_N)
            share = tl.load(weights + row * N + every, mask=every < N, other=0.0)
            mean += tl.sum(share * tl.load(d_weights + row * N + every, mask=every < N, other=0.0), 0)
        weight = tl.load(weights + row * N + n, mask=in_memory, other=0.0)
        d_logit = weight * (tl.load(d_weights + row * N + n, mask=in_memory, other=0.0) - mean)
        d_dot = strength * d_logit / denominator
        d_denominator = -d_dot * similarity
        d_square = 0.5 * d_denominator * key_norm / norm
        d_key_norm = tl.sum(d_denominator * norm, 0)

        d_tile += d_dot[:, None] * dot_key[None, :] + 2.0 * d_square[:, None] * tile * element_weight[None, :]
        d_key = tl.sum(d_dot[:, None] * tile, 0)
        out = (part * K + head) * W + w
        if MASKED:
            d_element = d_key * masked_key + 2.0 * element * tl.sum(d_square[:, None] * tile * tile, 0)
            d_key = d_key * element + d_key_norm * masked_key / key_norm
            tl.store(d_mask + out, d_element + d_key * key, mask=in_word)
            d_key *= element
        else:
            d_key += d_key_norm * key / key_norm
        tl.store(d_keys + out, d_key, mask=in_word)
        tl.store(d_strengths + part * K + head, tl.sum(d_logit * similarity, 0))
    tl.store(d_memory + batch * N * W + n[:, None] * W + w[None, :], d_tile, mask=in_memory[:, None] & in_word[None, :])


class _Content(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, memory: Tensor, keys: Tensor, strengths: Tensor, mask: Tensor | None) -> Tensor:
        memory, keys, strengths = memory.contiguous(), keys.contiguous(), strengths.contiguous()
        mask = None if mask is None else mask.contiguous()
        batch, slots, word = memory.shape
        heads = keys.shape[1]
        block = rows_per_tile(slots, word)
        ctx.constants = {
            "N": slots,
            "W": word,
            "K": heads,
            "MASKED": mask is not None,
            "EPSILON": NORM_EPSILON,
            "BLOCK_N": block,
            "BLOCK_W": power_of_two(word),
            "num_warps": warps(2 * block * power_of_two(word)),
        }
        weights = memory.new_empty(batch, heads, slots)
        arguments = (memory, keys, strengths, keys if mask is None else mask, weights)
        launch(content_forward, (batch, heads), *arguments, **ctx.constants)
        ctx.save_for_backward(*arguments)
        return weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_weights: Tensor) -> tuple[Tensor | None, ...]:
        given = ctx.saved_tensors
        memory, keys, *_ = given
        batch, slots, word = memory.shape
        heads = keys.shape[1]
        blocks = parts(slots, ctx.constants["BLOCK_N"])
        d_memory = torch.empty_like(memory)
        d_keys = keys.new_empty(batch, blocks, heads, word)
        d_strengths = keys.new_empty(batch, blocks, heads)
        d_mask = torch.empty_like(d_keys) if ctx.constants["MASKED"] else d_keys
        made = (d_memory, d_keys, d_strengths, d_mask)
        launch(content_backward, (batch, blocks), *given, d_weights.contiguous(), *made, **ctx.constants)
        whole_mask = d_mask.sum(1) if ctx.constants["MASKED"] else None
        return d_memory, d_keys.sum(1), d_strengths.sum(1), whole_mask


def content_weights(memory: Tensor, keys: Tensor, strengths: Tensor, mask: Tensor | None = None) -> Tensor:
    """See :func:`tapehead.core.addressing.content_weights`."""
    return _Content.apply(memory, keys, strengths, mask)
