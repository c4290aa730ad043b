"""The controller inside a kernel that runs a whole sequence: gates, hidden vector, interface; and their backward.

F = hidden + R * W features (hidden vector and words read), G = gates * hidden. Weights of the layers stream from the
second-level cache, which all programs share; vectors go through memory, so that every thread sees all of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .launch import power_of_two, sigmoid, tanh

WARPS = 8
"""Of a program that runs a sequence."""

IN_FLIGHT = 8192
"""Weights of a layer that a program asks for at a time, 32 per thread: one sequence alone waits for the cache."""

KEEP_EVERY = 8
"""Steps between two stored memories."""

LARGEST_VECTOR = 1024
"""Elements of the widest vector (features, gates, interface), rounded up to a power of two."""

FEEDFORWARD, LSTM, GRU = 0, 1, 2


@triton.jit
def _clip(x, CLIP: tl.constexpr):
    """The value in [-CLIP, CLIP], unbounded for None; NaN stays NaN."""
    if CLIP is not None:
        x = tl.where(x > CLIP, CLIP, tl.where(x < -CLIP, -CLIP, x))
    return x


@triton.jit
def _passes(gradient, x, CLIP: tl.constexpr):
    """The gradient where :func:`_clip` leaves x as it is."""
    if CLIP is not None:
        gradient = tl.where((x >= -CLIP) & (x <= CLIP), gradient, 0.0)
    return gradient


@triton.jit
def product(weight, vector, start, out, length, columns, width, CHUNK: tl.constexpr):
    """``start + vector @ weight[:, out]`` for a weight ``[length, width]`` and the first ``columns`` of ``out``."""
    rows = tl.arange(0, CHUNK)
    # Added up by each thread for itself, and among threads once.
    sums = tl.zeros([CHUNK, out.shape[0]], start.dtype)
    for first in range(0, length, CHUNK):
        row = first + rows
        x = tl.load(vector + row, mask=row < length, other=0.0)
        inside = (row < length)[:, None] & (out < columns)[None, :]
        sums += x[:, None] * tl.load(weight + row[:, None] * width + out[None, :], mask=inside, other=0.0)
    return start + tl.sum(sums, 0)


@triton.jit
def _cell(
    gates,
    previous,
    cell,
    h,
    HIDDEN: tl.constexpr,
    KIND: tl.constexpr,
    CLIP: tl.constexpr,
):
    """Hidden vector and cell from the sums that enter the gates, which are in memory: gates ``[G]``."""
    inside = h < HIDDEN
    first = tl.load(gates + h, mask=inside, other=0.0)
    if KIND == 0:
        hidden = tanh(first)
    else:
        second = tl.load(gates + HIDDEN + h, mask=inside, other=0.0)
        third = tl.load(gates + 2 * HIDDEN + h, mask=inside, other=0.0)
        fourth = tl.load(gates + 3 * HIDDEN + h, mask=inside, other=0.0)
        if KIND == 1:
            cell = _clip(sigmoid(second) * cell + sigmoid(first) * tanh(third), CLIP)
            hidden = sigmoid(fourth) * tanh(cell)
        else:
            candidate = tanh(third + sigmoid(first) * fourth)
            hidden = candidate + sigmoid(second) * (previous - candidate)
    return _clip(hidden, CLIP), cell


@triton.jit
def controller_forward(
    before,
    after,
    gates,
    recurrent,
    interface_weight,
    interface_bias,
    interface,
    cell,
    h,
    i,
    F: tl.constexpr,
    HIDDEN: tl.constexpr,
    GATES: tl.constexpr,
    INTERFACE: tl.constexpr,
    KIND: tl.constexpr,
    CLIP: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """From the last features to the next hidden vector and the interface vector, both stored; gives the next cell.

    ``gates`` ``[G]`` holds the products with the input, to which those with the features are added.
    """
    for block in tl.static_range(GATES):
        sums = gates + block * HIDDEN + h
        total = tl.load(sums, mask=h < HIDDEN, other=0.0)
        total = product(recurrent + block * HIDDEN, before, total, h, F, HIDDEN, GATES * HIDDEN, CHUNK)
        tl.store(sums, total, mask=h < HIDDEN)
    tl.debug_barrier()
    previous = tl.load(before + h, mask=h < HIDDEN, other=0.0)
    hidden, cell = _cell(gates, previous, cell, h, HIDDEN, KIND, CLIP)
    tl.store(after + h, hidden, mask=h < HIDDEN)
    tl.debug_barrier()
    vector = tl.load(interface_bias + i, mask=i < INTERFACE, other=0.0)
    vector = product(interface_weight, after, vector, i, HIDDEN, INTERFACE, INTERFACE, CHUNK)
    tl.store(interface + i, vector, mask=i < INTERFACE)
    tl.debug_barrier()
    return cell


@triton.jit
def controller_backward(
    before,
    gates,
    cell,
    recurrent,
    interface_weight,
    d_after,
    d_before,
    d_gates,
    d_interface,
    d_cell,
    h,
    f,
    F: tl.constexpr,
    HIDDEN: tl.constexpr,
    GATES: tl.constexpr,
    INTERFACE: tl.constexpr,
    KIND: tl.constexpr,
    CLIP: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Backward of :func:`controller_forward`: fills ``d_gates``, adds to ``d_before``, gives that of the last cell.

    ``cell`` points to the cell before the step; ``recurrent`` is ``[G, F]`` and ``interface_weight`` ``[I, hidden]``.
    """
    in_hidden = h < HIDDEN
    d_hidden = tl.load(d_after + h, mask=in_hidden, other=0.0)
    d_hidden = product(interface_weight, d_interface, d_hidden, h, INTERFACE, HIDDEN, HIDDEN, CHUNK)
    previous = tl.load(before + h, mask=in_hidden, other=0.0)
    one = tl.load(gates + h, mask=in_hidden, other=0.0)
    d_one = d_gates + h
    if KIND == 0:
        output = tanh(one)
        d_hidden = _passes(d_hidden, output, CLIP)
        tl.store(d_one, d_hidden * (1.0 - output * output), mask=in_hidden)
    else:
        two = sigmoid(tl.load(gates + HIDDEN + h, mask=in_hidden, other=0.0))
        three = tl.load(gates + 2 * HIDDEN + h, mask=in_hidden, other=0.0)
        four = tl.load(gates + 3 * HIDDEN + h, mask=in_hidden, other=0.0)
        one = sigmoid(one)
        if KIND == 1:
            three = tanh(three)
            four = sigmoid(four)
            last_cell = tl.load(cell + h, mask=in_hidden, other=0.0)
            total = two * last_cell + one * three
            squashed = tanh(_clip(total, CLIP))
            d_hidden = _passes(d_hidden, four * squashed, CLIP)
            d_cell = _passes(d_cell + d_hidden * four * (1.0 - squashed * squashed), total, CLIP)
            tl.store(d_one, d_cell * three * one * (1.0 - one), mask=in_hidden)
            tl.store(d_one + HIDDEN, d_cell * last_cell * two * (1.0 - two), mask=in_hidden)
            tl.store(d_one + 2 * HIDDEN, d_cell * one * (1.0 - three * three), mask=in_hidden)
            tl.store(d_one + 3 * HIDDEN, d_hidden * squashed * four * (1.0 - four), mask=in_hidden)
            d_cell *= two
        else:
            candidate = tanh(three + one * four)
            d_hidden = _passes(d_hidden, candidate + two * (previous - candidate), CLIP)
            d_candidate = d_hidden * (1.0 - two) * (1.0 - candidate * candidate)
            tl.store(d_one, d_candidate * four * one * (1.0 - one), mask=in_hidden)
            tl.store(d_one + HIDDEN, d_hidden * (previous - candidate) * two * (1.0 - two), mask=in_hidden)
            tl.store(d_one + 2 * HIDDEN, d_candidate, mask=in_hidden)
            tl.store(d_one + 3 * HIDDEN, d_candidate * one, mask=in_hidden)
            direct = tl.load(d_before + h, mask=in_hidden, other=0.0) + d_hidden * two
            tl.store(d_before + h, direct, mask=in_hidden)
    tl.debug_barrier()
    d_row = tl.load(d_before + f, mask=f < F, other=0.0)
    d_row = product(recurrent, d_gates, d_row, f, GATES * HIDDEN, F, F, CHUNK)
    tl.store(d_before + f, d_row, mask=f < F)
    tl.debug_barrier()
    return d_cell


def chunk(hidden: int, features: int, interface: int) -> int:
    """Rows of a layer's weights that are multiplied at a time."""
    widest = power_of_two(max(hidden, features, interface))
    return min(64, IN_FLIGHT // widest)


def too_wide(hidden: int, features: int, interface: int) -> str | None:
    """Why a program cannot hold the vectors of a controller, or None."""
    widest = max(4 * hidden, features, interface)
    return f"a vector of {widest} elements is too wide for a program" if widest > LARGEST_VECTOR else None
