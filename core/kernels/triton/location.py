"""NTM location addressing in one launch: interpolate, shift, sharpen; and its backward.

Computes :func:`~papertape.core.addressing.location_weights`. B batch, K heads, N slots, S shifts.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...addressing import SHARPEN_EPSILON
from ..transforms import kernel_backward, origin
from .launch import TILE, launch, power_of_two, softmax, warps


@triton.jit
def _gated(content, previous, base, n, gate, inside):
    """The interpolated weighting at slots n."""
    last = tl.load(previous + base + n, mask=inside, other=0.0)
    return last + gate * (tl.load(content + base + n, mask=inside, other=0.0) - last)


@triton.jit
def _shifted(content, previous, shift, row, n, gate, N: tl.constexpr, S: tl.constexpr):
    """The interpolated and shifted weighting at slots n; 0 outside."""
    result = tl.zeros_like(gate + n.to(gate.dtype))
    for index in tl.static_range(S):
        source = (n + S // 2 - index + N * S) % N
        share = tl.load(shift + row * S + index)
        result += share * _gated(content, previous, row * N, source, gate, n < N)
    return result


@triton.jit
def sharpened(weights, power, inside, EPSILON: tl.constexpr, AXIS: tl.constexpr = 0):
    """Weightings that a tile holds whole, raised to a power and renormalised; see core.addressing.sharpen."""
    return softmax(tl.where(inside, power * tl.log(weights + EPSILON), float("-inf")), AXIS)


@triton.jit
def location_forward(
    content,
    previous,
    gates,
    shift,
    sharpness,
    weights,
    N: tl.constexpr,
    S: tl.constexpr,
    EPSILON: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program per sequence and head."""
    row = tl.program_id(0).to(tl.int64)
    gate = tl.load(gates + row)
    power = tl.load(sharpness + row)
    if N <= BLOCK_N:
        n = tl.arange(0, BLOCK_N)
        shifted = _shifted(content, previous, shift, row, n, gate, N, S)
        tl.store(weights + row * N + n, sharpened(shifted, power, n < N, EPSILON), mask=n < N)
    else:
        largest = tl.full([], float("-inf"), gate.dtype)
        total = tl.full([], 0.0, gate.dtype)
        for start in range(0, N, BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)
            shifted = _shifted(content, previous, shift, row, n, gate, N, S)
            logits = tl.where(n < N, power * tl.log(shifted + EPSILON), float("-inf"))
            larger = tl.maximum(largest, tl.max(logits, 0))
            total = total * tl.exp(largest - larger) + tl.sum(tl.exp(logits - larger), 0)
            largest = larger
        for start in range(0, N, BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)
            shifted = _shifted(content, previous, shift, row, n, gate, N, S)
            logits = power * tl.log(shifted + EPSILON)
            tl.store(weights + row * N + n, tl.exp(logits - largest) / total, mask=n < N)


@triton.jit
def location_backward(
    content,
    previous,
    gates,
    shift,
    sharpness,
    weights,
    d_weights,
    d_shifted,
    d_content,
    d_previous,
    d_gates,
    d_shift,
    d_sharpness,
    N: tl.constexpr,
    S: tl.constexpr,
    EPSILON: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """One program per sequence and head; ``d_shifted`` is room for the gradient that is to be shifted back."""
    row = tl.program_id(0).to(tl.int64)
    gate = tl.load(gates + row)
    power = tl.load(sharpness + row)
    s = tl.arange(0, BLOCK_S)

    mean = tl.full([], 0.0, gate.dtype)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        weight = tl.load(weights + row * N + n, mask=n < N, other=0.0)
        mean += tl.sum(weight * tl.load(d_weights + row * N + n, mask=n < N, other=0.0), 0)

    d_power = tl.full([], 0.0, gate.dtype)
    d_share = tl.full([BLOCK_S], 0.0, gate.dtype)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        inside = n < N
        weight = tl.load(weights + row * N + n, mask=inside, other=0.0)
        d_logit = weight * (tl.load(d_weights + row * N + n, mask=inside, other=0.0) - mean)
        shifted = _shifted(content, previous, shift, row, n, gate, N, S) + EPSILON
        d_power += tl.sum(d_logit * tl.log(shifted), 0)
        gradient = d_logit * power / shifted
        tl.store(d_shifted + row * N + n, gradient, mask=inside)
        for index in tl.static_range(S):
            source = (n + S // 2 - index + N * S) % N
            gated = _gated(content, previous, row * N, source, gate, inside)
            d_share += tl.where(s == index, tl.sum(gradient * gated, 0), 0.0)
    tl.store(d_sharpness + row, d_power)
    tl.store(d_shift + row * S + s, d_share, mask=s < S)

    # Each thread goes on with gradients that others have stored.
    tl.debug_barrier()
    d_gate = tl.full([], 0.0, gate.dtype)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        inside = n < N
        gradient = tl.zeros_like(gate + n.to(gate.dtype))
        for index in tl.static_range(S):
            target = (n + index - S // 2 + N * S) % N
            share = tl.load(shift + row * S + index)
            gradient += share * tl.load(d_shifted + row * N + target, mask=inside, other=0.0)
        difference = tl.load(content + row * N + n, mask=inside, other=0.0)
        difference -= tl.load(previous + row * N + n, mask=inside, other=0.0)
        d_gate += tl.sum(gradient * difference, 0)
        tl.store(d_content + row * N + n, gate * gradient, mask=inside)
        tl.store(d_previous + row * N + n, (1.0 - gate) * gradient, mask=inside)
    tl.store(d_gates + row, d_gate)


class _Location(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Tensor) -> Tensor:
        given = [argument.contiguous() for argument in arguments]
        content, shift = given[0], given[3]
        batch, heads, slots = content.shape
        block = min(power_of_two(slots), TILE)
        ctx.constants = {
            "N": slots,
            "S": shift.shape[-1],
            "EPSILON": SHARPEN_EPSILON,
            "BLOCK_N": block,
            "num_warps": warps(4 * block),
        }
        weights = torch.empty_like(content)
        launch(location_forward, (batch * heads,), *given, weights, **ctx.constants)
        ctx.save_for_backward(*given, weights)
        ctx.origin = origin(*arguments)
        return weights

    @staticmethod
    @kernel_backward
    def backward(ctx: Any, d_weights: Tensor) -> tuple[Tensor, ...]:
        saved = ctx.saved_tensors
        given = saved[:5]
        batch, heads, _ = d_weights.shape
        made = tuple(torch.empty_like(argument) for argument in given)
        room = torch.empty_like(given[0])
        arguments = (*saved, d_weights.contiguous(), room, *made)
        launch(
            location_backward, (batch * heads,), *arguments, BLOCK_S=power_of_two(ctx.constants["S"]), **ctx.constants
        )
        return made


def location_weights(content: Tensor, previous: Tensor, gate: Tensor, shift: Tensor, sharpness: Tensor) -> Tensor:
    """See :func:`papertape.core.addressing.location_weights`."""
    return _Location.apply(content, previous, gate, shift, sharpness)
