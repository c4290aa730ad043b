"""What all Triton kernels share: how they are launched, how large their tiles are, and functions of elements.

Kernels compute in the type of their tensors, float32 or float64. Sizes are compile-time constants, so a kernel is
compiled once per size of the memory; tiles have powers of two as sides and are masked where they stick out. Sums over
several programs are written as parts and added by torch: no atomics, so results repeat bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

TILE = 2048
"""Elements that a two-dimensional tile aims at: 16 registers per thread of 4 warps in float32."""


def power_of_two(size: int) -> int:
    """The smallest power of two that is no smaller."""
    return 1 << (size - 1).bit_length()  # Triton's own function is made for kernels, and slow outside


def rows_per_tile(rows: int, columns: int) -> int:
    """How many of the rows a tile takes, for tiles of whole rows: a power of two, at least 16 unless all fit."""
    return min(power_of_two(rows), max(16, TILE // power_of_two(columns)))


def parts(size: int, block: int) -> int:
    """How many blocks cover a size."""
    return triton.cdiv(size, block)


def warps(elements: int) -> int:
    """Warps for a program whose largest tile has so many elements: 16 elements per thread, 1 to 8 warps."""
    return min(8, max(1, power_of_two(elements) // 512))


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int = 4, **constants: Any) -> None:
    """Run a kernel once per point of the grid, on the device of its first argument."""
    first: Tensor = arguments[0]
    # One stage: no load may move ahead of a store, since threads read what others have written.
    options = {"num_warps": num_warps, "num_stages": 1, **constants}
    if first.is_cuda:
        with torch.cuda.device(first.device):
            kernel[grid](*arguments, **options)
    else:
        kernel[grid](*arguments, **options)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU: TRITON_INTERPRET was 1 when Triton was imported."""
    return isinstance(sigmoid, InterpretedFunction)


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x), from an exponential that cannot overflow."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x < 0, small, 1.0) / (1.0 + small)


@triton.jit
def tanh(x):
    """Hyperbolic tangent, from an exponential that cannot overflow."""
    small = tl.exp(-2.0 * tl.abs(x))
    size = (1.0 - small) / (1.0 + small)
    return tl.where(x < 0, -size, size)


@triton.jit
def softplus(x):
    """log(1 + e^x), and x itself above 20, as torch.nn.functional.softplus."""
    return tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(tl.where(x > 20.0, 0.0, x))))


@triton.jit
def softplus_slope(x):
    """Derivative of :func:`softplus`."""
    return tl.where(x > 20.0, 1.0, sigmoid(x))


@triton.jit
def softmax(logits, AXIS: tl.constexpr = 0):
    """Shares along an axis that a tile holds whole; logits of -inf, but not only they, get 0."""
    shares = tl.exp(logits - tl.max(logits, AXIS, keep_dims=True))
    return shares / tl.sum(shares, AXIS, keep_dims=True)


@triton.jit
def softmax_backward(shares, d_shares, AXIS: tl.constexpr = 0):
    """Gradient of the logits of :func:`softmax`."""
    return shares * (d_shares - tl.sum(shares * d_shares, AXIS, keep_dims=True))
