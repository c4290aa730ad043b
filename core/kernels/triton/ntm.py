"""A whole NTM sequence in one launch, forward and backward: one program per sequence, its memory in registers.

All steps run inside the kernel. The memory never leaves the chip but for a checkpoint every few steps, from which the
backward pass computes it again. Products with the inputs come before the kernel and gradients of weights after it, as
large products in torch.

Shapes: T steps, B batch, F = hidden + R * W features (hidden vector and words read), G = gates * hidden,
I interface, K = R + H heads, N slots, W word size, S shifts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...addressing import NORM_EPSILON, SHARPEN_EPSILON
from .controllers import KEEP_EVERY, WARPS, chunk, controller_backward, controller_forward, too_wide
from .launch import launch, parts, power_of_two, sigmoid, softplus, softplus_slope, tanh

LARGEST_TILE = 8192
"""Elements of a memory, sides rounded up to powers of two, that a program keeps: 32 registers of each thread."""


@triton.jit
def _content(tile, norm, raw, w, n, N: tl.constexpr, W: tl.constexpr, K: tl.constexpr, head, EPSILON: tl.constexpr):
    """Content weighting, similarity, key, its norm and its strength of a head; ``raw`` is the interface vector."""
    key = tl.where(w < W, tanh(tl.load(raw + head * W + w, mask=w < W, other=0.0)), 0.0)
    strength = softplus(tl.load(raw + K * W + head))
    key_norm = tl.sqrt(tl.sum(key * key, 0) + EPSILON)
    similarity = tl.sum(tile * key[None, :], 1) / (key_norm * norm + EPSILON)
    logits = tl.where(n < N, strength * similarity, float("-inf"))
    shares = tl.exp(logits - tl.max(logits, 0))
    return shares / tl.sum(shares, 0), similarity, key, key_norm, strength


@triton.jit
def _shares(raw, s, head, W: tl.constexpr, K: tl.constexpr, S: tl.constexpr):
    """Distribution over shifts of a head, ``[BLOCK_S]``; 0 outside."""
    logits = tl.load(raw + K * W + 2 * K + head * S + s, mask=s < S, other=float("-inf"))
    shares = tl.exp(logits - tl.max(logits, 0))
    return shares / tl.sum(shares, 0)


@triton.jit
def _shifted(gated, shares, s, n, N: tl.constexpr, S: tl.constexpr):
    """The gated weighting, which is in memory, shifted; 0 outside."""
    result = tl.zeros_like(tl.load(gated + n, mask=n < N, other=0.0))
    for index in tl.static_range(S):
        share = tl.sum(tl.where(s == index, shares, 0.0), 0)
        result += share * tl.load(gated + (n + S // 2 - index + N * S) % N, mask=n < N, other=0.0)
    return result


@triton.jit
def _erase_add(raw, w, head, W: tl.constexpr, K: tl.constexpr, H: tl.constexpr, S: tl.constexpr):
    """What a write head erases and adds, ``[BLOCK_W]`` each; 0 outside."""
    words = raw + K * W + 3 * K + K * S
    erase = sigmoid(tl.load(words + head * W + w, mask=w < W, other=0.0))
    add = tanh(tl.load(words + (H + head) * W + w, mask=w < W, other=0.0))
    return tl.where(w < W, erase, 0.0), tl.where(w < W, add, 0.0)


@triton.jit
def _written(
    tile,
    weights,
    raw,
    n,
    w,
    N: tl.constexpr,
    W: tl.constexpr,
    R: tl.constexpr,
    H: tl.constexpr,
    S: tl.constexpr,
):
    """The memory after all heads wrote; ``weights`` points to those of all heads."""
    added = tl.zeros_like(tile)
    for head in range(H):
        weight = tl.load(weights + (R + head) * N + n, mask=n < N, other=0.0)[:, None]
        erase, add = _erase_add(raw, w, head, W, R + H, H, S)
        tile *= 1.0 - weight * erase[None, :]
        added += weight * add[None, :]
    return tile + added


@triton.jit(do_not_specialize=["steps", "batch_size", "rows_per_member"])
def ntm_forward(
    features,
    gates,
    recurrent,
    interface_weight,
    interface_bias,
    cells,
    memory,
    interface,
    gated,
    weights,
    checkpoints,
    last_memory,
    steps,
    batch_size,
    rows_per_member,
    HIDDEN: tl.constexpr,
    GATES: tl.constexpr,
    INTERFACE: tl.constexpr,
    N: tl.constexpr,
    W: tl.constexpr,
    R: tl.constexpr,
    H: tl.constexpr,
    S: tl.constexpr,
    KIND: tl.constexpr,
    CLIP: tl.constexpr,
    KEEP: tl.constexpr,
    KEEP_EVERY: tl.constexpr,
    NORM_EPSILON: tl.constexpr,
    SHARPEN_EPSILON: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """One program per sequence.

    ``features`` ``[T + 1, B, F]`` and ``cells`` hold the first step's state in their first row; ``gates`` ``[T, B, G]``
    the products with the inputs, to which the rest is added in place; ``recurrent`` is ``[F, G]`` and
    ``interface_weight`` ``[hidden, I]``. With KEEP, every step is recorded for the backward pass: ``interface``
    ``[T, B, I]``, ``gated`` ``[T, B, K, N]``, ``weights`` ``[T + 1, B, K, N]``, ``cells`` ``[T + 1, B, hidden]``;
    without, they are room for one step, or two that take turns. Members of a population, ``rows_per_member`` sequences
    each, have weights of their own.
    """
    F: tl.constexpr = HIDDEN + R * W
    G: tl.constexpr = GATES * HIDDEN
    K: tl.constexpr = R + H
    batch = tl.program_id(0).to(tl.int64)
    member = batch // rows_per_member
    recurrent += member * F * G
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
    cell = tl.load(cells + batch * HIDDEN + h, mask=h < HIDDEN, other=0.0)
    for t in range(steps):
        row = t * batch_size + batch
        before = features + row * F
        after = before + batch_size.to(tl.int64) * F
        if KEEP:
            step_room, now, then = row, row, row + batch_size
            if t % KEEP_EVERY == 0:
                place = ((t // KEEP_EVERY) * batch_size).to(tl.int64) * N * W
                tl.store(checkpoints + place + offsets, tile, mask=inside)
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

        # Every head looks content up and moves on from where it was; shifting needs the slots of other threads.
        old = weights + now * K * N
        new = weights + then * K * N
        gated_row = gated + step_room * K * N
        norm = tl.sqrt(tl.sum(tile * tile, 1) + NORM_EPSILON)
        for head in range(K):
            content, _, _, _, _ = _content(tile, norm, raw, w, n, N, W, K, head, NORM_EPSILON)
            gate = sigmoid(tl.load(raw + K * W + K + head))
            last = tl.load(old + head * N + n, mask=n < N, other=0.0)
            tl.store(gated_row + head * N + n, last + gate * (content - last), mask=n < N)
        tl.debug_barrier()
        for head in range(K):
            shifted = _shifted(gated_row + head * N, _shares(raw, s, head, W, K, S), s, n, N, S)
            power = 1.0 + softplus(tl.load(raw + K * W + 2 * K + K * S + head))
            logits = tl.where(n < N, power * tl.log(shifted + SHARPEN_EPSILON), float("-inf"))
            sharpened = tl.exp(logits - tl.max(logits, 0))
            tl.store(new + head * N + n, sharpened / tl.sum(sharpened, 0), mask=n < N)
        tl.debug_barrier()

        tile = _written(tile, new, raw, n, w, N, W, R, H, S)
        for head in range(R):
            weight = tl.load(new + head * N + n, mask=n < N, other=0.0)
            tl.store(after + HIDDEN + head * W + w, tl.sum(weight[:, None] * tile, 0), mask=w < W)
        tl.debug_barrier()
    tl.store(last_memory + offsets, tile, mask=inside)
    if not KEEP:
        tl.store(cells + batch * HIDDEN + h, cell, mask=h < HIDDEN)


@triton.jit(do_not_specialize=["steps", "batch_size"])
def ntm_backward(
    features,
    gates,
    recurrent,
    interface_weight,
    cells,
    interface,
    gated,
    weights,
    checkpoints,
    memories,
    d_shifted,
    d_features,
    d_gates,
    d_interface,
    d_cell,
    d_memory,
    d_weights,
    steps,
    batch_size,
    HIDDEN: tl.constexpr,
    GATES: tl.constexpr,
    INTERFACE: tl.constexpr,
    N: tl.constexpr,
    W: tl.constexpr,
    R: tl.constexpr,
    H: tl.constexpr,
    S: tl.constexpr,
    KIND: tl.constexpr,
    CLIP: tl.constexpr,
    KEEP_EVERY: tl.constexpr,
    NORM_EPSILON: tl.constexpr,
    SHARPEN_EPSILON: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """One program per sequence, from the last step to the first.

    ``recurrent`` is ``[G, F]`` and ``interface_weight`` ``[I, hidden]``. ``d_features`` ``[T + 1, B, F]``, ``d_cell``,
    ``d_memory`` and ``d_weights`` hold the gradients of what the forward pass gave, and in the end those of what it was
    given; ``d_gates`` and ``d_interface`` are filled for every step. ``memories`` is room for the memories of
    KEEP_EVERY steps and ``d_shifted`` for one gradient of all weightings.
    """
    F: tl.constexpr = HIDDEN + R * W
    G: tl.constexpr = GATES * HIDDEN
    K: tl.constexpr = R + H
    WORDS: tl.constexpr = K * W + 3 * K + K * S
    batch = tl.program_id(0).to(tl.int64)
    h = tl.arange(0, BLOCK_H)
    f = tl.arange(0, BLOCK_F)
    n = tl.arange(0, BLOCK_N)
    w = tl.arange(0, BLOCK_W)
    s = tl.arange(0, BLOCK_S)
    in_memory, in_word, in_hidden = n < N, w < W, h < HIDDEN
    inside = in_memory[:, None] & in_word[None, :]
    within = n[:, None] * W + w[None, :]
    room = memories + batch * KEEP_EVERY * N * W
    d_shifted += batch * K * N
    d_carried = d_weights + batch * K * N
    d_tile = tl.load(d_memory + batch * N * W + within, mask=inside, other=0.0)
    d_c = tl.load(d_cell + batch * HIDDEN + h, mask=in_hidden, other=0.0)
    chunks = (steps + KEEP_EVERY - 1) // KEEP_EVERY
    for back in range(chunks):
        first = (chunks - 1 - back) * KEEP_EVERY
        count = tl.minimum(steps - first, KEEP_EVERY)
        place = ((chunks - 1 - back) * batch_size + batch) * N * W
        tile = tl.load(checkpoints + place + within, mask=inside, other=0.0)
        for step in range(count):
            row = (first + step) * batch_size + batch
            tl.store(room + step * N * W + within, tile, mask=inside)
            new = weights + (row + batch_size) * K * N
            tile = _written(tile, new, interface + row * INTERFACE, n, w, N, W, R, H, S)
        tl.debug_barrier()

        for behind in range(count):
            step = count - 1 - behind
            row = (first + step) * batch_size + batch
            raw = interface + row * INTERFACE
            d_raw = d_interface + row * INTERFACE
            old = weights + row * K * N
            new = weights + (row + batch_size) * K * N
            gated_row = gated + row * K * N
            d_after = d_features + (row + batch_size) * F
            tile = tl.load(room + step * N * W + within, mask=inside, other=0.0)
            written = _written(tile, new, raw, n, w, N, W, R, H, S)

            # Reads, then writes: what each head's weighting did to the memory and to the words read.
            for head in range(R):
                d_read = tl.load(d_after + HIDDEN + head * W + w, mask=in_word, other=0.0)[None, :]
                weight = tl.load(new + head * N + n, mask=in_memory, other=0.0)
                d_tile += weight[:, None] * d_read
                d_weight = tl.load(d_carried + head * N + n, mask=in_memory, other=0.0)
                tl.store(d_carried + head * N + n, d_weight + tl.sum(written * d_read, 1), mask=in_memory)
            kept = tl.full([BLOCK_N, BLOCK_W], 1.0, tile.dtype)
            for head in range(H):
                weight = tl.load(new + (R + head) * N + n, mask=in_memory, other=0.0)
                erase, add = _erase_add(raw, w, head, W, K, H, S)
                others = tile * d_tile
                for other in range(H):
                    if other != head:
                        other_weight = tl.load(new + (R + other) * N + n, mask=in_memory, other=0.0)
                        other_erase, _ = _erase_add(raw, w, other, W, K, H, S)
                        others *= 1.0 - other_weight[:, None] * other_erase[None, :]
                kept *= 1.0 - weight[:, None] * erase[None, :]
                d_weight = tl.load(d_carried + (R + head) * N + n, mask=in_memory, other=0.0)
                d_weight += tl.sum(d_tile * add[None, :] - others * erase[None, :], 1)
                tl.store(d_carried + (R + head) * N + n, d_weight, mask=in_memory)
                d_erase = -tl.sum(others * weight[:, None], 0) * erase * (1.0 - erase)
                d_add = tl.sum(d_tile * weight[:, None], 0) * (1.0 - add * add)
                tl.store(d_raw + WORDS + head * W + w, d_erase, mask=in_word)
                tl.store(d_raw + WORDS + (H + head) * W + w, d_add, mask=in_word)
            d_tile *= kept
            tl.debug_barrier()

            # Sharpening and the shift, whose gradient goes to the slots of other threads.
            for head in range(K):
                weight = tl.load(new + head * N + n, mask=in_memory, other=0.0)
                d_weight = tl.load(d_carried + head * N + n, mask=in_memory, other=0.0)
                shares = _shares(raw, s, head, W, K, S)
                shifted = _shifted(gated_row + head * N, shares, s, n, N, S) + SHARPEN_EPSILON
                raw_power = tl.load(raw + K * W + 2 * K + K * S + head)
                d_logit = weight * (d_weight - tl.sum(weight * d_weight, 0))
                d_power = tl.sum(d_logit * tl.log(shifted), 0) * softplus_slope(raw_power)
                tl.store(d_raw + K * W + 2 * K + K * S + head, d_power)
                gradient = d_logit * (1.0 + softplus(raw_power)) / shifted
                tl.store(d_shifted + head * N + n, gradient, mask=in_memory)
                d_shares = tl.zeros_like(shares)
                for index in tl.static_range(S):
                    source = (n + S // 2 - index + N * S) % N
                    product = gradient * tl.load(gated_row + head * N + source, mask=in_memory, other=0.0)
                    d_shares += tl.where(s == index, tl.sum(product, 0), 0.0)
                d_shares = shares * (d_shares - tl.sum(shares * d_shares, 0))
                tl.store(d_raw + K * W + 2 * K + head * S + s, d_shares, mask=s < S)
            tl.debug_barrier()

            # Interpolation and content.
            norm = tl.sqrt(tl.sum(tile * tile, 1) + NORM_EPSILON)
            d_square = tl.zeros_like(norm)
            for head in range(K):
                shares = _shares(raw, s, head, W, K, S)
                d_gated = tl.zeros_like(norm)
                for index in tl.static_range(S):
                    share = tl.sum(tl.where(s == index, shares, 0.0), 0)
                    target = (n + index - S // 2 + N * S) % N
                    d_gated += share * tl.load(d_shifted + head * N + target, mask=in_memory, other=0.0)
                content, similarity, key, key_norm, strength = _content(
                    tile, norm, raw, w, n, N, W, K, head, NORM_EPSILON
                )
                gate = sigmoid(tl.load(raw + K * W + K + head))
                last = tl.load(old + head * N + n, mask=in_memory, other=0.0)
                d_gate = tl.sum(d_gated * (content - last), 0) * gate * (1.0 - gate)
                tl.store(d_raw + K * W + K + head, d_gate)
                tl.store(d_carried + head * N + n, (1.0 - gate) * d_gated, mask=in_memory)
                d_content = gate * d_gated
                d_logit = content * (d_content - tl.sum(content * d_content, 0))
                raw_strength = tl.load(raw + K * W + head)
                d_strength = tl.sum(d_logit * similarity, 0) * softplus_slope(raw_strength)
                tl.store(d_raw + K * W + head, d_strength)
                d_dot = strength * d_logit / (key_norm * norm + NORM_EPSILON)
                d_denominator = -d_dot * similarity
                d_square += 0.5 * d_denominator * key_norm / norm
                d_tile += d_dot[:, None] * key[None, :]
                d_key = tl.sum(d_dot[:, None] * tile, 0)
                d_key += tl.sum(d_denominator * norm, 0) * key / key_norm
                tl.store(d_raw + head * W + w, d_key * (1.0 - key * key), mask=in_word)
            d_tile += 2.0 * d_square[:, None] * tile
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
    tl.store(d_cell + batch * HIDDEN + h, d_c, mask=in_hidden)


class Sizes(NamedTuple):
    """What does not change along a sequence."""

    hidden: int
    reads: int
    writes: int
    shifts: int
    kind: int
    """FEEDFORWARD, LSTM or GRU"""
    clip: float | None

    def constants(self, gates: int, interface: int, slots: int, word: int) -> dict[str, Any]:
        """Constants of both kernels."""
        return {
            "HIDDEN": self.hidden,
            "GATES": gates,
            "INTERFACE": interface,
            "N": slots,
            "W": word,
            "R": self.reads,
            "H": self.writes,
            "S": self.shifts,
            "KIND": self.kind,
            "CLIP": self.clip,
            "KEEP_EVERY": KEEP_EVERY,
            "NORM_EPSILON": NORM_EPSILON,
            "SHARPEN_EPSILON": SHARPEN_EPSILON,
            "CHUNK": chunk(self.hidden, self.hidden + self.reads * word, interface),
            "BLOCK_H": power_of_two(self.hidden),
            "BLOCK_N": power_of_two(slots),
            "BLOCK_W": power_of_two(word),
            "BLOCK_S": power_of_two(self.shifts),
            "num_warps": WARPS,
        }


def unavailable(hidden: int, slots: int, word: int, reads: int, interface: int) -> str | None:
    """Why one program cannot hold a sequence of these sizes, or None."""
    tile = power_of_two(slots) * power_of_two(word)
    if tile > LARGEST_TILE:
        return f"a memory of {slots} x {word} fills more than the registers of a program"
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
    memory: Tensor,
    weights: Tensor,
) -> tuple[Tensor, ...]:
    """Features ``[T + 1, B, F]``, cells, interface, gated, weights, checkpoints and the last memory."""
    steps, batch, total = gates.shape
    slots, word = memory.shape[1:]
    heads, size = weights.shape[1], interface_weight.shape[-2]
    members = recurrent.shape[0] if recurrent.dim() == 3 else 1
    kept = steps if keep else 1
    features = gates.new_empty(steps + 1, *first_features.shape)
    features[0] = first_features
    cells = gates.new_empty(kept + 1 if keep else 1, batch, sizes.hidden)
    cells[0] = cell
    interface = gates.new_empty(kept, batch, size)
    gated = gates.new_empty(kept, batch, heads, slots)
    all_weights = gates.new_empty(kept + 1, batch, heads, slots)
    all_weights[0] = weights
    checkpoints = gates.new_empty(parts(steps, KEEP_EVERY) if keep else 0, batch, slots, word)
    last_memory = torch.empty_like(memory)
    launch(
        ntm_forward,
        (batch,),
        *(features, gates),
        recurrent.transpose(-1, -2).contiguous(),
        interface_weight.transpose(-1, -2).contiguous(),
        *(interface_bias, cells, memory, interface, gated, all_weights, checkpoints, last_memory),
        *(steps, batch, batch // members if members > 1 else batch),
        **sizes.constants(total // sizes.hidden, size, slots, word),
        KEEP=keep,
        BLOCK_I=power_of_two(size),
    )
    return features, cells, interface, gated, all_weights, checkpoints, last_memory


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sizes: Sizes, *arguments: Tensor) -> tuple[Tensor, ...]:
        gates, recurrent, interface_weight, *rest = (t.contiguous() for t in arguments)
        gates = gates.clone()  # to which the kernel adds
        made = _forward(sizes, True, gates, recurrent, interface_weight, *rest)
        features, cells, interface, gated, weights, checkpoints, last_memory = made
        ctx.sizes = sizes
        ctx.save_for_backward(
            features, gates, recurrent, interface_weight, cells, interface, gated, weights, checkpoints
        )
        return features[1:].clone(), cells[-1].clone(), last_memory, weights[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_later: Tensor, d_cell: Tensor, d_memory: Tensor, d_weights: Tensor
    ) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors
        features, gates, _, _, _, interface, gated, _, _ = kept
        sizes: Sizes = ctx.sizes
        steps, batch, total = gates.shape
        slots, word = d_memory.shape[1:]
        size = interface.shape[2]
        d_features = torch.cat([torch.zeros_like(d_later[:1]), d_later])
        d_gates, d_interface = torch.empty_like(gates), torch.empty_like(interface)
        # The kernel changes these in place.
        d_last = (d_cell, d_memory, d_weights)
        d_cell, d_memory, d_weights = (t.clone(memory_format=torch.contiguous_format) for t in d_last)
        launch(
            ntm_backward,
            (batch,),
            *kept,
            gates.new_empty(batch, KEEP_EVERY, slots, word),
            torch.empty_like(gated[0]),
            *(d_features, d_gates, d_interface, d_cell, d_memory, d_weights),
            *(steps, batch),
            **sizes.constants(total // sizes.hidden, size, slots, word),
            BLOCK_F=power_of_two(features.shape[2]),
        )
        flat_gates, flat_interface = d_gates.flatten(0, 1), d_interface.flatten(0, 1)
        d_recurrent = flat_gates.T @ features[:-1].flatten(0, 1)
        d_interface_weight = flat_interface.T @ features[1:, :, : sizes.hidden].flatten(0, 1)
        d_bias = flat_interface.sum(0)
        return None, d_gates, d_recurrent, d_interface_weight, d_bias, d_features[0], d_cell, d_memory, d_weights


def run_sequence(
    sizes: Sizes,
    gates: Tensor,
    recurrent: Tensor,
    interface_weight: Tensor,
    interface_bias: Tensor,
    first_features: Tensor,
    cell: Tensor,
    memory: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A whole sequence; differentiable once in every tensor unless members of a population have their own weights.

    Args:
        sizes: of the circuit.
        gates: products of the controller's gates with the inputs, biases included, ``[T, B, G]``.
        recurrent: products of the gates with the last features, ``[G, F]``; ``[P, G, F]`` for P members, each of which
            has B / P sequences, one member's after another's.
        interface_weight: ``[I, hidden]`` or ``[P, I, hidden]``.
        interface_bias: ``[I]`` or ``[P, I]``.
        first_features: hidden vector and words read before the first step, ``[B, F]``.
        cell: of the LSTM before the first step, ``[B, hidden]``; anything for other controllers.
        memory: before the first step, ``[B, N, W]``.
        weights: of all heads before the first step, read heads first, ``[B, K, N]``.

    Returns:
        Features ``[T, B, F]``, and the cell, the memory and the weights after the last step.

    Raises:
        ValueError: gradients are wanted of a population.
    """
    arguments = (gates, recurrent, interface_weight, interface_bias, first_features, cell, memory, weights)
    if torch.is_grad_enabled() and any(t.requires_grad for t in arguments):
        if recurrent.dim() == 3:
            raise ValueError("recurrent: got weights of a population with gradients; allowed are those of one circuit")
        return _Sequence.apply(sizes, *arguments)
    gates, *rest = (t.detach().contiguous() for t in arguments)
    features, cells, _, _, all_weights, _, last_memory = _forward(sizes, False, gates.clone(), *rest)
    return features[1:], cells[0], last_memory, all_weights[gates.shape[0] % 2]
