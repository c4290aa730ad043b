"""A whole sequence of a small DNC in one launch, its memory and its links in registers; see recurrence.py.

Usage is kept for every step as it was sorted, so that slots that tied then tie again in the backward pass.

Shapes: T steps, B batch, L layers, F = L * hidden + R * W features, I interface, R read heads, H write heads,
K = R + H, N slots, W word size. Tiles of write heads have the heads first: write weightings ``[H, N]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import triton
import triton.language as tl

from ...addressing import SHARPEN_EPSILON, USAGE_EPSILON
from .allocation import retained, sorted_before, unwritten
from .content import lookup, lookup_backward, lookup_head, slot_norms
from .controllers import controller_backward, controller_forward, interface_backward, interface_forward
from .launch import power_of_two, sigmoid, softmax_backward, softplus, softplus_slope
from .links import linked
from .location import sharpened
from .recurrence import Recurrence, recorded_rows
from .writing import write_backward, written

LARGEST_TILE = 4096
"""Elements of a memory and of its links, sides rounded up to powers of two: the backward pass holds six of them."""


@triton.jit
def _raised(weights):
    """Weights of the links without those that rounding left below zero; NaN stays NaN."""
    return tl.where(weights < 0.0, 0.0, weights)


@triton.jit
def _followed(weights, raw_power, inside, SHARPEN: tl.constexpr, NORM_EPSILON: tl.constexpr):
    """Weightings along the links ``[H, N]``, sharpened if SHARPEN is not None: the least weight of a logarithm."""
    if SHARPEN is not None:
        raised = _raised(weights)
        total = tl.sum(raised, 1)[:, None]
        power = (1.0 + softplus(raw_power))[:, None]
        weights = sharpened(raised, power, inside, SHARPEN, 1) * (total / (total + NORM_EPSILON))
    return weights


@triton.jit
def _followed_backward(weights, raw_power, gradient, inside, SHARPEN: tl.constexpr, NORM_EPSILON: tl.constexpr):
    """Gradients of the weightings and of the raw powers of :func:`_followed`."""
    d_power = tl.zeros_like(raw_power)
    if SHARPEN is not None:
        raised = _raised(weights)
        total = tl.sum(raised, 1)[:, None]
        power = (1.0 + softplus(raw_power))[:, None]
        shares = sharpened(raised, power, inside, SHARPEN, 1)
        d_logit = softmax_backward(shares, gradient * (total / (total + NORM_EPSILON)), 1)
        d_power = tl.sum(d_logit * tl.log(raised + SHARPEN), 1) * softplus_slope(raw_power)
        d_total = tl.sum(gradient * shares, 1)[:, None] * NORM_EPSILON
        d_total /= (total + NORM_EPSILON) * (total + NORM_EPSILON)
        gradient = tl.where((weights >= 0.0) & inside, d_logit * power / (raised + SHARPEN) + d_total, 0.0)
    return gradient, d_power


@triton.jit
def _powers(raw, writes, H: tl.constexpr, SHARPEN: tl.constexpr):
    """Raw exponents of the backward and the forward weightings of a read head, ``[H]`` each; 0 without sharpening."""
    backward = tl.zeros(writes.shape, raw.dtype.element_ty)
    forward = backward
    if SHARPEN is not None:
        backward = tl.load(raw + writes, mask=writes < H, other=0.0)
        forward = tl.load(raw + H + writes, mask=writes < H, other=0.0)
    return backward, forward


@triton.jit
def _modes(raw, writes, H: tl.constexpr):
    """Shares of backward ``[H]``, content and forward ``[H]`` of a read head."""
    backward = tl.load(raw + writes, mask=writes < H, other=float("-inf"))
    content = tl.load(raw + H)
    forward = tl.load(raw + H + 1 + writes, mask=writes < H, other=float("-inf"))
    largest = tl.maximum(tl.maximum(tl.max(backward, 0), tl.max(forward, 0)), content)
    backward, content, forward = tl.exp(backward - largest), tl.exp(content - largest), tl.exp(forward - largest)
    total = tl.sum(backward, 0) + content + tl.sum(forward, 0)
    return backward / total, content / total, forward / total


@triton.jit
def _before(used, n, N: tl.constexpr):
    """Whether the slot of a column comes before the slot of a row when usages are sorted."""
    return sorted_before(used[None, :], n[None, :], used[:, None], n[:, None]) & (n < N)[None, :]


@triton.jit
def _smaller(used, before):
    """Product of the usages of all slots that come before."""
    return tl.exp(tl.sum(tl.where(before, tl.log(used)[None, :], 0.0), 1))


@triton.jit
def _linked(links, precedence, write, n):
    """Links ``[H, N, N]`` after a write."""
    diagonal = n[None, :, None] == n[None, None, :]
    return linked(links, write[:, :, None], write[:, None, :], precedence[:, None, :], diagonal)


@triton.jit(do_not_specialize=["steps", "batch_size", "rows_per_member"])
def dynamic_forward(
    features,
    gates,
    recurrent,
    upper,
    interface_weight,
    interface_bias,
    interface,
    useds,
    cells,
    weights,
    usages,
    memory,
    links,
    precedences,
    last_memory,
    last_links,
    last_precedences,
    kept_memory,
    kept_links,
    kept_precedences,
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
    READ_KEYS: tl.constexpr,
    READ_STRENGTHS: tl.constexpr,
    WRITE_KEYS: tl.constexpr,
    WRITE_STRENGTHS: tl.constexpr,
    ERASE: tl.constexpr,
    ADD: tl.constexpr,
    FREE_GATES: tl.constexpr,
    ALLOCATION_GATES: tl.constexpr,
    WRITE_GATES: tl.constexpr,
    READ_MODES: tl.constexpr,
    READ_MASK: tl.constexpr,
    WRITE_MASK: tl.constexpr,
    LINK_POWERS: tl.constexpr,
    SQUASH: tl.constexpr,
    WIPE: tl.constexpr,
    MASK_MIN: tl.constexpr,
    SHARPEN: tl.constexpr,
    KEEP: tl.constexpr,
    KEEP_EVERY: tl.constexpr,
    NORM_EPSILON: tl.constexpr,
    USAGE_EPSILON: tl.constexpr,
    THREADS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_WRITES: tl.constexpr,
):
    """One program per sequence.

    As :func:`~papertape.core.kernels.triton.static_sequence.static_forward`. With KEEP, ``usages`` ``[T + 1, B, N]``
    records the usage after every step and ``useds`` ``[T, B, H, N]`` what every write head sorted.
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
    writes = tl.arange(0, BLOCK_WRITES)
    in_memory, in_word = n < N, w < W
    inside = in_memory[:, None] & in_word[None, :]
    of_writes = (writes < H)[:, None] & in_memory[None, :]
    of_links = of_writes[:, :, None] & in_memory[None, None, :]
    offsets = batch * N * W + n[:, None] * W + w[None, :]
    write_offsets = writes[:, None] * N + n[None, :]
    link_offsets = batch * H * N * N + write_offsets[:, :, None] * N + n[None, None, :]
    tile = tl.load(memory + offsets, mask=inside, other=0.0)
    link = tl.load(links + link_offsets, mask=of_links, other=0.0)
    precedence = tl.load(precedences + batch * H * N + write_offsets, mask=of_writes, other=0.0)
    usage = tl.load(usages + batch * N + n, mask=in_memory, other=0.0)
    for t in range(steps):
        row = t * batch_size + batch
        room, now, then = recorded_rows(t, batch, batch_size, KEEP)
        if KEEP and t % KEEP_EVERY == 0:
            chunk = ((t // KEEP_EVERY) * batch_size).to(tl.int64)
            tl.store(kept_memory + chunk * N * W + offsets, tile, mask=inside)
            tl.store(kept_links + chunk * H * N * N + link_offsets, link, mask=of_links)
            tl.store(kept_precedences + (chunk + batch) * H * N + write_offsets, precedence, mask=of_writes)
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

        # Where to write: each head takes what the heads before it left.
        kept = retained(raw + FREE_GATES, old, n, N, R, True)
        taken = 1.0 - unwritten(old + R * N, n, N, H)
        usage = (usage + taken - usage * taken) * kept
        tl.store(usages + then * N + n, usage, mask=in_memory)
        used = (1.0 - USAGE_EPSILON) * usage + USAGE_EPSILON
        norm = slot_norms(tile, NORM_EPSILON)
        for head in range(H):
            if KEEP:
                tl.store(useds + (row * H + head) * N + n, used, mask=in_memory)
            allocation = tl.where(in_memory, (1.0 - used) * _smaller(used, _before(used, n, N)), 0.0)
            key, strength, mask = lookup_head(
                raw, WRITE_KEYS + head * W, WRITE_STRENGTHS + head, WRITE_MASK + head * W, w, W, SQUASH, MASK_MIN
            )
            content, _ = lookup(tile, norm, key, strength, mask, in_memory, 1.0, MASK_MIN, NORM_EPSILON)
            allocate = sigmoid(tl.load(raw + ALLOCATION_GATES + head))
            gate = sigmoid(tl.load(raw + WRITE_GATES + head))
            chosen = content + allocate * (allocation - content)
            tl.store(new + (R + head) * N + n, gate * chosen, mask=in_memory)
            used += (1.0 - used) * allocate * gate * allocation
        tl.debug_barrier()

        # Write, then read.
        if WIPE:
            tile = tile * kept[:, None]
        tile = written(tile, new + R * N, raw + ERASE, raw + ADD, n, w, N, W, H, True, SQUASH)
        write = tl.load(new + R * N + write_offsets, mask=of_writes, other=0.0)
        link = _linked(link, precedence, write, n)
        precedence = (1.0 - tl.sum(write, 1))[:, None] * precedence + write
        norm = slot_norms(tile, NORM_EPSILON)
        for head in range(R):
            key, strength, mask = lookup_head(
                raw, READ_KEYS + head * W, READ_STRENGTHS + head, READ_MASK + head * W, w, W, SQUASH, MASK_MIN
            )
            content, _ = lookup(tile, norm, key, strength, mask, in_memory, 1.0, MASK_MIN, NORM_EPSILON)
            backward, by_content, forward = _modes(raw + READ_MODES + head * (1 + 2 * H), writes, H)
            backward_power, forward_power = _powers(raw + LINK_POWERS + 2 * H * head, writes, H, SHARPEN)
            last = tl.load(old + head * N + n, mask=in_memory, other=0.0)
            read = by_content * content
            behind = tl.sum(link * last[None, :, None], 1)
            behind = _followed(behind, backward_power, in_memory[None, :], SHARPEN, NORM_EPSILON)
            read += tl.sum(backward[:, None] * behind, 0)
            ahead = tl.sum(link * last[None, None, :], 2)
            ahead = _followed(ahead, forward_power, in_memory[None, :], SHARPEN, NORM_EPSILON)
            read += tl.sum(forward[:, None] * ahead, 0)
            tl.store(new + head * N + n, read, mask=in_memory)
            tl.store(after + LAYERS * HIDDEN + head * W + w, tl.sum(read[:, None] * tile, 0), mask=in_word)
        tl.debug_barrier()
    tl.store(last_memory + offsets, tile, mask=inside)
    tl.store(last_links + link_offsets, link, mask=of_links)
    tl.store(last_precedences + batch * H * N + write_offsets, precedence, mask=of_writes)


@triton.jit(do_not_specialize=["steps", "batch_size"])
def dynamic_backward(
    features,
    gates,
    recurrent,
    upper,
    interface_weight,
    interface,
    useds,
    cells,
    weights,
    usages,
    kept_memory,
    kept_links,
    kept_precedences,
    memories,
    link_room,
    precedence_room,
    d_features,
    d_gates,
    d_interface,
    d_weights,
    d_cells,
    d_memory,
    d_links,
    d_precedences,
    d_usage,
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
    READ_KEYS: tl.constexpr,
    READ_STRENGTHS: tl.constexpr,
    WRITE_KEYS: tl.constexpr,
    WRITE_STRENGTHS: tl.constexpr,
    ERASE: tl.constexpr,
    ADD: tl.constexpr,
    FREE_GATES: tl.constexpr,
    ALLOCATION_GATES: tl.constexpr,
    WRITE_GATES: tl.constexpr,
    READ_MODES: tl.constexpr,
    READ_MASK: tl.constexpr,
    WRITE_MASK: tl.constexpr,
    LINK_POWERS: tl.constexpr,
    SQUASH: tl.constexpr,
    WIPE: tl.constexpr,
    MASK_MIN: tl.constexpr,
    SHARPEN: tl.constexpr,
    USAGE_GRADIENT: tl.constexpr,
    KEEP_EVERY: tl.constexpr,
    NORM_EPSILON: tl.constexpr,
    USAGE_EPSILON: tl.constexpr,
    THREADS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_WRITES: tl.constexpr,
):
    """One program per sequence, from the last step to the first; see static_backward of static_sequence.py."""
    K: tl.constexpr = R + H
    batch = tl.program_id(0).to(tl.int64)
    h = tl.arange(0, BLOCK_H)
    f = tl.arange(0, BLOCK_F)
    n = tl.arange(0, BLOCK_N)
    w = tl.arange(0, BLOCK_W)
    writes = tl.arange(0, BLOCK_WRITES)
    in_memory, in_word = n < N, w < W
    inside = in_memory[:, None] & in_word[None, :]
    of_writes = (writes < H)[:, None] & in_memory[None, :]
    of_links = of_writes[:, :, None] & in_memory[None, None, :]
    offsets = n[:, None] * W + w[None, :]
    write_offsets = writes[:, None] * N + n[None, :]
    link_offsets = write_offsets[:, :, None] * N + n[None, None, :]
    memories += batch * KEEP_EVERY * N * W
    link_room += batch * KEEP_EVERY * H * N * N
    precedence_room += batch * KEEP_EVERY * H * N
    d_cells += batch * LAYERS * HIDDEN
    d_memory += batch * N * W
    d_links += batch * H * N * N
    d_precedences += batch * H * N
    d_usage += batch * N
    d_tile = tl.load(d_memory + offsets, mask=inside, other=0.0)
    d_link = tl.load(d_links + link_offsets, mask=of_links, other=0.0)
    d_precedence = tl.load(d_precedences + write_offsets, mask=of_writes, other=0.0)
    d_use = tl.load(d_usage + n, mask=in_memory, other=0.0)
    chunks = (steps + KEEP_EVERY - 1) // KEEP_EVERY
    for back in range(chunks):
        first = (chunks - 1 - back) * KEEP_EVERY
        count = tl.minimum(steps - first, KEEP_EVERY)
        chunk = (chunks - 1 - back) * batch_size + batch
        tile = tl.load(kept_memory + chunk * N * W + offsets, mask=inside, other=0.0)
        link = tl.load(kept_links + chunk * H * N * N + link_offsets, mask=of_links, other=0.0)
        precedence = tl.load(kept_precedences + chunk * H * N + write_offsets, mask=of_writes, other=0.0)
        for step in range(count):
            row = (first + step) * batch_size + batch
            tl.store(memories + step * N * W + offsets, tile, mask=inside)
            tl.store(link_room + step * H * N * N + link_offsets, link, mask=of_links)
            tl.store(precedence_room + step * H * N + write_offsets, precedence, mask=of_writes)
            raw = interface + row * INTERFACE
            new = weights + ((row + batch_size) * K + R) * N
            if WIPE:
                tile = tile * retained(raw + FREE_GATES, weights + row * K * N, n, N, R, True)[:, None]
            tile = written(tile, new, raw + ERASE, raw + ADD, n, w, N, W, H, True, SQUASH)
            write = tl.load(new + write_offsets, mask=of_writes, other=0.0)
            link = _linked(link, precedence, write, n)
            precedence = (1.0 - tl.sum(write, 1))[:, None] * precedence + write
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
            d_after = d_features + (row + batch_size) * FEATURES
            tile = tl.load(memories + step * N * W + offsets, mask=inside, other=0.0)
            link = tl.load(link_room + step * H * N * N + link_offsets, mask=of_links, other=0.0)
            precedence = tl.load(precedence_room + step * H * N + write_offsets, mask=of_writes, other=0.0)
            write = tl.load(new + R * N + write_offsets, mask=of_writes, other=0.0)
            kept = retained(raw + FREE_GATES, old, n, N, R, True)
            wiped = tile
            if WIPE:
                wiped = tile * kept[:, None]
            new_tile = written(wiped, new + R * N, raw + ERASE, raw + ADD, n, w, N, W, H, True, SQUASH)
            new_link = _linked(link, precedence, write, n)

            # Reads.
            norm = slot_norms(new_tile, NORM_EPSILON)
            for head in range(R):
                d_read = tl.load(d_after + LAYERS * HIDDEN + head * W + w, mask=in_word, other=0.0)
                weight = tl.load(new + head * N + n, mask=in_memory, other=0.0)
                last = tl.load(old + head * N + n, mask=in_memory, other=0.0)
                d_weight = tl.load(d_new + head * N + n, mask=in_memory, other=0.0)
                d_weight += tl.sum(new_tile * d_read[None, :], 1)
                key, strength, mask = lookup_head(
                    raw, READ_KEYS + head * W, READ_STRENGTHS + head, READ_MASK + head * W, w, W, SQUASH, MASK_MIN
                )
                content, cosine = lookup(new_tile, norm, key, strength, mask, in_memory, 1.0, MASK_MIN, NORM_EPSILON)
                modes = READ_MODES + head * (1 + 2 * H)
                backward, by_content, forward = _modes(raw + modes, writes, H)
                powers = LINK_POWERS + 2 * H * head
                backward_power, forward_power = _powers(raw + powers, writes, H, SHARPEN)
                behind_links = tl.sum(new_link * last[None, :, None], 1)
                ahead_links = tl.sum(new_link * last[None, None, :], 2)
                in_row = in_memory[None, :]
                followed = _followed(behind_links, backward_power, in_row, SHARPEN, NORM_EPSILON)
                d_backward = tl.sum(d_weight[None, :] * followed, 1)
                followed = _followed(ahead_links, forward_power, in_row, SHARPEN, NORM_EPSILON)
                d_forward = tl.sum(d_weight[None, :] * followed, 1)
                d_by_content = tl.sum(d_weight * content, 0)
                mean = tl.sum(backward * d_backward, 0) + by_content * d_by_content + tl.sum(forward * d_forward, 0)
                tl.store(d_raw + modes + writes, backward * (d_backward - mean), mask=writes < H)
                tl.store(d_raw + modes + H, by_content * (d_by_content - mean))
                tl.store(d_raw + modes + H + 1 + writes, forward * (d_forward - mean), mask=writes < H)
                d_behind, d_backward_power = _followed_backward(
                    behind_links, backward_power, backward[:, None] * d_weight[None, :], in_row, SHARPEN, NORM_EPSILON
                )
                d_ahead, d_forward_power = _followed_backward(
                    ahead_links, forward_power, forward[:, None] * d_weight[None, :], in_row, SHARPEN, NORM_EPSILON
                )
                if SHARPEN is not None:
                    tl.store(d_raw + powers + writes, d_backward_power, mask=writes < H)
                    tl.store(d_raw + powers + H + writes, d_forward_power, mask=writes < H)
                d_link += d_ahead[:, :, None] * last[None, None, :] + last[None, :, None] * d_behind[:, None, :]
                d_last = tl.sum(tl.sum(new_link * d_behind[:, None, :], 2), 0)
                d_last += tl.sum(tl.sum(new_link * d_ahead[:, :, None], 1), 0)
                tl.store(d_old + head * N + n, d_last, mask=in_memory)
                d_content = by_content * d_weight
                d_found, d_key, d_strength, d_mask = lookup_backward(
                    new_tile, norm, key, strength, mask, content, cosine, d_content, SQUASH, 1.0, MASK_MIN, NORM_EPSILON
                )
                d_tile += weight[:, None] * d_read[None, :] + d_found
                tl.store(d_raw + READ_KEYS + head * W + w, d_key, mask=in_word)
                tl.store(d_raw + READ_STRENGTHS + head, d_strength)
                if MASK_MIN is not None:
                    tl.store(d_raw + READ_MASK + head * W + w, d_mask, mask=in_word)

            # Precedence, links and the write.
            d_write = tl.load(d_new + R * N + write_offsets, mask=of_writes, other=0.0)
            d_write += d_precedence - tl.sum(d_precedence * precedence, 1)[:, None]
            d_precedence *= 1.0 - tl.sum(write, 1)[:, None]
            d_link = tl.where(n[None, :, None] == n[None, None, :], 0.0, d_link)
            d_write += tl.sum(d_link * (precedence[:, None, :] - link), 2) - tl.sum(d_link * link, 1)
            d_precedence += tl.sum(d_link * write[:, :, None], 1)
            d_link *= 1.0 - write[:, :, None] - write[:, None, :]
            # For one head at a time from here on.
            tl.store(d_new + R * N + write_offsets, d_write, mask=of_writes)
            tl.debug_barrier()
            left_of_all = tl.full([BLOCK_N, BLOCK_W], 1.0, tile.dtype)
            for head in range(H):
                d_written, d_erase, d_add, left = write_backward(
                    wiped, d_tile, new + R * N, raw + ERASE, raw + ADD, head, n, w, N, W, H, True, SQUASH
                )
                left_of_all *= left
                d_weight = tl.load(d_new + (R + head) * N + n, mask=in_memory, other=0.0) + d_written
                tl.store(d_new + (R + head) * N + n, d_weight, mask=in_memory)
                tl.store(d_raw + ERASE + head * W + w, d_erase, mask=in_word)
                tl.store(d_raw + ADD + head * W + w, d_add, mask=in_word)
            d_tile *= left_of_all
            d_kept = tl.zeros_like(d_use)
            if WIPE:
                d_kept += tl.sum(d_tile * tile, 1)
                d_tile *= kept[:, None]
            tl.debug_barrier()

            # Allocation against content, from the last head to the first.
            norm = slot_norms(tile, NORM_EPSILON)
            d_used = tl.zeros_like(d_use)
            for later in range(H):
                head = H - 1 - later
                used = tl.load(useds + (row * H + head) * N + n, mask=in_memory, other=1.0)
                before = _before(used, n, N)
                smaller = _smaller(used, before)
                allocation = tl.where(in_memory, (1.0 - used) * smaller, 0.0)
                key, strength, mask = lookup_head(
                    raw, WRITE_KEYS + head * W, WRITE_STRENGTHS + head, WRITE_MASK + head * W, w, W, SQUASH, MASK_MIN
                )
                content, cosine = lookup(tile, norm, key, strength, mask, in_memory, 1.0, MASK_MIN, NORM_EPSILON)
                allocate = sigmoid(tl.load(raw + ALLOCATION_GATES + head))
                gate = sigmoid(tl.load(raw + WRITE_GATES + head))
                d_weight = tl.load(d_new + (R + head) * N + n, mask=in_memory, other=0.0)
                difference = allocation - content
                d_chosen = gate * d_weight
                d_gate = tl.sum(d_weight * (content + allocate * difference), 0)
                d_allocate = tl.sum(d_chosen * difference, 0)
                d_allocation = allocate * d_chosen
                if H > 1:
                    # What this head took, the next one saw as used.
                    d_taken = d_used * (1.0 - used)
                    total = tl.sum(d_taken * allocation, 0)
                    d_gate += total * allocate
                    d_allocate += total * gate
                    d_allocation += d_taken * allocate * gate
                    d_used *= 1.0 - allocate * gate * allocation
                tl.store(d_raw + ALLOCATION_GATES + head, d_allocate * allocate * (1.0 - allocate))
                tl.store(d_raw + WRITE_GATES + head, d_gate * gate * (1.0 - gate))
                d_content = (1.0 - allocate) * d_chosen
                d_found, d_key, d_strength, d_mask = lookup_backward(
                    tile, norm, key, strength, mask, content, cosine, d_content, SQUASH, 1.0, MASK_MIN, NORM_EPSILON
                )
                d_tile += d_found
                tl.store(d_raw + WRITE_KEYS + head * W + w, d_key, mask=in_word)
                tl.store(d_raw + WRITE_STRENGTHS + head, d_strength)
                if MASK_MIN is not None:
                    tl.store(d_raw + WRITE_MASK + head * W + w, d_mask, mask=in_word)
                d_used += tl.sum(tl.where(before, (d_allocation * allocation)[:, None], 0.0), 0) / used
                d_used -= d_allocation * smaller

            # Usage.
            d_use += (1.0 - USAGE_EPSILON) * tl.where(in_memory, d_used, 0.0)
            usage = tl.load(usages + row * N + n, mask=in_memory, other=0.0)
            taken = 1.0 - unwritten(old + R * N, n, N, H)
            d_kept += d_use * (usage + taken - usage * taken)
            d_use *= kept
            for head in tl.static_range(H):
                d_weight = tl.zeros_like(d_use)
                if USAGE_GRADIENT:
                    d_weight += d_use * (1.0 - usage) * unwritten(old + R * N, n, N, H, head)
                tl.store(d_old + (R + head) * N + n, d_weight, mask=in_memory)
            d_use *= 1.0 - taken
            for head in tl.static_range(R):
                free = sigmoid(tl.load(raw + FREE_GATES + head))
                d_freed = -d_kept * retained(raw + FREE_GATES, old, n, N, R, True, head)
                weight = tl.load(old + head * N + n, mask=in_memory, other=0.0)
                tl.store(d_raw + FREE_GATES + head, tl.sum(d_freed * weight, 0) * free * (1.0 - free))
                d_weight = tl.load(d_old + head * N + n, mask=in_memory, other=0.0) + d_freed * free
                tl.store(d_old + head * N + n, d_weight, mask=in_memory)
            tl.debug_barrier()

            d_hidden = interface_backward(d_after, interface_weight, d_raw, h, HIDDEN, INTERFACE, THREADS)
            controller_backward(
                features + row * FEATURES,
                gates + row * GATES,
                cells + row * LAYERS * HIDDEN,
                recurrent,
                upper,
                d_hidden,
                d_after,
                d_features + row * FEATURES,
                d_gates + row * GATES,
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
    tl.store(d_memory + offsets, d_tile, mask=inside)
    tl.store(d_links + link_offsets, d_link, mask=of_links)
    tl.store(d_precedences + write_offsets, d_precedence, mask=of_writes)
    tl.store(d_usage + n, d_use, mask=in_memory)


@dataclass(frozen=True)
class DynamicRecurrence(Recurrence):
    """A DNC: dynamic access; its state is memory ``[B, N, W]``, links ``[B, H, N, N]``, precedence ``[B, H, N]``, usage
    ``[B, N]``.
    """

    squash: bool
    wipe: bool
    """``memory_wipe``"""
    sharpen: bool
    """``link_sharpening``"""
    usage_gradient: bool

    forward_kernel: ClassVar[Any] = dynamic_forward
    backward_kernel: ClassVar[Any] = dynamic_backward
    checkpointed: ClassVar[int] = 3

    def recorded(self) -> tuple[int, ...]:
        """Of the usages that the write heads sorted."""
        return self.writes, self.slots

    @property
    def tile(self) -> int:
        """See :attr:`Recurrence.tile`."""
        side = power_of_two(self.slots)
        return side * max(side * power_of_two(self.writes), power_of_two(self.word))

    def unavailable(self) -> str | None:
        """See :meth:`Recurrence.unavailable`."""
        if self.tile > LARGEST_TILE:
            links = "its links" if self.writes == 1 else f"the links of {self.writes} write heads"
            return f"a memory of {self.slots} x {self.word} and {links} fill more than the registers of a program"
        return super().unavailable()

    def constants(self, *, backward: bool) -> dict[str, Any]:
        """See :meth:`Recurrence.constants`."""
        return {
            **dict.fromkeys(("READ_MASK", "WRITE_MASK", "LINK_POWERS"), 0),
            **super().constants(backward=backward),
            "SQUASH": self.squash,
            "WIPE": self.wipe,
            "SHARPEN": SHARPEN_EPSILON if self.sharpen else None,
            **({"USAGE_GRADIENT": self.usage_gradient} if backward else {}),
            "USAGE_EPSILON": USAGE_EPSILON,
            "BLOCK_WRITES": power_of_two(self.writes),
        }
