"""Content addressing in one launch: normalise, dot product, strength, softmax over slots; and its backward.

Computes :func:`~papertape.core.addressing.content_weights`. B batch, N slots, W word size, K heads.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...addressing import NORM_EPSILON
from ..transforms import kernel_backward, origin
from .launch import (
    launch,
    parts,
    power_of_two,
    rows_per_tile,
    sigmoid,
    softmax,
    softmax_backward,
    softplus,
    softplus_slope,
    tanh,
    warps,
)


@triton.jit
def _tile(memory, batch, n, w, N: tl.constexpr, W: tl.constexpr):
    """Slots n of a memory, ``[BLOCK_N, BLOCK_W]``; 0 outside."""
    offsets = n[:, None] * W + w[None, :]
    return tl.load(memory + batch * N * W + offsets, mask=(n < N)[:, None] & (w < W)[None, :], other=0.0)


@triton.jit
def slot_norms(tile, EPSILON: tl.constexpr):
    """Norm of every slot of a tile."""
    return tl.sqrt(tl.sum(tile * tile, 1) + EPSILON)


@triton.jit
def key_norm(key, mask, EPSILON: tl.constexpr):
    """Norm of a key, its elements times the mask."""
    masked = key * mask
    return tl.sqrt(tl.sum(masked * masked, 0) + EPSILON)


@triton.jit
def _cosine(tile, slot_norm, key, length, mask, EPSILON: tl.constexpr):
    """Cosine similarity of every slot of a tile with a key of norm ``length``; a mask of ones compares whole words."""
    return tl.sum(tile * (key * mask * mask)[None, :], 1) / (length * slot_norm + EPSILON)


@triton.jit
def _cosine_backward(tile, slot_norm, key, mask, cosine, d_cosine, MASKED: tl.constexpr, EPSILON: tl.constexpr):
    """Gradients of the tile, the key and the mask of :func:`_cosine`."""
    length = key_norm(key, mask, EPSILON)
    masked = key * mask
    d_dot = d_cosine / (length * slot_norm + EPSILON)
    d_denominator = -d_dot * cosine
    d_square = d_denominator * length / slot_norm
    d_tile = d_dot[:, None] * (masked * mask)[None, :] + d_square[:, None] * tile * (mask * mask)[None, :]
    d_product = tl.sum(d_dot[:, None] * tile, 0)
    d_masked = d_product * mask + tl.sum(d_denominator * slot_norm, 0) * masked / length
    d_mask = tl.zeros_like(mask)
    if MASKED:
        d_mask = d_product * masked + d_masked * key + mask * tl.sum(d_square[:, None] * tile * tile, 0)
    return d_tile, d_masked * mask, d_mask


@triton.jit
def lookup_head(raw, key_at, strength_at, mask_at, w, W: tl.constexpr, SQUASH: tl.constexpr, MASK_MIN: tl.constexpr):
    """Key, raw strength and mask of a head from their places in an interface vector.

    With SQUASH the key gets a tanh. MASK_MIN is the smallest weight of a word element; None: there are no masks.
    """
    key = tl.load(raw + key_at + w, mask=w < W, other=0.0)
    if SQUASH:
        key = tanh(key)
    mask = tl.full(key.shape, 1.0, key.dtype)
    if MASK_MIN is not None:
        mask = MASK_MIN + (1.0 - MASK_MIN) * sigmoid(tl.load(raw + mask_at + w, mask=w < W, other=0.0))
    return key, tl.load(raw + strength_at), mask


@triton.jit
def lookup(
    tile,
    slot_norm,
    key,
    strength,
    mask,
    inside,
    STRENGTH_MIN: tl.constexpr,
    MASK_MIN: tl.constexpr,
    EPSILON: tl.constexpr,
):
    """Content weighting of a :func:`lookup_head` on a memory that one tile holds, and the cosines behind it.

    ``slot_norm`` is that without a mask; ``inside`` the slots that there are.
    """
    if MASK_MIN is not None:
        slot_norm = slot_norms(tile * mask[None, :], EPSILON)
    cosine = _cosine(tile, slot_norm, key, key_norm(key, mask, EPSILON), mask, EPSILON)
    logits = (STRENGTH_MIN + softplus(strength)) * cosine
    return softmax(tl.where(inside, logits, float("-inf"))), cosine


@triton.jit
def lookup_backward(
    tile,
    slot_norm,
    key,
    strength,
    mask,
    content,
    cosine,
    d_content,
    SQUASH: tl.constexpr,
    STRENGTH_MIN: tl.constexpr,
    MASK_MIN: tl.constexpr,
    EPSILON: tl.constexpr,
):
    """Gradients of the memory, and of the raw key, strength and mask of :func:`lookup_head`, of :func:`lookup`."""
    MASKED: tl.constexpr = MASK_MIN is not None
    if MASKED:
        slot_norm = slot_norms(tile * mask[None, :], EPSILON)
    d_logits = softmax_backward(content, d_content)
    d_cosine = (STRENGTH_MIN + softplus(strength)) * d_logits
    d_tile, d_key, d_mask = _cosine_backward(tile, slot_norm, key, mask, cosine, d_cosine, MASKED, EPSILON)
    if SQUASH:
        d_key *= 1.0 - key * key
    if MASKED:
        d_mask *= (mask - MASK_MIN) * (1.0 - mask) / (1.0 - MASK_MIN)
    return d_tile, d_key, tl.sum(d_logits * cosine, 0) * softplus_slope(strength), d_mask


@triton.jit
def _head(keys, strengths, mask, row, w, W: tl.constexpr, MASKED: tl.constexpr):
    """Key, strength and mask of a head, whose row they have."""
    key = tl.load(keys + row * W + w, mask=w < W, other=0.0)
    element = tl.full(key.shape, 1.0, key.dtype)
    if MASKED:
        element = tl.load(mask + row * W + w, mask=w < W, other=0.0)
    return key, tl.load(strengths + row), element


@triton.jit
def _logits(tile, key, length, strength, mask, n, N: tl.constexpr, EPSILON: tl.constexpr):
    """Strength times similarity of the slots of a tile, -inf outside."""
    slot_norm = slot_norms(tile * mask[None, :], EPSILON)
    return tl.where(n < N, strength * _cosine(tile, slot_norm, key, length, mask, EPSILON), float("-inf"))


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
    key, strength, element = _head(keys, strengths, mask, row, w, W, MASKED)
    length = key_norm(key, element, EPSILON)
    if N <= BLOCK_N:
        n = tl.arange(0, BLOCK_N)
        logits = _logits(_tile(memory, batch, n, w, N, W), key, length, strength, element, n, N, EPSILON)
        tl.store(weights + row * N + n, softmax(logits), mask=n < N)
    else:
        largest = tl.full([], float("-inf"), key.dtype)
        total = tl.full([], 0.0, key.dtype)
        for start in range(0, N, BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)
            logits = _logits(_tile(memory, batch, n, w, N, W), key, length, strength, element, n, N, EPSILON)
            larger = tl.maximum(largest, tl.max(logits, 0))
            total = total * tl.exp(largest - larger) + tl.sum(tl.exp(logits - larger), 0)
            largest = larger
        # Computed again rather than stored and loaded: the memory is in the cache, and no thread waits for another.
        for start in range(0, N, BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)
            logits = _logits(_tile(memory, batch, n, w, N, W), key, length, strength, element, n, N, EPSILON)
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
        key, strength, element = _head(keys, strengths, mask, row, w, W, MASKED)
        slot_norm = slot_norms(tile * element[None, :], EPSILON)
        cosine = _cosine(tile, slot_norm, key, key_norm(key, element, EPSILON), element, EPSILON)

        # Softmax: the mean of the upstream gradient is over all slots, not only those of this block.
        mean = tl.full([], 0.0, key.dtype)
        for start in range(0, N, BLOCK_N):
            every = start + tl.arange(0, BLOCK_N)
            share = tl.load(weights + row * N + every, mask=every < N, other=0.0)
            mean += tl.sum(share * tl.load(d_weights + row * N + every, mask=every < N, other=0.0), 0)
        weight = tl.load(weights + row * N + n, mask=in_memory, other=0.0)
        d_logit = weight * (tl.load(d_weights + row * N + n, mask=in_memory, other=0.0) - mean)
        d_found, d_key, d_element = _cosine_backward(
            tile, slot_norm, key, element, cosine, strength * d_logit, MASKED, EPSILON
        )
        d_tile += d_found
        out = (part * K + head) * W + w
        tl.store(d_keys + out, d_key, mask=in_word)
        tl.store(d_strengths + part * K + head, tl.sum(d_logit * cosine, 0))
        if MASKED:
            tl.store(d_mask + out, d_element, mask=in_word)
    tl.store(d_memory + batch * N * W + n[:, None] * W + w[None, :], d_tile, mask=in_memory[:, None] & in_word[None, :])


class _Content(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, memory: Tensor, keys: Tensor, strengths: Tensor, mask: Tensor | None) -> Tensor:
        ctx.origin = origin(memory, keys, strengths, mask)
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
    @kernel_backward
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
    """See :func:`papertape.core.addressing.content_weights`."""
    return _Content.apply(memory, keys, strengths, mask)
