"""A whole sequence of a small DNC in one launch: one program per sequence, its memory and its links in registers.

As in ntm.py; for one write head. What a step does to memory, links and precedence is computed again in the backward
pass from a checkpoint every few steps; usage is kept for every step, so that slots that tied then tie again.

Shapes: T steps, B batch, F = hidden + R * W features (hidden vector and words read), G = gates * hidden,
I interface, R read heads, K = R + 1 heads, N slots, W word size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...addressing import NORM_EPSILON, SHARPEN_EPSILON, USAGE_EPSILON
from ...heads import MASK_MIN
from .controllers import KEEP_EVERY, WARPS, chunk, controller_backward, controller_forward, too_wide
from .launch import launch, parts, power_of_two, sigmoid, softplus, softplus_slope, tanh

LARGEST_TILE = 4096
"""Elements of a memory and of its links, sides rounded up to powers of two: the backward pass holds six of them."""


@triton.jit
def _words(raw, w, W: tl.constexpr, SQUASH: tl.constexpr):
    """A key or a write vector."""
    words = tl.load(raw + w, mask=w < W, other=0.0)
    if SQUASH:
        words = tanh(words)
    return words


@triton.jit
def _words_slope(words, SQUASH: tl.constexpr):
    """Derivative of :func:`_words` by what it read, from what it gave."""
    slope = tl.full(words.shape, 1.0, words.dtype)
    if SQUASH:
        slope -= words * words
    return slope


@triton.jit
def _norm(tile, EPSILON: tl.constexpr):
    """Norm of every slot."""
    return tl.sqrt(tl.sum(tile * tile, 1) + EPSILON)


@triton.jit
def _mask(raw, w, W: tl.constexpr, MASK_MIN: tl.constexpr):
    """Element weights of a lookup, ``[BLOCK_W]``; 1 for all if there is no least one."""
    mask = tl.full(w.shape, 1.0, raw.dtype.element_ty)
    if MASK_MIN is not None:
        mask = MASK_MIN + (1.0 - MASK_MIN) * sigmoid(tl.load(raw + w, mask=w < W, other=0.0))
    return mask


@triton.jit
def _masked_norm(tile, norm, mask, MASK_MIN: tl.constexpr, EPSILON: tl.constexpr):
    """Norm of every slot as a lookup weighs its elements; ``norm`` is that without weights."""
    if MASK_MIN is not None:
        norm = tl.sqrt(tl.sum(tile * tile * (mask * mask)[None, :], 1) + EPSILON)
    return norm


@triton.jit
def _lookup(tile, norm, key, mask, strength, n, N: tl.constexpr, MASK_MIN: tl.constexpr, EPSILON: tl.constexpr):
    """Content weighting and similarity."""
    norm = _masked_norm(tile, norm, mask, MASK_MIN, EPSILON)
    key *= mask
    key_norm = tl.sqrt(tl.sum(key * key, 0) + EPSILON)
    similarity = tl.sum(tile * (key * mask)[None, :], 1) / (key_norm * norm + EPSILON)
    logits = tl.where(n < N, strength * similarity, float("-inf"))
    shares = tl.exp(logits - tl.max(logits, 0))
    return shares / tl.sum(shares, 0), similarity


@triton.jit
def _lookup_backward(
    tile,
    norm,
    key,
    mask,
    strength,
    content,
    similarity,
    d_content,
    MASK_MIN: tl.constexpr,
    EPSILON: tl.constexpr,
):
    """Gradients of the memory, the key, what enters the mask, and the strength of :func:`_lookup`."""
    norm = _masked_norm(tile, norm, mask, MASK_MIN, EPSILON)
    masked = key * mask
    key_norm = tl.sqrt(tl.sum(masked * masked, 0) + EPSILON)
    d_logit = content * (d_content - tl.sum(content * d_content, 0))
    d_dot = strength * d_logit / (key_norm * norm + EPSILON)
    d_denominator = -d_dot * similarity
    d_square = d_denominator * key_norm / norm
    d_tile = d_dot[:, None] * (masked * mask)[None, :] + d_square[:, None] * tile * (mask * mask)[None, :]
    d_product = tl.sum(d_dot[:, None] * tile, 0)
    d_masked = d_product * mask + tl.sum(d_denominator * norm, 0) * masked / key_norm
    d_mask = tl.zeros_like(d_masked)
    if MASK_MIN is not None:
        d_mask = d_product * masked + d_masked * key + mask * tl.sum(d_square[:, None] * tile * tile, 0)
        d_mask *= (mask - MASK_MIN) * (1.0 - mask) / (1.0 - MASK_MIN)
    return d_tile, d_masked * mask, d_mask, tl.sum(d_logit * similarity, 0)


@triton.jit
def _followed(weights, power, n, N: tl.constexpr, SHARPEN: tl.constexpr, NORM_EPSILON: tl.constexpr):
    """A weighting along the links, sharpened if SHARPEN is not None: the least weight of a logarithm."""
    if SHARPEN is not None:
        weights = tl.where(weights < 0.0, 0.0, weights)
        total = tl.sum(weights, 0)
        logits = tl.where(n < N, power * tl.log(weights + SHARPEN), float("-inf"))
        shares = tl.exp(logits - tl.max(logits, 0))
        weights = shares / tl.sum(shares, 0) * (total / (total + NORM_EPSILON))
    return weights


@triton.jit
def _followed_backward(weights, power, gradient, n, N: tl.constexpr, SHARPEN: tl.constexpr, NORM_EPSILON: tl.constexpr):
    """Gradients of the weighting and of the power of :func:`_followed`."""
    d_power = tl.zeros_like(power)
    if SHARPEN is not None:
        raised = tl.where(weights < 0.0, 0.0, weights)
        total = tl.sum(raised, 0)
        logarithm = tl.log(raised + SHARPEN)
        logits = tl.where(n < N, power * logarithm, float("-inf"))
        shares = tl.exp(logits - tl.max(logits, 0))
        shares /= tl.sum(shares, 0)
        d_share = gradient * (total / (total + NORM_EPSILON))
        d_logit = shares * (d_share - tl.sum(shares * d_share, 0))
        d_power = tl.sum(d_logit * logarithm, 0)
        d_total = tl.sum(gradient * shares, 0) * NORM_EPSILON / ((total + NORM_EPSILON) * (total + NORM_EPSILON))
        gradient = tl.where((weights >= 0.0) & (n < N), d_logit * power / (raised + SHARPEN) + d_total, 0.0)
    return gradient, d_power


@triton.jit
def _power(raw, SHARPEN: tl.constexpr):
    """Exponent of a weighting along the links; 1 without sharpening."""
    power = tl.full([], 1.0, raw.dtype.element_ty)
    if SHARPEN is not None:
        power += softplus(tl.load(raw))
    return power


@triton.jit
def _retained(old, free, n, N: tl.constexpr, R: tl.constexpr, EXCEPT: tl.constexpr):
    """How much of each slot all free gates but one leave."""
    result = tl.full(n.shape, 1.0, old.dtype.element_ty)
    for head in tl.static_range(R):
        if head != EXCEPT:
            weight = tl.load(old + head * N + n, mask=n < N, other=0.0)
            result *= 1.0 - sigmoid(tl.load(free + head)) * weight
    return result


@triton.jit
def _before(used, n, N: tl.constexpr):
    """Whether the slot of a column comes before the slot of a row in a stable sort."""
    less = used[None, :] < used[:, None]
    tie = (used[None, :] == used[:, None]) & (n[None, :] < n[:, None])
    return (less | tie) & (n < N)[None, :]


@triton.jit
def _smaller(used, before):
    """Product of the usages of all slots that come before."""
    return tl.exp(tl.sum(tl.where(before, tl.log(used)[None, :], 0.0), 1))


@triton.jit
def _erased_added(raw, w, R: tl.constexpr, W: tl.constexpr, SQUASH: tl.constexpr):
    """What the write head erases and adds."""
    place = raw + R * W + R + W + 1
    erase = tl.where(w < W, sigmoid(tl.load(place + w, mask=w < W, other=0.0)), 0.0)
    return erase, _words(place + W, w, W, SQUASH)


@triton.jit
def _linked(links, precedence, write, n):
    """Links after a write."""
    links = (1.0 - write[:, None] - write[None, :]) * links + write[:, None] * precedence[None, :]
    return tl.where(n[:, None] == n[None, :], 0.0, links)


@triton.jit
def _modes(raw):
    """Shares of backward, content and forward of a head."""
    backward, content, forward = tl.load(raw), tl.load(raw + 1), tl.load(raw + 2)
    largest = tl.maximum(tl.maximum(backward, content), forward)
    backward, content, forward = tl.exp(backward - largest), tl.exp(content - largest), tl.exp(forward - largest)
    total = backward + content + forward
    return backward / total, content / total, forward / total


@triton.jit(do_not_specialize=["steps", "batch_size", "rows_per_member"])
def dnc_forward(
    features,
    gates,
    recurrent,
    interface_weight,
    interface_bias,
    cells,
    memory,
    usages,
    links,
    precedences,
    interface,
    useds,
    weights,
    kept_memory,
    kept_links,
    kept_precedence,
    steps,
    batch_size,
    rows_per_member,
    HIDDEN: tl.constexpr,
    GATES: tl.constexpr,
    INTERFACE: tl.constexpr,
    N: tl.constexpr,
    W: tl.constexpr,
    R: tl.constexpr,
    KIND: tl.constexpr,
    CLIP: tl.constexpr,
    SQUASH: tl.constexpr,
    WIPE: tl.constexpr,
    MASK_MIN: tl.constexpr,
    SHARPEN: tl.constexpr,
    KEEP: tl.constexpr,
    KEEP_EVERY: tl.constexpr,
    NORM_EPSILON: tl.constexpr,
    USAGE_EPSILON: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """One program per sequence.

    As :func:`~tapehead.core.kernels.triton.ntm.ntm_forward`. ``memory``, ``links`` and ``precedences`` hold the first
    state and in the end the last, and so do the first and the last row of ``usages`` ``[T + 1, B, N]``. With KEEP,
    ``useds`` ``[T, B, N]`` records the usage as it was sorted.
    """
    F: tl.constexpr = HIDDEN + R * W
    G: tl.constexpr = GATES * HIDDEN
    K: tl.constexpr = R + 1
    FREE: tl.constexpr = R * W + R + 3 * W + 1
    MASKS: tl.constexpr = FREE + 4 * R + 2
    POWERS: tl.constexpr = MASKS + (K * W if MASK_MIN is not None else 0)
    batch = tl.program_id(0).to(tl.int64)
    member = batch // rows_per_member
    recurrent += member * F * G
    interface_weight += member * HIDDEN * INTERFACE
    interface_bias += member * INTERFACE
    h = tl.arange(0, BLOCK_H)
    i = tl.arange(0, BLOCK_I)
    n = tl.arange(0, BLOCK_N)
    w = tl.arange(0, BLOCK_W)
    in_memory, in_word = n < N, w < W
    inside = in_memory[:, None] & in_word[None, :]
    square = in_memory[:, None] & in_memory[None, :]
    offsets = batch * N * W + n[:, None] * W + w[None, :]
    link_offsets = batch * N * N + n[:, None] * N + n[None, :]
    tile = tl.load(memory + offsets, mask=inside, other=0.0)
    link = tl.load(links + link_offsets, mask=square, other=0.0)
    precedence = tl.load(precedences + batch * N + n, mask=in_memory, other=0.0)
    usage = tl.load(usages + batch * N + n, mask=in_memory, other=0.0)
    cell = tl.load(cells + batch * HIDDEN + h, mask=h < HIDDEN, other=0.0)
    for t in range(steps):
        row = t * batch_size + batch
        before = features + row * F
        after = before + batch_size.to(tl.int64) * F
        if KEEP:
            step_room, now, then = row, row, row + batch_size
            if t % KEEP_EVERY == 0:
                chunk = ((t // KEEP_EVERY) * batch_size).to(tl.int64)
                tl.store(kept_memory + chunk * N * W + offsets, tile, mask=inside)
                tl.store(kept_links + chunk * N * N + link_offsets, link, mask=square)
                tl.store(kept_precedence + (chunk + batch) * N + n, precedence, mask=in_memory)
        else:
            step_room, now, then = batch, (t % 2) * batch_size + batch, ((t + 1) % 2) * batch_size + batch
        raw = interface + step_room * INTERFACE
        cell = controller_forward(
            before,
            after,
            gates + row * G,
            recurrent,
            interface_weight,
            interface_bias,
            raw,
            cell,
            h,
            i,
            F,
            HIDDEN,
            GATES,
            INTERFACE,
            KIND,
            CLIP,
            CHUNK,
        )
        if KEEP:
            tl.store(cells + then * HIDDEN + h, cell, mask=h < HIDDEN)
        old = weights + now * K * N
        new = weights + then * K * N

        # Where to write.
        written = tl.load(old + R * N + n, mask=in_memory, other=0.0)
        retained = _retained(old, raw + FREE, n, N, R, -1)
        usage = (usage + written - usage * written) * retained
        used = (1.0 - USAGE_EPSILON) * usage + USAGE_EPSILON
        if KEEP:
            tl.store(usages + then * N + n, usage, mask=in_memory)
            tl.store(useds + row * N + n, used, mask=in_memory)
        allocation = tl.where(in_memory, (1.0 - used) * _smaller(used, _before(used, n, N)), 0.0)
        key = _words(raw + R * W + R, w, W, SQUASH)
        strength = 1.0 + softplus(tl.load(raw + R * W + R + W))
        mask = _mask(raw + MASKS + R * W, w, W, MASK_MIN)
        content, _ = _lookup(tile, _norm(tile, NORM_EPSILON), key, mask, strength, n, N, MASK_MIN, NORM_EPSILON)
        chosen = content + sigmoid(tl.load(raw + FREE + R)) * (allocation - content)
        write = sigmoid(tl.load(raw + FREE + R + 1)) * chosen
        tl.store(new + R * N + n, write, mask=in_memory)

        # Write, then read.
        erase, add = _erased_added(raw, w, R, W, SQUASH)
        if WIPE:
            tile = tile * retained[:, None]
        tile = tile * (1.0 - write[:, None] * erase[None, :]) + write[:, None] * add[None, :]
        link = _linked(link, precedence, write, n)
        precedence = (1.0 - tl.sum(write, 0)) * precedence + write
        norm = _norm(tile, NORM_EPSILON)
        for head in range(R):
            last = tl.load(old + head * N + n, mask=in_memory, other=0.0)
            key = _words(raw + head * W, w, W, SQUASH)
            strength = 1.0 + softplus(tl.load(raw + R * W + head))
            mask = _mask(raw + MASKS + head * W, w, W, MASK_MIN)
            content, _ = _lookup(tile, norm, key, mask, strength, n, N, MASK_MIN, NORM_EPSILON)
            back, by_content, ahead = _modes(raw + FREE + R + 2 + 3 * head)
            back_power = _power(raw + POWERS + 2 * head, SHARPEN)
            ahead_power = _power(raw + POWERS + 2 * head + 1, SHARPEN)
            followed = tl.sum(link * last[None, :], 1)
            read = by_content * content + ahead * _followed(followed, ahead_power, n, N, SHARPEN, NORM_EPSILON)
            followed = tl.sum(link * last[:, None], 0)
            read += back * _followed(followed, back_power, n, N, SHARPEN, NORM_EPSILON)
            tl.store(new + head * N + n, read, mask=in_memory)
            tl.store(after + HIDDEN + head * W + w, tl.sum(read[:, None] * tile, 0), mask=in_word)
        tl.debug_barrier()
    tl.store(memory + offsets, tile, mask=inside)
    tl.store(links + link_offsets, link, mask=square)
    tl.store(precedences + batch * N + n, precedence, mask=in_memory)
    if not KEEP:
        tl.store(usages + batch * N + n, usage, mask=in_memory)
        tl.store(cells + batch * HIDDEN + h, cell, mask=h < HIDDEN)


@triton.jit(do_not_specialize=["steps", "batch_size"])
def dnc_backward(
    features,
    gates,
    recurrent,
    interface_weight,
    cells,
    usages,
    interface,
    useds,
    weights,
    kept_memory,
    kept_links,
    kept_precedence,
    memories,
    link_room,
    precedence_room,
    d_features,
    d_gates,
    d_interface,
    d_cell,
    d_memory,
    d_usage,
    d_links,
    d_precedence,
    d_weights,
    steps,
    batch_size,
    HIDDEN: tl.constexpr,
    GATES: tl.constexpr,
    INTERFACE: tl.constexpr,
    N: tl.constexpr,
    W: tl.constexpr,
    R: tl.constexpr,
    KIND: tl.constexpr,
    CLIP: tl.constexpr,
    SQUASH: tl.constexpr,
    WIPE: tl.constexpr,
    MASK_MIN: tl.constexpr,
    SHARPEN: tl.constexpr,
    USAGE_GRADIENT: tl.constexpr,
    KEEP_EVERY: tl.constexpr,
    NORM_EPSILON: tl.constexpr,
    USAGE_EPSILON: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """One program per sequence, from the last step to the first.

    As :func:`~tapehead.core.kernels.triton.ntm.ntm_backward`. ``d_weights`` ``[2, B, K, N]`` is read and written in
    turns: row T % 2 holds the gradient of what the forward pass gave, row 0 in the end that of what it was given.
    """
    F: tl.constexpr = HIDDEN + R * W
    G: tl.constexpr = GATES * HIDDEN
    K: tl.constexpr = R + 1
    ERASE: tl.constexpr = R * W + R + W + 1
    FREE: tl.constexpr = ERASE + 2 * W
    MASKS: tl.constexpr = FREE + 4 * R + 2
    POWERS: tl.constexpr = MASKS + (K * W if MASK_MIN is not None else 0)
    batch = tl.program_id(0).to(tl.int64)
    h = tl.arange(0, BLOCK_H)
    f = tl.arange(0, BLOCK_F)
    n = tl.arange(0, BLOCK_N)
    w = tl.arange(0, BLOCK_W)
    in_memory, in_word = n < N, w < W
    inside = in_memory[:, None] & in_word[None, :]
    square = in_memory[:, None] & in_memory[None, :]
    within = n[:, None] * W + w[None, :]
    link_within = n[:, None] * N + n[None, :]
    memories += batch * KEEP_EVERY * N * W
    link_room += batch * KEEP_EVERY * N * N
    precedence_room += batch * KEEP_EVERY * N
    d_tile = tl.load(d_memory + batch * N * W + within, mask=inside, other=0.0)
    d_link = tl.load(d_links + batch * N * N + link_within, mask=square, other=0.0)
    d_last = tl.load(d_precedence + batch * N + n, mask=in_memory, other=0.0)
    d_use = tl.load(d_usage + batch * N + n, mask=in_memory, other=0.0)
    d_c = tl.load(d_cell + batch * HIDDEN + h, mask=h < HIDDEN, other=0.0)
    chunks = (steps + KEEP_EVERY - 1) // KEEP_EVERY
    for back in range(chunks):
        first = (chunks - 1 - back) * KEEP_EVERY
        count = tl.minimum(steps - first, KEEP_EVERY)
        chunk = (chunks - 1 - back) * batch_size + batch
        tile = tl.load(kept_memory + chunk * N * W + within, mask=inside, other=0.0)
        link = tl.load(kept_links + chunk * N * N + link_within, mask=square, other=0.0)
        precedence = tl.load(kept_precedence + chunk * N + n, mask=in_memory, other=0.0)
        for step in range(count):
            row = (first + step) * batch_size + batch
            tl.store(memories + step * N * W + within, tile, mask=inside)
            tl.store(link_room + step * N * N + link_within, link, mask=square)
            tl.store(precedence_room + step * N + n, precedence, mask=in_memory)
            write = tl.load(weights + (row + batch_size) * K * N + R * N + n, mask=in_memory, other=0.0)
            erase, add = _erased_added(interface + row * INTERFACE, w, R, W, SQUASH)
            if WIPE:
                retained = _retained(weights + row * K * N, interface + row * INTERFACE + FREE, n, N, R, -1)
                tile = tile * retained[:, None]
            tile = tile * (1.0 - write[:, None] * erase[None, :]) + write[:, None] * add[None, :]
            link = _linked(link, precedence, write, n)
            precedence = (1.0 - tl.sum(write, 0)) * precedence + write
        tl.debug_barrier()

        for behind in range(count):
            step = count - 1 - behind
            t = first + step
            row = t * batch_size + batch
            raw = interface + row * INTERFACE
            d_raw = d_interface + row * INTERFACE
            old = weights + row * K * N
            new = weights + (row + batch_size) * K * N
            d_after = d_features + (row + batch_size) * F
            d_new = d_weights + (((t + 1) % 2) * batch_size + batch) * K * N
            d_old = d_weights + ((t % 2) * batch_size + batch) * K * N
            tile = tl.load(memories + step * N * W + within, mask=inside, other=0.0)
            link = tl.load(link_room + step * N * N + link_within, mask=square, other=0.0)
            precedence = tl.load(precedence_room + step * N + n, mask=in_memory, other=0.0)
            write = tl.load(new + R * N + n, mask=in_memory, other=0.0)
            erase, add = _erased_added(raw, w, R, W, SQUASH)
            wiped = tile
            if WIPE:
                wiped = tile * _retained(old, raw + FREE, n, N, R, -1)[:, None]
            new_tile = wiped * (1.0 - write[:, None] * erase[None, :]) + write[:, None] * add[None, :]
            new_link = _linked(link, precedence, write, n)
            norm = _norm(new_tile, NORM_EPSILON)

            # Reads.
            for head in range(R):
                d_read = tl.load(d_after + HIDDEN + head * W + w, mask=in_word, other=0.0)
                weight = tl.load(new + head * N + n, mask=in_memory, other=0.0)
                last = tl.load(old + head * N + n, mask=in_memory, other=0.0)
                d_weight = tl.load(d_new + head * N + n, mask=in_memory, other=0.0)
                d_weight += tl.sum(new_tile * d_read[None, :], 1)
                key = _words(raw + head * W, w, W, SQUASH)
                raw_strength = tl.load(raw + R * W + head)
                strength = 1.0 + softplus(raw_strength)
                mask = _mask(raw + MASKS + head * W, w, W, MASK_MIN)
                content, similarity = _lookup(new_tile, norm, key, mask, strength, n, N, MASK_MIN, NORM_EPSILON)
                backward, by_content, forward = _modes(raw + FREE + R + 2 + 3 * head)
                behind_power = _power(raw + POWERS + 2 * head, SHARPEN)
                ahead_power = _power(raw + POWERS + 2 * head + 1, SHARPEN)
                followed_behind = tl.sum(new_link * last[:, None], 0)
                followed_ahead = tl.sum(new_link * last[None, :], 1)
                d_backward = tl.sum(d_weight * _followed(followed_behind, behind_power, n, N, SHARPEN, NORM_EPSILON), 0)
                d_by_content = tl.sum(d_weight * content, 0)
                d_forward = tl.sum(d_weight * _followed(followed_ahead, ahead_power, n, N, SHARPEN, NORM_EPSILON), 0)
                mean = backward * d_backward + by_content * d_by_content + forward * d_forward
                tl.store(d_raw + FREE + R + 2 + 3 * head, backward * (d_backward - mean))
                tl.store(d_raw + FREE + R + 2 + 3 * head + 1, by_content * (d_by_content - mean))
                tl.store(d_raw + FREE + R + 2 + 3 * head + 2, forward * (d_forward - mean))
                d_behind, d_behind_power = _followed_backward(
                    followed_behind, behind_power, backward * d_weight, n, N, SHARPEN, NORM_EPSILON
                )
                d_ahead, d_ahead_power = _followed_backward(
                    followed_ahead, ahead_power, forward * d_weight, n, N, SHARPEN, NORM_EPSILON
                )
                if SHARPEN is not None:
                    powers = POWERS + 2 * head
                    tl.store(d_raw + powers, d_behind_power * softplus_slope(tl.load(raw + powers)))
                    tl.store(d_raw + powers + 1, d_ahead_power * softplus_slope(tl.load(raw + powers + 1)))
                d_link += d_ahead[:, None] * last[None, :] + last[:, None] * d_behind[None, :]
                d_followed = tl.sum(new_link * d_behind[None, :], 1)
                d_followed += tl.sum(new_link * d_ahead[:, None], 0)
                tl.store(d_old + head * N + n, d_followed, mask=in_memory)
                d_content = by_content * d_weight
                d_found, d_key, d_mask, d_strength = _lookup_backward(
                    new_tile, norm, key, mask, strength, content, similarity, d_content, MASK_MIN, NORM_EPSILON
                )
                if MASK_MIN is not None:
                    tl.store(d_raw + MASKS + head * W + w, d_mask, mask=in_word)
                d_tile += weight[:, None] * d_read[None, :] + d_found
                tl.store(d_raw + head * W + w, d_key * _words_slope(key, SQUASH), mask=in_word)
                tl.store(d_raw + R * W + head, d_strength * softplus_slope(raw_strength))

            # Precedence, links and the write.
            d_write = d_last - tl.sum(d_last * precedence, 0)
            d_last *= 1.0 - tl.sum(write, 0)
            d_link = tl.where(n[:, None] == n[None, :], 0.0, d_link)
            d_write += tl.sum(d_link * (precedence[None, :] - link), 1)
            d_write -= tl.sum(d_link * link, 0)
            d_last += tl.sum(d_link * write[:, None], 0)
            d_link *= 1.0 - write[:, None] - write[None, :]
            d_write += tl.sum(d_tile * (add[None, :] - wiped * erase[None, :]), 1)
            d_write += tl.load(d_new + R * N + n, mask=in_memory, other=0.0)
            d_write = tl.where(in_memory, d_write, 0.0)
            d_erase = -tl.sum(d_tile * wiped * write[:, None], 0) * erase * (1.0 - erase)
            d_add = tl.sum(d_tile * write[:, None], 0) * _words_slope(add, SQUASH)
            tl.store(d_raw + ERASE + w, d_erase, mask=in_word)
            tl.store(d_raw + ERASE + W + w, d_add, mask=in_word)
            d_tile *= 1.0 - write[:, None] * erase[None, :]
            d_retained = tl.zeros_like(d_use)
            if WIPE:
                d_retained += tl.sum(d_tile * tile, 1)
                d_tile *= _retained(old, raw + FREE, n, N, R, -1)[:, None]

            # Allocation against content.
            used = tl.load(useds + row * N + n, mask=in_memory, other=1.0)
            before = _before(used, n, N)
            smaller = _smaller(used, before)
            allocation = tl.where(in_memory, (1.0 - used) * smaller, 0.0)
            norm = _norm(tile, NORM_EPSILON)
            key = _words(raw + R * W + R, w, W, SQUASH)
            raw_strength = tl.load(raw + R * W + R + W)
            strength = 1.0 + softplus(raw_strength)
            mask = _mask(raw + MASKS + R * W, w, W, MASK_MIN)
            content, similarity = _lookup(tile, norm, key, mask, strength, n, N, MASK_MIN, NORM_EPSILON)
            allocate = sigmoid(tl.load(raw + FREE + R))
            gate = sigmoid(tl.load(raw + FREE + R + 1))
            difference = allocation - content
            d_gate = tl.sum(d_write * (content + allocate * difference), 0)
            d_chosen = gate * d_write
            d_allocate = tl.sum(d_chosen * difference, 0)
            tl.store(d_raw + FREE + R, d_allocate * allocate * (1.0 - allocate))
            tl.store(d_raw + FREE + R + 1, d_gate * gate * (1.0 - gate))
            d_content = (1.0 - allocate) * d_chosen
            d_found, d_key, d_mask, d_strength = _lookup_backward(
                tile, norm, key, mask, strength, content, similarity, d_content, MASK_MIN, NORM_EPSILON
            )
            if MASK_MIN is not None:
                tl.store(d_raw + MASKS + R * W + w, d_mask, mask=in_word)
            d_tile += d_found
            tl.store(d_raw + R * W + R + w, d_key * _words_slope(key, SQUASH), mask=in_word)
            tl.store(d_raw + R * W + R + W, d_strength * softplus_slope(raw_strength))

            # Usage.
            d_allocation = allocate * d_chosen
            d_used = tl.sum(tl.where(before, (d_allocation * allocation)[:, None], 0.0), 0) / used
            d_used -= d_allocation * smaller
            d_use += (1.0 - USAGE_EPSILON) * tl.where(in_memory, d_used, 0.0)
            usage = tl.load(usages + row * N + n, mask=in_memory, other=0.0)
            written = tl.load(old + R * N + n, mask=in_memory, other=0.0)
            d_retained += d_use * (usage + written - usage * written)
            d_use *= _retained(old, raw + FREE, n, N, R, -1)
            d_written = tl.zeros_like(d_use)
            if USAGE_GRADIENT:
                d_written += d_use * (1.0 - usage)
            tl.store(d_old + R * N + n, d_written, mask=in_memory)
            d_use *= 1.0 - written
            tl.debug_barrier()
            for head in tl.static_range(R):
                free = sigmoid(tl.load(raw + FREE + head))
                d_freed = -d_retained * _retained(old, raw + FREE, n, N, R, head)
                weight = tl.load(old + head * N + n, mask=in_memory, other=0.0)
                tl.store(d_raw + FREE + head, tl.sum(d_freed * weight, 0) * free * (1.0 - free))
                d_weight = tl.load(d_old + head * N + n, mask=in_memory, other=0.0)
                tl.store(d_old + head * N + n, d_weight + d_freed * free, mask=in_memory)
            tl.debug_barrier()

            d_c = controller_backward(
                features + row * F,
                gates + row * G,
                cells + row * HIDDEN,
                recurrent,
                interface_weight,
                d_after,
                d_features + row * F,
                d_gates + row * G,
                d_raw,
                d_c,
                h,
                f,
                F,
                HIDDEN,
                GATES,
                INTERFACE,
                KIND,
                CLIP,
                CHUNK,
            )
    tl.store(d_memory + batch * N * W + within, d_tile, mask=inside)
    tl.store(d_links + batch * N * N + link_within, d_link, mask=square)
    tl.store(d_precedence + batch * N + n, d_last, mask=in_memory)
    tl.store(d_usage + batch * N + n, d_use, mask=in_memory)
    tl.store(d_cell + batch * HIDDEN + h, d_c, mask=h < HIDDEN)


class Sizes(NamedTuple):
    """What does not change along a sequence."""

    hidden: int
    reads: int
    kind: int
    """Of controllers.py."""
    clip: float | None
    squash: bool
    wipe: bool
    """``memory_wipe``"""
    masked: bool
    """``masked_content``"""
    sharpen: bool
    """``link_sharpening``"""
    usage_gradient: bool

    def constants(self, gates: int, interface: int, slots: int, word: int) -> dict[str, Any]:
        """Constants of both kernels."""
        side = power_of_two(slots)
        return {
            "HIDDEN": self.hidden,
            "GATES": gates,
            "INTERFACE": interface,
            "N": slots,
            "W": word,
            "R": self.reads,
            "KIND": self.kind,
            "CLIP": self.clip,
            "SQUASH": self.squash,
            "WIPE": self.wipe,
            "MASK_MIN": MASK_MIN if self.masked else None,
            "SHARPEN": SHARPEN_EPSILON if self.sharpen else None,
            "KEEP_EVERY": KEEP_EVERY,
            "NORM_EPSILON": NORM_EPSILON,
            "USAGE_EPSILON": USAGE_EPSILON,
            "CHUNK": chunk(self.hidden, self.hidden + self.reads * word, interface),
            "BLOCK_H": power_of_two(self.hidden),
            "BLOCK_N": side,
            "BLOCK_W": power_of_two(word),
            "num_warps": WARPS,
        }


class State(NamedTuple):
    """What a DNC remembers beside its controller."""

    memory: Tensor
    """``[B, N, W]``"""
    usage: Tensor
    """``[B, N]``"""
    links: Tensor
    """``[B, N, N]``"""
    precedence: Tensor
    """``[B, N]``"""
    weights: Tensor
    """Of all heads, read heads first, ``[B, R + 1, N]``"""


def unavailable(hidden: int, slots: int, word: int, reads: int, interface: int) -> str | None:
    """Why one program cannot hold a sequence of these sizes, or None."""
    side = power_of_two(slots)
    if max(side * side, side * power_of_two(word)) > LARGEST_TILE:
        return f"a memory of {slots} x {word} and its links fill more than the registers of a program"
    return too_wide(hidden, hidden + reads * word, interface)


def _forward(
    sizes: Sizes,
    keep: bool,
    gates: Tensor,
    recurrent: Tensor,
    interface_weight: Tensor,
    interface_bias: Tensor,
    first_features: Tensor,
    cell: Tensor,
    *state: Tensor,
) -> tuple[Any, ...]:
    """Features ``[T + 1, B, F]``, what the backward pass needs beside them, and the last cell and state."""
    steps, batch, total = gates.shape
    memory, usage, links, precedence, weights = (t.clone() for t in state)
    slots, word = memory.shape[1:]
    size = interface_weight.shape[-2]
    members = recurrent.shape[0] if recurrent.dim() == 3 else 1
    kept = steps if keep else 1
    chunks = parts(steps, KEEP_EVERY) if keep else 0
    features = gates.new_empty(steps + 1, *first_features.shape)
    features[0] = first_features
    cells = gates.new_empty(steps + 1 if keep else 1, *cell.shape)
    cells[0] = cell
    usages = gates.new_empty(steps + 1 if keep else 1, *usage.shape)
    usages[0] = usage
    all_weights = gates.new_empty(kept + 1, *weights.shape)
    all_weights[0] = weights
    interface = gates.new_empty(kept, batch, size)
    useds = gates.new_empty(steps if keep else 0, batch, slots)
    checkpoints = [gates.new_empty(chunks, *t.shape) for t in (memory, links, precedence)]
    launch(
        dnc_forward,
        (batch,),
        *(features, gates, recurrent.mT.contiguous(), interface_weight.mT.contiguous(), interface_bias),
        *(cells, memory, usages, links, precedence, interface, useds, all_weights, *checkpoints),
        *(steps, batch, batch // members if members > 1 else batch),
        **sizes.constants(total // sizes.hidden, size, slots, word),
        KEEP=keep,
        BLOCK_I=power_of_two(size),
    )
    last_weights = all_weights[steps if keep else steps % 2]
    last = (cells[-1], State(memory, usages[-1], links, precedence, last_weights))
    return features, (cells, usages, interface, useds, all_weights, *checkpoints), last


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sizes: Sizes, *arguments: Tensor) -> tuple[Tensor, ...]:
        gates, recurrent, interface_weight, *rest = (t.contiguous() for t in arguments)
        gates = gates.clone()  # to which the kernel adds
        features, kept, (cell, state) = _forward(sizes, True, gates, recurrent, interface_weight, *rest)
        ctx.sizes = sizes
        ctx.save_for_backward(features, gates, recurrent, interface_weight, *kept)
        return features[1:].clone(), cell.clone(), *(t.clone() for t in state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_later: Tensor, d_cell: Tensor, *d_state: Tensor) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors
        features, gates, _, _, _, _, interface, *_ = kept
        sizes: Sizes = ctx.sizes
        steps, batch, total = gates.shape
        slots, word = d_state[0].shape[1:]
        d_features = torch.cat([torch.zeros_like(d_later[:1]), d_later])
        d_gates, d_interface = torch.empty_like(gates), torch.empty_like(interface)
        # The kernel changes these in place.
        d_last = [t.clone(memory_format=torch.contiguous_format) for t in (d_cell, *d_state[:4])]
        d_weights = gates.new_empty(2, *d_state[4].shape)
        d_weights[steps % 2] = d_state[4]
        rooms = [gates.new_empty(batch, KEEP_EVERY, *shape) for shape in ((slots, word), (slots, slots), (slots,))]
        launch(
            dnc_backward,
            (batch,),
            *kept,
            *(*rooms, d_features, d_gates, d_interface, *d_last, d_weights, steps, batch),
            **sizes.constants(total // sizes.hidden, interface.shape[2], slots, word),
            USAGE_GRADIENT=sizes.usage_gradient,
            BLOCK_F=power_of_two(features.shape[2]),
        )
        flat_gates, flat_interface = d_gates.flatten(0, 1), d_interface.flatten(0, 1)
        d_recurrent = flat_gates.T @ features[:-1].flatten(0, 1)
        d_interface_weight = flat_interface.T @ features[1:, :, : sizes.hidden].flatten(0, 1)
        d_layers = (d_gates, d_recurrent, d_interface_weight, flat_interface.sum(0))
        return None, *d_layers, d_features[0], *d_last, d_weights[0]


def run_sequence(
    sizes: Sizes,
    gates: Tensor,
    recurrent: Tensor,
    interface_weight: Tensor,
    interface_bias: Tensor,
    first_features: Tensor,
    cell: Tensor,
    state: State,
) -> tuple[Tensor, Tensor, State]:
    """A whole sequence; differentiable once in every tensor unless members of a population have their own weights.

    Args:
        sizes: of the circuit.
        gates, recurrent, interface_weight, interface_bias, first_features, cell: see
            :func:`tapehead.core.kernels.triton.ntm.run_sequence`.
        state: before the first step.

    Returns:
        Features ``[T, B, F]``, and the cell and the state after the last step.

    Raises:
        ValueError: gradients are wanted of a population.
    """
    arguments = (gates, recurrent, interface_weight, interface_bias, first_features, cell, *state)
    if torch.is_grad_enabled() and any(t.requires_grad for t in arguments):
        if recurrent.dim() == 3:
            raise ValueError("recurrent: got weights of a population with gradients; allowed are those of one circuit")
        features, last_cell, *last = _Sequence.apply(sizes, *arguments)
        return features, last_cell, State(*last)
    gates, *rest = (t.detach().contiguous() for t in arguments)
    features, _, (last_cell, last_state) = _forward(sizes, False, gates.clone(), *rest)
    return features[1:], last_cell, last_state
