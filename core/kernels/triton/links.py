"""Links, the weightings along them and precedence, in one pass over the link matrix; and their backward.

Computes :func:`~papertape.core.addressing.link`, :func:`~papertape.core.addressing.directional_weights` both ways and
:func:`~papertape.core.addressing.precedence`. Each tile of the old links is read once and written once; the products
with the read weightings take the new tile from registers. B batch, N slots, R read heads, H write heads.

The backward pass of a step needs the links before it. Of the steps of a :class:`Chunk` only the first keeps them; the
others are computed again from there, which is one more pass over the links.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..transforms import kernel_backward, origin
from .launch import launch, parts, power_of_two, warps

ROWS = 32
"""Rows of links that a program takes; what sums over rows comes in N / ROWS parts."""

COLUMNS = 64
"""Columns that it takes at a time."""


@triton.jit
def linked(links, row_write, column_write, precedence, diagonal):
    """Links after a write, element by element; ``precedence`` is that of the columns."""
    return tl.where(diagonal, 0.0, (1.0 - row_write - column_write) * links + row_write * precedence)


@triton.jit
def links_forward(
    previous,
    precedence,
    write_weights,
    read_weights,
    link,
    new_precedence,
    forward,
    backward,
    N: tl.constexpr,
    H: tl.constexpr,
    R: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """One program per sequence, write head and block of rows."""
    matrix = tl.program_id(0).to(tl.int64)
    batch = matrix // H
    part = matrix * tl.num_programs(1) + tl.program_id(1)
    i = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    r = tl.arange(0, BLOCK_R)
    row_write = tl.load(write_weights + matrix * N + i, mask=i < N, other=0.0)
    total = tl.full([], 0.0, row_write.dtype)
    ahead = tl.zeros([ROWS, BLOCK_R], row_write.dtype)
    for start in range(0, N, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        inside = (i < N)[:, None] & (j < N)[None, :]
        offsets = matrix * N * N + i[:, None].to(tl.int64) * N + j[None, :]
        column_write = tl.load(write_weights + matrix * N + j, mask=j < N, other=0.0)
        last = tl.load(precedence + matrix * N + j, mask=j < N, other=0.0)
        tile = tl.load(previous + offsets, mask=inside, other=0.0)
        tile = linked(tile, row_write[:, None], column_write[None, :], last[None, :], i[:, None] == j[None, :])
        tl.store(link + offsets, tile, mask=inside)
        total += tl.sum(column_write, 0)
        for head in tl.static_range(R):
            read = (batch * R + head) * N
            column_read = tl.load(read_weights + read + j, mask=j < N, other=0.0)
            row_read = tl.load(read_weights + read + i, mask=i < N, other=0.0)
            product = tl.sum(tile * column_read[None, :], 1)
            ahead += tl.where(r[None, :] == head, product[:, None], 0.0)
            tl.store(backward + (part * R + head) * N + j, tl.sum(tile * row_read[:, None], 0), mask=j < N)
    rows = (batch * R + r[None, :]) * H + matrix % H
    tl.store(forward + rows * N + i[:, None], ahead, mask=(i < N)[:, None] & (r < R)[None, :])
    last = tl.load(precedence + matrix * N + i, mask=i < N, other=0.0)
    tl.store(new_precedence + matrix * N + i, (1.0 - total) * last + row_write, mask=i < N)


@triton.jit
def links_backward(
    previous,
    precedence,
    write_weights,
    read_weights,
    d_link,
    d_new_precedence,
    d_forward,
    d_backward,
    d_previous,
    d_precedence,
    d_row_write,
    d_column_write,
    d_row_read,
    d_column_read,
    N: tl.constexpr,
    H: tl.constexpr,
    R: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """One program per sequence, write head and block of rows; gradients of columns come in parts, one per block."""
    matrix = tl.program_id(0).to(tl.int64)
    batch = matrix // H
    part = matrix * tl.num_programs(1) + tl.program_id(1)
    i = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    r = tl.arange(0, BLOCK_R)
    row_write = tl.load(write_weights + matrix * N + i, mask=i < N, other=0.0)
    d_writes = tl.zeros([ROWS], row_write.dtype)
    d_reads = tl.zeros([ROWS, BLOCK_R], row_write.dtype)
    total = tl.full([], 0.0, row_write.dtype)
    d_total = tl.full([], 0.0, row_write.dtype)
    for start in range(0, N, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        inside = (i < N)[:, None] & (j < N)[None, :]
        offsets = matrix * N * N + i[:, None].to(tl.int64) * N + j[None, :]
        column_write = tl.load(write_weights + matrix * N + j, mask=j < N, other=0.0)
        last = tl.load(precedence + matrix * N + j, mask=j < N, other=0.0)
        total += tl.sum(column_write, 0)
        d_total -= tl.sum(last * tl.load(d_new_precedence + matrix * N + j, mask=j < N, other=0.0), 0)
        tile = tl.load(previous + offsets, mask=inside, other=0.0)
        d_tile = tl.load(d_link + offsets, mask=inside, other=0.0)
        diagonal = i[:, None] == j[None, :]
        new_tile = linked(tile, row_write[:, None], column_write[None, :], last[None, :], diagonal)
        for head in tl.static_range(R):
            read = (batch * R + head) * N
            column_read = tl.load(read_weights + read + j, mask=j < N, other=0.0)
            row_read = tl.load(read_weights + read + i, mask=i < N, other=0.0)
            direction = ((batch * R + head) * H + matrix % H) * N
            d_ahead = tl.load(d_forward + direction + i, mask=i < N, other=0.0)
            d_back = tl.load(d_backward + direction + j, mask=j < N, other=0.0)
            d_tile += d_ahead[:, None] * column_read[None, :] + row_read[:, None] * d_back[None, :]
            product = tl.sum(new_tile * d_back[None, :], 1)
            d_reads += tl.where(r[None, :] == head, product[:, None], 0.0)
            tl.store(d_column_read + (part * R + head) * N + j, tl.sum(new_tile * d_ahead[:, None], 0), mask=j < N)
        d_tile = tl.where(diagonal, 0.0, d_tile)
        factor = 1.0 - row_write[:, None] - column_write[None, :]
        tl.store(d_previous + offsets, d_tile * factor, mask=inside)
        d_writes += tl.sum(d_tile * (last[None, :] - tile), 1)
        tl.store(d_column_write + part * N + j, -tl.sum(d_tile * tile, 0), mask=j < N)
        tl.store(d_precedence + part * N + j, tl.sum(d_tile * row_write[:, None], 0), mask=j < N)
    # The share of the new precedence is added by the program that owns the rows, to its own part.
    gradient = tl.load(d_new_precedence + matrix * N + i, mask=i < N, other=0.0)
    tl.store(d_row_write + matrix * N + i, d_writes + gradient + d_total, mask=i < N)
    rows = (matrix * R + r[None, :]) * N
    tl.store(d_row_read + rows + i[:, None], d_reads, mask=(i < N)[:, None] & (r < R)[None, :])
    tl.debug_barrier()
    own = tl.load(d_precedence + part * N + i, mask=i < N, other=0.0)
    tl.store(d_precedence + part * N + i, own + (1.0 - total) * gradient, mask=i < N)


@triton.jit(do_not_specialize=["steps"])
def links_again(
    first,
    precedences,
    write_weights,
    links,
    steps,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program per sequence and write head, block of rows and block of columns, through several steps.

    From the links before the first step ``[M, N, N]``, and for every step the precedence before it and its write
    weightings ``[T, M, N]``, computes the links after every step ``[T, M, N, N]``.
    """
    matrix = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (i < N)[:, None] & (j < N)[None, :]
    within = i[:, None].to(tl.int64) * N + j[None, :]
    tile = tl.load(first + matrix * N * N + within, mask=inside, other=0.0)
    for step in range(steps):
        row = step * tl.num_programs(0) + matrix
        row_write = tl.load(write_weights + row * N + i, mask=i < N, other=0.0)
        column_write = tl.load(write_weights + row * N + j, mask=j < N, other=0.0)
        last = tl.load(precedences + row * N + j, mask=j < N, other=0.0)
        tile = linked(tile, row_write[:, None], column_write[None, :], last[None, :], i[:, None] == j[None, :])
        tl.store(links + row * N * N + within, tile, mask=inside)


class Chunk:
    """Steps that follow each other, of which only the first keeps its links for the backward pass."""

    def __init__(self) -> None:
        # Contexts refer to those before them and to what is known again, never to those after them: that would be a
        # cycle through the graph of autograd, which is never collected.
        self.contexts: list[Any] = []
        self.again: dict[int, tuple[Tensor, ...]] = {}


def _given(ctx: Any) -> tuple[Tensor, ...]:
    """What a step was given; if its links were not kept, after computing those of all steps up to it again."""
    if ctx.index not in ctx.again:
        # Autograd gives each once, so the steps before find theirs here.
        kept = [context.saved_tensors for context in (*ctx.earlier, ctx)]
        links = [kept[0][0]]
        if ctx.index > 0:
            precedences, write_weights = (torch.stack([step[-k] for step in kept[:-1]]) for k in (3, 2))
            made = links[0].new_empty(ctx.index, *links[0].shape)
            batch, heads, slots = write_weights.shape[1:]
            rows, columns = ctx.constants["ROWS"], ctx.constants["COLUMNS"]
            launch(
                links_again,
                (batch * heads, parts(slots, rows), parts(slots, columns)),
                *(links[0], precedences, write_weights, made, ctx.index),
                **{name: ctx.constants[name] for name in ("N", "ROWS", "COLUMNS", "num_warps")},
            )
            links.extend(made)
        ctx.again.update((index, (links[index], *step[-3:])) for index, step in enumerate(kept))
    return ctx.again.pop(ctx.index)


class _Links(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, chunk: Chunk, previous: Tensor, precedence: Tensor, write_weights: Tensor, read_weights: Tensor
    ) -> tuple[Tensor, ...]:
        given = [part.contiguous() for part in (previous, precedence, write_weights, read_weights)]
        batch, heads, slots = write_weights.shape
        reads = read_weights.shape[1]
        blocks = parts(slots, ROWS)
        ctx.constants = {
            "N": slots,
            "H": heads,
            "R": reads,
            "ROWS": min(ROWS, power_of_two(slots)),
            "COLUMNS": min(COLUMNS, power_of_two(slots)),
            "BLOCK_R": power_of_two(reads),
            "num_warps": warps(4 * min(ROWS * COLUMNS, power_of_two(slots) ** 2)),
        }
        link, new_precedence = torch.empty_like(given[0]), torch.empty_like(given[1])
        forward = given[0].new_empty(batch, reads, heads, slots)
        backward = given[0].new_empty(batch, heads, blocks, reads, slots)
        made = (link, new_precedence, forward, backward)
        launch(links_forward, (batch * heads, blocks), *given, *made, **ctx.constants)
        ctx.index, ctx.earlier, ctx.again = len(chunk.contexts), tuple(chunk.contexts), chunk.again
        chunk.contexts.append(ctx)
        ctx.origin = origin(previous, precedence, write_weights, read_weights)
        ctx.save_for_backward(*(given if ctx.index == 0 else given[1:]))
        return link, new_precedence, backward.sum(2).transpose(1, 2).contiguous(), forward

    @staticmethod
    @kernel_backward
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        given = _given(ctx)
        previous, precedence, _, read_weights = given
        batch, heads, slots = precedence.shape
        reads = read_weights.shape[1]
        blocks = parts(slots, ROWS)
        d_link, d_new_precedence, d_backward, d_forward = (part.contiguous() for part in gradients)
        d_previous, d_row_write = torch.empty_like(previous), torch.empty_like(precedence)
        d_column_write = precedence.new_empty(batch, heads, blocks, slots)
        d_precedence = torch.empty_like(d_column_write)
        d_row_read = precedence.new_empty(batch, heads, reads, slots)
        d_column_read = precedence.new_empty(batch, heads, blocks, reads, slots)
        launch(
            links_backward,
            (batch * heads, blocks),
            *given,
            *(d_link, d_new_precedence, d_forward, d_backward),
            *(d_previous, d_precedence, d_row_write, d_column_write, d_row_read, d_column_read),
            **ctx.constants,
        )
        d_write_weights = d_row_write + d_column_write.sum(2)
        return None, d_previous, d_precedence.sum(2), d_write_weights, d_row_read.sum(1) + d_column_read.sum((1, 2))


def follow_links(
    previous: Tensor,
    precedence: Tensor,
    write_weights: Tensor,
    read_weights: Tensor,
    chunk: Chunk | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step of the temporal links.

    Args:
        previous: links of the last step, ``[B, H, N, N]``.
        precedence: of the last step, ``[B, H, N]``.
        write_weights: of this step, ``[B, H, N]``.
        read_weights: of the last step, ``[B, R, N]``.
        chunk: the same for steps each of which is given what the last returned; None: this step keeps its own links.

    Returns:
        New links ``[B, H, N, N]``, new precedence ``[B, H, N]``, and the backward and the forward weightings along the
        new links, ``[B, R, H, N]`` each; see :func:`papertape.core.addressing.link` and what follows it.
    """
    return _Links.apply(Chunk() if chunk is None else chunk, previous, precedence, write_weights, read_weights)
