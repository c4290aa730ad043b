"""The sanitizer of Triton's kernels finds what is wrong with small kernels, and nothing in those that are right."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

import triton
import triton.language as tl
from sanitizer import sanitized

pytestmark = pytest.mark.usefixtures("triton_interpreter")


@triton.jit
def rotate_through_memory(x, room, N: tl.constexpr, BARRIER: tl.constexpr):
    n = tl.arange(0, N)
    tl.store(room + n, tl.load(x + n))
    if BARRIER:
        tl.debug_barrier()
    tl.store(x + n, tl.load(room + (n + 1) % N))


@triton.jit
def rotate_in_place(x, N: tl.constexpr, BARRIER: tl.constexpr):
    n = tl.arange(0, N)
    rotated = tl.load(x + (n + 1) % N)
    if BARRIER:
        tl.debug_barrier()
    tl.store(x + n, rotated)


@triton.jit
def load_twice(x, N: tl.constexpr, BARRIER: tl.constexpr):
    n = tl.arange(0, N)
    total = tl.sum(tl.load(x + n), 0)
    if BARRIER:
        tl.debug_barrier()
    tl.store(x + n, tl.load(x + n) / total)


@triton.jit
def store_twice(x, N: tl.constexpr, BARRIER: tl.constexpr):
    n = tl.arange(0, N)
    tl.store(x + n, n.to(tl.float32))
    if BARRIER:
        tl.debug_barrier()
    tl.store(x, 5.0)


@triton.jit
def walk(x, N: tl.constexpr, BARRIER: tl.constexpr):
    n = tl.arange(0, N)
    for step in range(3):
        shifted = tl.load(x + step * N + (n + 1) % N)
        tl.store(x + (step + 1) * N + n, shifted)
        if BARRIER:
            tl.debug_barrier()


@pytest.mark.parametrize("barrier", [False, True])
@pytest.mark.parametrize(
    ("kernel", "sizes", "finding"),
    [
        (rotate_through_memory, (4, 4), "room: .* loads without a barrier what .* stored"),
        (rotate_in_place, (4,), "x: .* stores without a barrier where .* loaded"),
        (load_twice, (4,), "x: .* stores without a barrier where .* loaded"),
        (store_twice, (4,), "x: .* stores without a barrier where .* stored"),
        (walk, (16,), "x: .* loads without a barrier what .* stored"),
    ],
)
def test_races(kernel: Any, sizes: tuple[int, ...], finding: str, barrier: bool) -> None:
    tensors = [torch.ones(size) for size in sizes]
    if barrier:
        with sanitized():
            kernel[(1,)](*tensors, N=4, BARRIER=True)
    else:
        with pytest.raises(AssertionError, match=rf"^{kernel.__name__}: {finding}$"), sanitized():
            kernel[(1,)](*tensors, N=4, BARRIER=False)


@triton.jit
def add_in_place(x, y, N: tl.constexpr):
    n = tl.arange(0, 8)
    inside = n < N
    x_old = tl.load(x + n, mask=inside, other=0.0)
    tl.store(x + n, x_old + tl.load(y + n, mask=inside, other=0.0), mask=inside)


@triton.jit
def add_and_use_again(x, y, N: tl.constexpr):
    n = tl.arange(0, N)
    x_old = tl.load(x + n)
    tl.store(x + n, x_old + 1.0)
    tl.store(y + n, x_old)


def test_a_block_may_be_changed_where_it_is_but_what_it_was_is_gone() -> None:
    x, y = torch.ones(5), torch.ones(5)
    with sanitized():
        add_in_place[(1,)](x, y, N=5)
        add_and_use_again[(1,)](x[:4], y[:4], N=4)
    assert x.tolist() == [3, 3, 3, 3, 2] and y[:4].isnan().all()


@triton.jit
def copy(x, y, SHIFT: tl.constexpr, N: tl.constexpr):
    n = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(y + n, tl.load(x + n + SHIFT))


@triton.jit
def next_block(x, WAY: tl.constexpr, N: tl.constexpr):
    n = tl.arange(0, N)
    program = tl.program_id(0)
    block = tl.load(x + (1 + program + WAY) * N + n)
    tl.debug_barrier()
    tl.store(x + (1 + program) * N + n, block)


@triton.jit
def number(x, PLACES: tl.constexpr, N: tl.constexpr):
    n = tl.arange(0, N)
    tl.store(x + n % PLACES, n.to(tl.float32))


@triton.jit
def write_first(x, N: tl.constexpr):
    tl.store(x + tl.arange(0, N), tl.program_id(0).to(tl.float32))


@triton.jit
def count(x):
    tl.atomic_add(x, 1.0)


@pytest.mark.parametrize(
    ("launch", "finding"),
    [
        (lambda x: copy[(2,)](x, x.clone(), SHIFT=1, N=4), "copy: x: .* reaches outside"),
        (lambda x: copy[(1,)](x, x.clone(), SHIFT=-1, N=4), "copy: x: .* reaches outside"),
        (lambda x: copy[(1,)](x, x.new_zeros(3), SHIFT=0, N=4), "copy: y: .* reaches outside"),
        # Inside the storage.
        (lambda x: copy[(1,)](x[2:5], x.clone(), SHIFT=0, N=4), "copy: x: .* reaches outside"),
        (lambda x: copy[(1,)](x.view(2, 4).T, x.clone(), SHIFT=0, N=4), "copy: x is not contiguous"),
        (lambda x: copy[(1,)](torch.empty(4), x, SHIFT=0, N=4), "copy: x: .* loads what nobody wrote"),
        (lambda x: copy[(1,)](torch.empty_like(x), x, SHIFT=0, N=4), "copy: x: .* loads what nobody wrote"),
        (lambda x: copy[(1,)](x.double().new_empty(4), x, SHIFT=0, N=4), "copy: x: .* loads what nobody wrote"),
        (lambda x: next_block[(2,)](x.repeat(2), WAY=1, N=4), "x: .* stores what .* uses in another program"),
        (lambda x: next_block[(2,)](x.repeat(2), WAY=-1, N=4), "x: .* loads what .* stores in another program"),
        (lambda x: copy[(1,)](x[:4], x[2:6], SHIFT=0, N=4), "y: .* stores without a barrier where .* loaded"),
        (lambda x: write_first[(2,)](x, N=4), "x: .* stores what .* uses in another program"),
        (lambda x: number[(1,)](x, PLACES=2, N=4), "x: .* stores different values in one place"),
    ],
)
def test_findings(launch: Callable[[Tensor], None], finding: str) -> None:
    with pytest.raises(AssertionError, match=finding), sanitized():
        launch(torch.ones(8))


def test_what_is_right_is_not_reported() -> None:
    with sanitized():
        filled = torch.empty(8)
        copy[(2,)](torch.ones(8), filled, SHIFT=0, N=4)
        copy[(2,)](filled, torch.empty(8, dtype=torch.float64), SHIFT=0, N=4)
        number[(1,)](filled, PLACES=4, N=4)
    assert filled.tolist() == [0, 1, 2, 3, 1, 1, 1, 1]


def test_atomic_operations_are_refused() -> None:
    with pytest.raises(Exception, match="no atomic operations"), sanitized():
        count[(1,)](torch.ones(1))
