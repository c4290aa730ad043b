"""A whole sequence of an NTM in one launch, forward and backward, its memory in registers; see recurrence.py.

Shapes: T steps, B batch, L layers, F = L * hidden + R * W features, I interface, K = R + H heads, N slots, W word size,
S shifts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import triton
import triton.language as tl

from ...addressing import SHARPEN_EPSILON
from .content import lookup, lookup_backward, lookup_head, slot_norms
from .controllers import (
    controller_backward,
    controller_forward,
    interface_backward,
    interface_forward,
)
from .launch import power_of_two, sigmoid, softmax, softmax_backward, softplus, softplus_slope
from .location import sharpened
from .recurrence import Recurrence, recorded_rows
from .writing import write_backward, written

LARGEST_TILE = 8192
"""Elements of a memory, sides rounded up to powers of two, that a program keeps: 32 registers of each thread."""


@triton.jit
def _shares(raw, s, S: tl.constexpr):
    """Distribution over shifts of a head, ``[BLOCK_S]``; 0 outside."""
    return softmax(tl.load(raw + s, mask=s < S, other=float("-inf")))


@triton.jit
def _shifted(gated, shares, s, n, N: tl.constexpr, S: tl.constexpr):
    """The gated weighting, which is in memory, shifted; 0 outside."""
    result = tl.zeros_like(tl.load(gated + n, mask=n < N, other=0.0))
    for index in tl.static_range(S):
        share = tl.sum(tl.where(s == index, shares, 0.0), 0)
        result += share * tl.load(gated + (n + S // 2 - index + N * S) % N, mask=n < N, other=0.0)
    return result


@triton.jit
def _locate(
    tile,
    raw,
    old,
    new,
    gated,
    n,
    w,
    s,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    N: tl.constexpr,
    W: tl.constexpr,
    S: tl.constexpr,
    KEYS: tl.constexpr,
    STRENGTHS: tl.constexpr,
    GATE: tl.constexpr,
    SHIFT: tl.constexpr,
    SHARPNESS: tl.constexpr,
    MASK: tl.constexpr,
    MASK_MIN: tl.constexpr,
    NORM_EPSILON: tl.constexpr,
    SHARPEN_EPSILON: tl.constexpr,
):
    """Weightings ``new`` of heads FIRST to LAST - 1: each looks content up in the tile and moves on from ``old``.

    Shifting needs the slots of other threads: what is ``gated`` goes through memory, and so does what comes out.
    """
    norm = slot_norms(tile, NORM_EPSILON)
    for head in range(FIRST, LAST):
        key, strength, mask = lookup_head(raw, KEYS + head * W, STRENGTHS + head, MASK + head * W, w, W, True, MASK_MIN)
        content, _ = lookup(tile, norm, key, strength, mask, n < N, 0.0, MASK_MIN, NORM_EPSILON)
        gate = sigmoid(tl.load(raw + GATE + head))
        last = tl.load(old + head * N + n, mask=n < N, other=0.0)
        tl.store(gated + head * N + n, last + gate * (content - last), mask=n < N)
    tl.debug_barrier()
    for head in range(FIRST, LAST):
        shifted = _shifted(gated + head * N, _shares(raw + SHIFT + head * S, s, S), s, n, N, S)
        power = 1.0 + softplus(tl.load(raw + SHARPNESS + head))
        tl.store(new + head * N + n, sharpened(shifted, power, n < N, SHARPEN_EPSILON), mask=n < N)
    tl.debug_barrier()


@triton.jit
def _locate_backward(
    tile,
    d_tile,
    raw,
    d_raw,
    old,
    d_old,
    new,
    d_new,
    gated,
    n,
    w,
    s,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    N: tl.constexpr,
    W: tl.constexpr,
    S: tl.constexpr,
    KEYS: tl.constexpr,
    STRENGTHS: tl.constexpr,
    GATE: tl.constexpr,
    SHIFT: tl.constexpr,
    SHARPNESS: tl.constexpr,
    MASK: tl.constexpr,
    MASK_MIN: tl.constexpr,
    NORM_EPSILON: tl.constexpr,
    SHARPEN_EPSILON: tl.constexpr,
):
    """Backward of :func:`_locate`: the gradient of the tile, with what the lookups add to it.

    ``d_new`` is lost; ``d_old`` and what ``d_raw`` has of these heads are set.
    """
    in_memory, in_word = n < N, w < W
    # Sharpening and the shift, whose gradient goes to the slots of other threads: it replaces that of the weighting in
    # memory.
    for head in range(FIRST, LAST):
        weight = tl.load(new + head * N + n, mask=in_memory, other=0.0)
        d_logit = softmax_backward(weight, tl.load(d_new + head * N + n, mask=in_memory, other=0.0))
        shares = _shares(raw + SHIFT + head * S, s, S)
        shifted = _shifted(gated + head * N, shares, s, n, N, S) + SHARPEN_EPSILON
        raw_power = tl.load(raw + SHARPNESS + head)
        d_power = tl.sum(d_logit * tl.log(shifted), 0) * softplus_slope(raw_power)
        tl.store(d_raw + SHARPNESS + head, d_power)
        d_shifted = d_logit * (1.0 + softplus(raw_power)) / shifted
        tl.debug_barrier()
        tl.store(d_new + head * N + n, d_shifted, mask=in_memory)
        d_shares = tl.zeros_like(shares)
        for index in tl.static_range(S):
            source = (n + S // 2 - index + N * S) % N
            product = d_shifted * tl.load(gated + head * N + source, mask=in_memory, other=0.0)
            d_shares += tl.where(s == index, tl.sum(product, 0), 0.0)
        tl.store(d_raw + SHIFT + head * S + s, softmax_backward(shares, d_shares), mask=s < S)
    tl.debug_barrier()

    # Interpolation and content.
    norm = slot_norms(tile, NORM_EPSILON)
    for head in range(FIRST, LAST):
        shares = _shares(raw + SHIFT + head * S, s, S)
        d_gated = tl.zeros_like(norm)
        for index in tl.static_range(S):
            share = tl.sum(tl.where(s == index, shares, 0.0), 0)
            target = (n + index - S // 2 + N * S) % N
            d_gated += share * tl.load(d_new + head * N + target, mask=in_memory, other=0.0)
        key, strength, mask = lookup_head(raw, KEYS + head * W, STRENGTHS + head, MASK + head * W, w, W, True, MASK_MIN)
        content, cosine = lookup(tile, norm, key, strength, mask, in_memory, 0.0, MASK_MIN, NORM_EPSILON)
        gate = sigmoid(tl.load(raw + GATE + head))
        last = tl.load(old + head * N + n, mask=in_memory, other=0.0)
        tl.store(d_raw + GATE + head, tl.sum(d_gated * (content - last), 0) * gate * (1.0 - gate))
        tl.store(d_old + head * N + n, (1.0 - gate) * d_gated, mask=in_memory)
        d_found, d_key, d_strength, d_mask = lookup_backward(
            tile, norm, key, strength, mask, content, cosine, gate * d_gated, True, 0.0, MASK_MIN, NORM_EPSILON
        )
        d_tile += d_found
        tl.store(d_raw + KEYS + head * W + w, d_key, mask=in_word)
        tl.store(d_raw + STRENGTHS + head, d_strength)
        if MASK_MIN is not None:
            tl.store(d_raw + MASK + head * W + w, d_mask, mask=in_word)
    tl.debug_barrier()
    return d_tile


@triton.jit(do_not_specialize=["steps", "batch_size", "rows_per_member"])
def static_forward(
    features,
    gates,
    recurrent,
    upper,
    interface_weight,
    interface_bias,
    interface,
    gated,
    cells,
    weights,
    memory,
    last_memory,
    checkpoints,
    steps,
    batch_size,
    rows_per_member,
    KIND: tl.constexpr,
    LAYERS: tl.constexpr,
    HIDDEN: tl.constexpr,
    CLIP: tl.constexpr,
    GATES: tl.constexpr,
    FEATURES: tl.constexpr,
    INTERFACE: tl.constexpr,
    N: tl.constexpr,
    W: tl.constexpr,
    R: tl.constexpr,
    H: tl.constexpr,
    S: tl.constexpr,
    KEYS: tl.constexpr,
    STRENGTHS: tl.constexpr,
    GATE: tl.constexpr,
    SHIFT: tl.constexpr,
    SHARPNESS: tl.constexpr,
    ERASE: tl.constexpr,
    ADD: tl.constexpr,
    MASK: tl.constexpr,
    MASK_MIN: tl.constexpr,
    KEEP: tl.constexpr,
    KEEP_EVERY: tl.constexpr,
    NORM_EPSILON: tl.constexpr,
    SHARPEN_EPSILON: tl.constexpr,
    THREADS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """One program per sequence.

    ``features`` ``[T + 1, B, F]`` hold the first step's state in their first row; ``gates`` ``[T, B, L * G]`` the
    products with the inputs, to which the rest is added in place; ``recurrent`` is ``[hidden + R * W, G]``, ``upper``
    ``[L - 1, 2 * hidden, G]`` and ``interface_weight`` ``[hidden, I]``. With KEEP, every step is recorded for the
    backward pass: ``interface`` ``[T, B, I]``, ``gated`` ``[T, B, K, N]``, ``cells`` ``[T + 1, B, L * hidden]``,
    ``weights`` ``[T + 1, B, K, N]``; without, they are room for one step, or two that take turns. Members of a
    population, ``rows_per_member`` sequences each, have weights of their own.
    """
    K: tl.constexpr = R + H
    batch = tl.program_id(0).to(tl.int64)
    member = batch // rows_per_member
    recurrent += member * (HIDDEN + R * W) * (GATES // LAYERS)
    upper += member * (LAYERS - 1) * 2 * HIDDEN * (GATES // LAYERS)
    interface_weight += member * HIDDEN * INTERFACE
    interface_bias += member * INTERFACE
    h = tl.arange(0, BLOCK_H)
    i = tl.arange(0, BLOCK_I)
    n = tl.arange(0, BLOCK_N)
    w = tl.arange(0, BLOCK_W)
    s = tl.arange(0, BLOCK_S)
    inside = (n < N)[:, None] & (w < W)[None, :]
    offsets = batch * N * W + n[:, None] * W + w[None, :]
    tile = tl.load(memory + offsets, mask=inside, other=0.0)
    for t in range(steps):
        row = t * batch_size + batch
        room, now, then = recorded_rows(t, batch, batch_size, KEEP)
        if KEEP and t % KEEP_EVERY == 0:
            chunk = ((t // KEEP_EVERY) * batch_size).to(tl.int64)
            tl.store(checkpoints + chunk * N * W + offsets, tile, mask=inside)
        before = features + row * FEATURES
        after = before + batch_size.to(tl.int64) * FEATURES
        cell = cells + now * LAYERS * HIDDEN
        new_cell = cells + then * LAYERS * HIDDEN
        sums = gates + row * GATES
        controller_forward(
            before, after, sums, cell, new_cell, recurrent, upper, h, R * W, HIDDEN, LAYERS, KIND, CLIP, THREADS
        )
        raw = interface + room * INTERFACE
        interface_forward(after, interface_weight, interface_bias, raw, i, HIDDEN, INTERFACE, THREADS)

        old = weights + now * K * N
        new = weights + then * K * N
        gated_row = gated + room * K * N
        _locate(
            tile,
            raw,
            old,
            new,
            gated_row,
            n,
            w,
            s,
            R,
            K,
            N,
            W,
            S,
            KEYS,
            STRENGTHS,
            GATE,
            SHIFT,
            SHARPNESS,
            MASK,
            MASK_MIN,
            NORM_EPSILON,
            SHARPEN_EPSILON,
        )
        tile = written(tile, new + R * N, raw + ERASE, raw + ADD, n, w, N, W, H, True, True)
        _locate(
            tile,
            raw,
            old,
            new,
            gated_row,
            n,
            w,
            s,
            0,
            R,
            N,
            W,
            S,
            KEYS,
            STRENGTHS,
            GATE,
            SHIFT,
            SHARPNESS,
            MASK,
            MASK_MIN,
            NORM_EPSILON,
            SHARPEN_EPSILON,
        )
        for head in range(R):
            weight = tl.load(new + head * N + n, mask=n < N, other=0.0)
            tl.store(after + LAYERS * HIDDEN + head * W + w, tl.sum(weight[:, None] * tile, 0), mask=w < W)
        tl.debug_barrier()
    tl.store(last_memory + offsets, tile, mask=inside)


@triton.jit(do_not_specialize=["steps", "batch_size"])
def static_backward(
    features,
    gates,
    recurrent,
    upper,
    interface_weight,
    interface,
    gated,
    cells,
    weights,
    checkpoints,
    memories,
    d_features,
    d_gates,
    d_interface,
    d_weights,
    d_cells,
    d_memory,
    steps,
    batch_size,
    KIND: tl.constexpr,
    LAYERS: tl.constexpr,
    HIDDEN: tl.constexpr,
    CLIP: tl.constexpr,
    GATES: tl.constexpr,
    FEATURES: tl.constexpr,
    INTERFACE: tl.constexpr,
    N: tl.constexpr,
    W: tl.constexpr,
    R: tl.constexpr,
    H: tl.constexpr,
    S: tl.constexpr,
    KEYS: tl.constexpr,
    STRENGTHS: tl.constexpr,
    GATE: tl.constexpr,
    SHIFT: tl.constexpr,
    SHARPNESS: tl.constexpr,
    ERASE: tl.constexpr,
    ADD: tl.constexpr,
    MASK: tl.constexpr,
    MASK_MIN: tl.constexpr,
    KEEP_EVERY: tl.constexpr,
    NORM_EPSILON: tl.constexpr,
    SHARPEN_EPSILON: tl.constexpr,
    THREADS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """One program per sequence, from the last step to the first.

    ``recurrent`` is ``[G, hidden + R * W]``, ``upper`` ``[L - 1, G, 2 * hidden]`` and ``interface_weight``
    ``[I, hidden]``. ``d_features`` ``[T + 1, B, F]``, ``d_cells`` and ``d_memory`` hold the gradients of what the
    forward pass gave, and in the end those of what it was given; the two rows of ``d_weights`` ``[2, B, K, N]`` take
    turns: row T % 2 holds the gradient of what was given out, row 0 in the end that of what was taken in. ``d_gates``
    and ``d_interface`` are filled for every step. ``memories`` is room for the memories of KEEP_EVERY steps.
    """
    K: tl.constexpr = R + H
    batch = tl.program_id(0).to(tl.int64)
    h = tl.arange(0, BLOCK_H)
    f = tl.arange(0, BLOCK_F)
    n = tl.arange(0, BLOCK_N)
    w = tl.arange(0, BLOCK_W)
    s = tl.arange(0, BLOCK_S)
    in_memory, in_word = n < N, w < W
    inside = in_memory[:, None] & in_word[None, :]
    within = n[:, None] * W + w[None, :]
    memories += batch * KEEP_EVERY * N * W
    d_cells += batch * LAYERS * HIDDEN
    d_tile = tl.load(d_memory + batch * N * W + within, mask=inside, other=0.0)
    chunks = (steps + KEEP_EVERY - 1) // KEEP_EVERY
    for back in range(chunks):
        first = (chunks - 1 - back) * KEEP_EVERY
        count = tl.minimum(steps - first, KEEP_EVERY)
        chunk = (chunks - 1 - back) * batch_size + batch
        tile = tl.load(checkpoints + chunk * N * W + within, mask=inside, other=0.0)
        for step in range(count):
            row = (first + step) * batch_size + batch
            tl.store(memories + step * N * W + within, tile, mask=inside)
            writes = weights + ((row + batch_size) * K + R) * N
            raw = interface + row * INTERFACE
            tile = written(tile, writes, raw + ERASE, raw + ADD, n, w, N, W, H, True, True)
        tl.debug_barrier()

        for behind in range(count):
            step = count - 1 - behind
            t = first + step
            row = t * batch_size + batch
            raw = interface + row * INTERFACE
            d_raw = d_interface + row * INTERFACE
            old = weights + row * K * N
            new = weights + (row + batch_size) * K * N
            d_old = d_weights + ((t % 2) * batch_size + batch) * K * N
            d_new = d_weights + (((t + 1) % 2) * batch_size + batch) * K * N
            gated_row = gated + row * K * N
            d_after = d_features + (row + batch_size) * FEATURES
            tile = tl.load(memories + step * N * W + within, mask=inside, other=0.0)

            # Reads and what found them, in the new memory; then writes and what found those, in the old one.
            erase, add = raw + ERASE, raw + ADD
            new_tile = written(tile, new + R * N, erase, add, n, w, N, W, H, True, True)
            for head in range(R):
                d_read = tl.load(d_after + LAYERS * HIDDEN + head * W + w, mask=in_word, other=0.0)[None, :]
                weight = tl.load(new + head * N + n, mask=in_memory, other=0.0)
                d_tile += weight[:, None] * d_read
                d_weight = tl.load(d_new + head * N + n, mask=in_memory, other=0.0) + tl.sum(new_tile * d_read, 1)
                tl.store(d_new + head * N + n, d_weight, mask=in_memory)
            tl.debug_barrier()
            d_tile = _locate_backward(
                new_tile,
                d_tile,
                raw,
                d_raw,
                old,
                d_old,
                new,
                d_new,
                gated_row,
                n,
                w,
                s,
                0,
                R,
                N,
                W,
                S,
                KEYS,
                STRENGTHS,
                GATE,
                SHIFT,
                SHARPNESS,
                MASK,
                MASK_MIN,
                NORM_EPSILON,
                SHARPEN_EPSILON,
            )
            kept = tl.full([BLOCK_N, BLOCK_W], 1.0, tile.dtype)
            for head in range(H):
                d_written, d_erase, d_add, left = write_backward(
                    tile, d_tile, new + R * N, erase, add, head, n, w, N, W, H, True, True
                )
                kept *= left
                d_weight = tl.load(d_new + (R + head) * N + n, mask=in_memory, other=0.0) + d_written
                tl.store(d_new + (R + head) * N + n, d_weight, mask=in_memory)
                tl.store(d_raw + ERASE + head * W + w, d_erase, mask=in_word)
                tl.store(d_raw + ADD + head * W + w, d_add, mask=in_word)
            d_tile *= kept
            tl.debug_barrier()

            d_tile = _locate_backward(
                tile,
                d_tile,
                raw,
                d_raw,
                old,
                d_old,
                new,
                d_new,
                gated_row,
                n,
                w,
                s,
                R,
                K,
                N,
                W,
                S,
                KEYS,
                STRENGTHS,
                GATE,
                SHIFT,
                SHARPNESS,
                MASK,
                MASK_MIN,
                NORM_EPSILON,
                SHARPEN_EPSILON,
            )

            d_hidden = interface_backward(d_after, interface_weight, d_raw, h, HIDDEN, INTERFACE, THREADS)
            before = features + row * FEATURES
            d_before = d_features + row * FEATURES
            sums, d_sums = gates + row * GATES, d_gates + row * GATES
            cell = cells + row * LAYERS * HIDDEN
            controller_backward(
                before,
                sums,
                cell,
                recurrent,
                upper,
                d_hidden,
                d_after,
                d_before,
                d_sums,
                d_cells,
                h,
                f,
                R * W,
                HIDDEN,
                LAYERS,
                KIND,
                CLIP,
                THREADS,
            )
    tl.store(d_memory + batch * N * W + within, d_tile, mask=inside)


@dataclass(frozen=True)
class StaticRecurrence(Recurrence):
    """An NTM: static access; its state is the memory ``[B, N, W]``."""

    shifts: int
    """S"""

    forward_kernel: ClassVar[Any] = static_forward
    backward_kernel: ClassVar[Any] = static_backward
    checkpointed: ClassVar[int] = 1

    def recorded(self) -> tuple[int, ...]:
        """Of the gated weightings."""
        return self.reads + self.writes, self.slots

    @property
    def tile(self) -> int:
        """See :attr:`Recurrence.tile`."""
        return power_of_two(self.slots) * power_of_two(self.word)

    def unavailable(self) -> str | None:
        """See :meth:`Recurrence.unavailable`."""
        if self.tile > LARGEST_TILE:
            return f"a memory of {self.slots} x {self.word} fills more than the registers of a program"
        return super().unavailable()

    def constants(self, *, backward: bool) -> dict[str, Any]:
        """See :meth:`Recurrence.constants`."""
        return {
            "MASK": 0,
            **super().constants(backward=backward),
            "S": self.shifts,
            "SHARPEN_EPSILON": SHARPEN_EPSILON,
            "BLOCK_S": power_of_two(self.shifts),
        }
