"""The controller inside a kernel that runs a whole sequence: gates, hidden vector, interface; and their backward.

A row of features is what one step hands to the next: the hidden vectors of all layers, the last layer first, then the
words read, so that the first layer finds its own hidden vector beside the words. Shapes: L layers, G = gates * hidden,
F = L * hidden + R * W features, I interface.

Weights of the layers stream from the second-level cache, which all programs share; vectors go through memory, so that
every thread sees all of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .launch import sigmoid, tanh

FEEDFORWARD, LSTM, GRU = 0, 1, 2

IN_FLIGHT = tl.constexpr(32)
"""Weights of a layer that a thread asks for at a time: one sequence alone waits for the cache."""


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
def product(weight, vector, start, out, length, columns, width, THREADS: tl.constexpr):
    """``start + vector @ weight[:, out]`` for a weight ``[length, width]`` and the first ``columns`` of ``out``."""
    # Neighbouring threads take neighbouring columns. Where a row is long enough for all threads, none share a column:
    # those who do would exchange its parts.
    share: tl.constexpr = out.shape[0] // THREADS
    each: tl.constexpr = 2 if share == 2 else 4
    fitting: tl.constexpr = IN_FLIGHT * THREADS // out.shape[0]
    rows = tl.arange(0, fitting if fitting < 64 else 64)
    sums = tl.zeros([rows.shape[0], out.shape[0]], start.dtype)
    for first in range(0, length, rows.shape[0]):
        row = first + rows
        x = tl.load(vector + row, mask=row < length, other=0.0)
        inside = (row < length)[:, None] & (out < columns)[None, :]
        place = tl.max_contiguous(weight + row[:, None] * width + out[None, :], [1, each])
        sums += x[:, None] * tl.load(place, mask=inside, other=0.0)
    return start + tl.sum(sums, 0)


@triton.jit
def _add_products(gates, weight, vector, h, length, HIDDEN: tl.constexpr, GATES: tl.constexpr, THREADS: tl.constexpr):
    """Adds ``vector @ weight`` to the gates of a layer, for a weight ``[length, G]``."""
    G: tl.constexpr = GATES * HIDDEN
    g = tl.arange(0, GATES * h.shape[0])
    sums = tl.load(gates + g, mask=g < G, other=0.0)
    sums = product(weight, vector, sums, g, length, G, G, THREADS)
    tl.store(gates + g, sums, mask=g < G)
    tl.debug_barrier()


@triton.jit
def _layer(before, after, gates, cell, new_cell, h, HIDDEN: tl.constexpr, KIND: tl.constexpr, CLIP: tl.constexpr):
    """Stores the hidden vector and the cell of a layer after the sums that enter its gates, ``[G]``."""
    inside = h < HIDDEN
    first = tl.load(gates + h, mask=inside, other=0.0)
    if KIND == 0:
        hidden = tanh(first)
    else:
        second = tl.load(gates + HIDDEN + h, mask=inside, other=0.0)
        third = tl.load(gates + 2 * HIDDEN + h, mask=inside, other=0.0)
        fourth = tl.load(gates + 3 * HIDDEN + h, mask=inside, other=0.0)
        if KIND == 1:
            last = tl.load(cell + h, mask=inside, other=0.0)
            memory = _clip(sigmoid(second) * last + sigmoid(first) * tanh(third), CLIP)
            tl.store(new_cell + h, memory, mask=inside)
            hidden = sigmoid(fourth) * tanh(memory)
        else:
            previous = tl.load(before + h, mask=inside, other=0.0)
            candidate = tanh(third + sigmoid(first) * fourth)
            hidden = candidate + sigmoid(second) * (previous - candidate)
    tl.store(after + h, _clip(hidden, CLIP), mask=inside)
    tl.debug_barrier()


@triton.jit
def controller_forward(
    before,
    after,
    gates,
    cells,
    new_cells,
    recurrent,
    upper,
    h,
    WORDS: tl.constexpr,
    HIDDEN: tl.constexpr,
    LAYERS: tl.constexpr,
    KIND: tl.constexpr,
    CLIP: tl.constexpr,
    THREADS: tl.constexpr,
):
    """Stores the hidden vectors and cells ``[L * hidden]`` of a step, from the features before it.

    ``gates`` ``[L * G]`` holds biases and products with the input, to which all others are added. ``recurrent``
    ``[hidden + WORDS, G]`` are the weights of the first layer; ``upper`` ``[L - 1, 2 * hidden, G]`` those of the others
    for the hidden vector below and for their own last one.
    """
    GATES: tl.constexpr = 1 if KIND == 0 else 4
    own = (LAYERS - 1) * HIDDEN
    _add_products(gates, recurrent, before + own, h, HIDDEN + WORDS, HIDDEN, GATES, THREADS)
    _layer(before + own, after + own, gates, cells, new_cells, h, HIDDEN, KIND, CLIP)
    for _ in range(1, LAYERS):
        own -= HIDDEN
        gates += GATES * HIDDEN
        cells += HIDDEN
        new_cells += HIDDEN
        _add_products(gates, upper, after + own + HIDDEN, h, HIDDEN, HIDDEN, GATES, THREADS)
        upper += HIDDEN * GATES * HIDDEN
        if KIND != 0:
            _add_products(gates, upper, before + own, h, HIDDEN, HIDDEN, GATES, THREADS)
        upper += HIDDEN * GATES * HIDDEN
        _layer(before + own, after + own, gates, cells, new_cells, h, HIDDEN, KIND, CLIP)


@triton.jit
def interface_forward(
    hidden, weight, bias, interface, i, HIDDEN: tl.constexpr, INTERFACE: tl.constexpr, THREADS: tl.constexpr
):
    """Stores the interface vector ``[I]`` of a hidden vector, which is in memory; ``weight`` is ``[hidden, I]``."""
    vector = tl.load(bias + i, mask=i < INTERFACE, other=0.0)
    vector = product(weight, hidden, vector, i, HIDDEN, INTERFACE, INTERFACE, THREADS)
    tl.store(interface + i, vector, mask=i < INTERFACE)
    tl.debug_barrier()


@triton.jit
def _layer_backward(
    before,
    gates,
    cell,
    d_hidden,
    d_before,
    d_gates,
    d_cell,
    h,
    HIDDEN: tl.constexpr,
    KIND: tl.constexpr,
    CLIP: tl.constexpr,
):
    """Backward of :func:`_layer`: fills ``d_gates``, adds to ``d_before``, and changes ``d_cell`` in place."""
    in_hidden = h < HIDDEN
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
            d_memory = tl.load(d_cell + h, mask=in_hidden, other=0.0)
            d_memory = _passes(d_memory + d_hidden * four * (1.0 - squashed * squashed), total, CLIP)
            tl.store(d_one, d_memory * three * one * (1.0 - one), mask=in_hidden)
            tl.store(d_one + HIDDEN, d_memory * last_cell * two * (1.0 - two), mask=in_hidden)
            tl.store(d_one + 2 * HIDDEN, d_memory * one * (1.0 - three * three), mask=in_hidden)
            tl.store(d_one + 3 * HIDDEN, d_hidden * squashed * four * (1.0 - four), mask=in_hidden)
            tl.store(d_cell + h, d_memory * two, mask=in_hidden)
        else:
            previous = tl.load(before + h, mask=in_hidden, other=0.0)
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


@triton.jit
def interface_backward(
    d_after, weight, d_interface, h, HIDDEN: tl.constexpr, INTERFACE: tl.constexpr, THREADS: tl.constexpr
):
    """Gradient of the hidden vector of :func:`interface_forward`, on top of that in ``d_after``."""
    d_hidden = tl.load(d_after + h, mask=h < HIDDEN, other=0.0)
    return product(weight, d_interface, d_hidden, h, INTERFACE, HIDDEN, HIDDEN, THREADS)


@triton.jit
def controller_backward(
    before,
    gates,
    cells,
    recurrent,
    upper,
    d_hidden,
    d_after,
    d_before,
    d_gates,
    d_cells,
    h,
    f,
    WORDS: tl.constexpr,
    HIDDEN: tl.constexpr,
    LAYERS: tl.constexpr,
    KIND: tl.constexpr,
    CLIP: tl.constexpr,
    THREADS: tl.constexpr,
):
    """Backward of :func:`controller_forward`: fills ``d_gates``, adds to ``d_before``, changes ``d_cells`` in place.

    ``d_hidden`` is the gradient of the last layer's hidden vector; ``recurrent`` is ``[G, hidden + WORDS]`` and
    ``upper`` ``[L - 1, G, 2 * hidden]``.
    """
    G: tl.constexpr = HIDDEN if KIND == 0 else 4 * HIDDEN
    BOTH: tl.constexpr = 2 * HIDDEN
    own = 0
    gates += (LAYERS - 1) * G
    d_gates += (LAYERS - 1) * G
    cells += (LAYERS - 1) * HIDDEN
    d_cells += (LAYERS - 1) * HIDDEN
    upper += (LAYERS - 1) * G * BOTH
    for _ in range(1, LAYERS):
        _layer_backward(before + own, gates, cells, d_hidden, d_before + own, d_gates, d_cells, h, HIDDEN, KIND, CLIP)
        upper -= G * BOTH
        if KIND != 0:
            d_row = tl.load(d_before + own + h, mask=h < HIDDEN, other=0.0)
            d_row = product(upper + HIDDEN, d_gates, d_row, h, G, HIDDEN, BOTH, THREADS)
            tl.store(d_before + own + h, d_row, mask=h < HIDDEN)
        own += HIDDEN
        d_hidden = tl.load(d_after + own + h, mask=h < HIDDEN, other=0.0)
        d_hidden = product(upper, d_gates, d_hidden, h, G, HIDDEN, BOTH, THREADS)
        gates -= G
        d_gates -= G
        cells -= HIDDEN
        d_cells -= HIDDEN
    _layer_backward(before + own, gates, cells, d_hidden, d_before + own, d_gates, d_cells, h, HIDDEN, KIND, CLIP)
    d_row = tl.load(d_before + own + f, mask=f < HIDDEN + WORDS, other=0.0)
    d_row = product(recurrent, d_gates, d_row, f, G, HIDDEN + WORDS, HIDDEN + WORDS, THREADS)
    tl.store(d_before + own + f, d_row, mask=f < HIDDEN + WORDS)
    tl.debug_barrier()
