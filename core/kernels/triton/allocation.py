"""Usage and allocation without a sort, and their backward.

Computes :func:`~papertape.core.addressing.usage` and :func:`~papertape.core.addressing.allocation_weights`. The product
of all smaller usages is a sum of logarithms over the slots that a stable sort would put before: N² comparisons in
registers, none of which waits for another, where a sort takes log² N rounds.
B batch, N slots, R read heads, H write heads.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...addressing import USAGE_EPSILON
from ..transforms import kernel_backward, origin
from .launch import launch, parts, power_of_two, sigmoid

ROWS = 32
"""Slots that a program allocates."""

COLUMNS = 64
"""Slots that it compares them with at a time."""


@triton.jit
def unwritten(write_weights, n, N: tl.constexpr, H: tl.constexpr, EXCEPT: tl.constexpr = -1):
    """How much no head but one wrote of slots n of a sequence: Π_h (1 - w_h)."""
    result = tl.full(n.shape, 1.0, write_weights.dtype.element_ty)
    for head in tl.static_range(H):
        if head != EXCEPT:
            result *= 1.0 - tl.load(write_weights + head * N + n, mask=n < N, other=0.0)
    return result


@triton.jit
def retained(
    free_gates, read_weights, n, N: tl.constexpr, R: tl.constexpr, RAW: tl.constexpr, EXCEPT: tl.constexpr = -1
):
    """How much all free gates but one leave of slots n of a sequence: Π_r (1 - f_r w_r); RAW ones get a sigmoid."""
    result = tl.full(n.shape, 1.0, read_weights.dtype.element_ty)
    for head in tl.static_range(R):
        if head != EXCEPT:
            free = tl.load(free_gates + head)
            if RAW:
                free = sigmoid(free)
            result *= 1.0 - free * tl.load(read_weights + head * N + n, mask=n < N, other=0.0)
    return result


@triton.jit
def sorted_before(first, i, second, j):
    """Whether a stable sort puts usages ``first`` of slots i before usages ``second`` of slots j."""
    return (first < second) | ((first == second) & (i < j))


@triton.jit
def _usage(
    previous, write_weights, free_gates, read_weights, batch, n, N: tl.constexpr, H: tl.constexpr, R: tl.constexpr
):
    """Usage of slots n."""
    before = tl.load(previous + batch * N + n, mask=n < N, other=0.0)
    written = 1.0 - unwritten(write_weights + batch * H * N, n, N, H)
    kept = before + written - before * written
    return kept * retained(free_gates + batch * R, read_weights + batch * R * N, n, N, R, False)


@triton.jit
def _used(
    previous,
    write_weights,
    free_gates,
    read_weights,
    gates,
    batch,
    n,
    N: tl.constexpr,
    H: tl.constexpr,
    R: tl.constexpr,
    HEAD: tl.constexpr,
    EPSILON: tl.constexpr,
):
    """What this head takes for the usage of slots n."""
    if HEAD == 0:
        usage = _usage(previous, write_weights, free_gates, read_weights, batch, n, N, H, R)
        return (1.0 - EPSILON) * usage + EPSILON
    # Here ``previous`` is what the last head took for the usage, ``write_weights`` all allocations up to it.
    used = tl.load(previous + batch * N + n, mask=n < N, other=1.0)
    allocation = tl.load(write_weights + (batch * H + HEAD - 1) * N + n, mask=n < N, other=0.0)
    return used + (1.0 - used) * tl.load(gates + batch * H + HEAD - 1) * allocation


@triton.jit
def allocation_forward(
    previous,
    write_weights,
    free_gates,
    read_weights,
    gates,
    usage,
    used,
    smaller,
    allocations,
    N: tl.constexpr,
    H: tl.constexpr,
    R: tl.constexpr,
    HEAD: tl.constexpr,
    EPSILON: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program per sequence and block of slots, for one head.

    Each program computes the usage of all slots itself. Without fused multiply-adds, so that a slot gets the very same
    bits wherever it is computed, and slots that tie do so for all.
    """
    batch = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    own = _used(previous, write_weights, free_gates, read_weights, gates, batch, i, N, H, R, HEAD, EPSILON)
    logarithm = tl.zeros_like(own)
    for start in range(0, N, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        other = _used(previous, write_weights, free_gates, read_weights, gates, batch, j, N, H, R, HEAD, EPSILON)
        first = sorted_before(other[None, :], j[None, :], own[:, None], i[:, None]) & (j < N)[None, :]
        logarithm += tl.sum(tl.where(first, tl.log(other)[None, :], 0.0), 1)
    product = tl.exp(logarithm)
    if HEAD == 0:
        own_usage = _usage(previous, write_weights, free_gates, read_weights, batch, i, N, H, R)
        tl.store(usage + batch * N + i, own_usage, mask=i < N)
    tl.store(used + batch * N + i, own, mask=i < N)
    tl.store(smaller + batch * N + i, product, mask=i < N)
    tl.store(allocations + (batch * H + HEAD) * N + i, (1.0 - own) * product, mask=i < N)


@triton.jit
def allocation_backward(
    used,
    smaller,
    d_allocation,
    d_used,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program per sequence and block of slots, for one head; adds to ``d_used``."""
    batch = tl.program_id(0).to(tl.int64) * N
    i = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    own = tl.load(used + batch + i, mask=i < N, other=1.0)
    after = tl.zeros_like(own)
    for start in range(0, N, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        other = tl.load(used + batch + j, mask=j < N, other=0.0)
        product = tl.load(smaller + batch + j, mask=j < N, other=0.0)
        gradient = tl.load(d_allocation + batch + j, mask=j < N, other=0.0) * (1.0 - other) * product
        first = sorted_before(own[:, None], i[:, None], other[None, :], j[None, :])
        after += tl.sum(tl.where(first, gradient[None, :], 0.0), 1)
    product = tl.load(smaller + batch + i, mask=i < N, other=0.0)
    gradient = after / own - tl.load(d_allocation + batch + i, mask=i < N, other=0.0) * product
    gradient += tl.load(d_used + batch + i, mask=i < N, other=0.0)
    tl.store(d_used + batch + i, gradient, mask=i < N)


@triton.jit
def usage_backward(
    previous,
    write_weights,
    free_gates,
    read_weights,
    d_usage,
    d_used,
    d_previous,
    d_write_weights,
    d_free_gates,
    d_read_weights,
    N: tl.constexpr,
    H: tl.constexpr,
    R: tl.constexpr,
    EPSILON: tl.constexpr,
    ROWS: tl.constexpr,
):
    """One program per sequence and block of slots; the gradient of the free gates comes in parts, one per block."""
    batch = tl.program_id(0).to(tl.int64)
    part = batch * tl.num_programs(1) + tl.program_id(1)
    n = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = n < N
    gradient = tl.load(d_usage + batch * N + n, mask=inside, other=0.0)
    gradient += (1.0 - EPSILON) * tl.load(d_used + batch * N + n, mask=inside, other=0.0)
    before = tl.load(previous + batch * N + n, mask=inside, other=0.0)
    write_weights += batch * H * N
    free_gates += batch * R
    read_weights += batch * R * N
    written = 1.0 - unwritten(write_weights, n, N, H)
    kept = retained(free_gates, read_weights, n, N, R, False)
    tl.store(d_previous + batch * N + n, gradient * kept * (1.0 - written), mask=inside)
    d_written = gradient * kept * (1.0 - before)
    for head in tl.static_range(H):
        d_write = d_written * unwritten(write_weights, n, N, H, head)
        tl.store(d_write_weights + (batch * H + head) * N + n, d_write, mask=inside)
    d_kept = gradient * (before + written - before * written)
    for head in tl.static_range(R):
        d_freed = -d_kept * retained(free_gates, read_weights, n, N, R, False, head)
        weight = tl.load(read_weights + head * N + n, mask=inside, other=0.0)
        tl.store(d_read_weights + (batch * R + head) * N + n, d_freed * tl.load(free_gates + head), mask=inside)
        tl.store(d_free_gates + part * R + head, tl.sum(d_freed * weight, 0))


class _UsageAllocation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Tensor) -> tuple[Tensor, Tensor]:
        previous, write_weights, free_gates, read_weights, gates = (part.contiguous() for part in arguments)
        batch, slots = previous.shape
        heads = write_weights.shape[1]
        ctx.sizes = {"N": slots, "H": heads, "R": read_weights.shape[1], "EPSILON": USAGE_EPSILON}
        usage = torch.empty_like(previous)
        allocations = torch.empty_like(write_weights)
        used, smaller = previous.new_empty(2, heads, batch, slots)
        for head in range(heads):
            before = (previous, write_weights) if head == 0 else (used[head - 1], allocations)
            launch(
                allocation_forward,
                (batch, parts(slots, ROWS)),
                *before,
                *(free_gates, read_weights, gates, usage, used[head], smaller[head], allocations),
                **ctx.sizes,
                HEAD=head,
                ROWS=min(ROWS, power_of_two(slots)),
                COLUMNS=min(COLUMNS, power_of_two(slots)),
                enable_fp_fusion=False,
            )
        ctx.save_for_backward(previous, write_weights, free_gates, read_weights, gates, used, smaller, allocations)
        ctx.origin = origin(*arguments)
        return usage, allocations

    @staticmethod
    @kernel_backward
    def backward(ctx: Any, d_usage: Tensor, d_allocations: Tensor) -> tuple[Tensor, ...]:
        previous, write_weights, free_gates, read_weights, gates, used, smaller, allocations = ctx.saved_tensors
        batch, slots = previous.shape
        heads = write_weights.shape[1]
        grid = (batch, parts(slots, ROWS))
        rows = min(ROWS, power_of_two(slots))
        d_gates = torch.zeros_like(gates)
        d_used = torch.zeros_like(previous)
        for head in range(heads - 1, -1, -1):
            d_allocation = d_allocations[:, head].contiguous()
            if head < heads - 1:
                # This head's allocation raised the usage that the next one saw.
                gate, allocation = gates[:, head : head + 1], allocations[:, head]
                free = d_used * (1 - used[head])
                d_gates[:, head] = (free * allocation).sum(-1)
                d_allocation = d_allocation + free * gate
                d_used = d_used * (1 - gate * allocation)
            columns = min(COLUMNS, power_of_two(slots))
            given = (used[head], smaller[head], d_allocation, d_used)
            launch(allocation_backward, grid, *given, N=slots, ROWS=rows, COLUMNS=columns)
        d_previous, d_write_weights = torch.empty_like(previous), torch.empty_like(write_weights)
        d_read_weights = torch.empty_like(read_weights)
        d_free_gates = free_gates.new_empty(batch, grid[1], free_gates.shape[1])
        made = (d_previous, d_write_weights, d_free_gates, d_read_weights)
        given = (previous, write_weights, free_gates, read_weights)
        launch(usage_backward, grid, *given, d_usage.contiguous(), d_used, *made, **ctx.sizes, ROWS=rows)
        return d_previous, d_write_weights, d_free_gates.sum(1), d_read_weights, d_gates


def usage_and_allocation(
    previous: Tensor, write_weights: Tensor, free_gates: Tensor, read_weights: Tensor, gates: Tensor
) -> tuple[Tensor, Tensor]:
    """Usage ``[B, N]`` and the allocation of every write head from it, ``[B, H, N]``.

    Args:
        previous, write_weights, free_gates, read_weights: see :func:`papertape.core.addressing.usage`.
        gates: allocation gate times write gate of each head, ``[B, H]``; see
            :func:`papertape.core.addressing.allocation_weights`.
    """
    return _UsageAllocation.apply(previous, write_weights, free_gates, read_weights, gates)
