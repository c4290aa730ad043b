"""The interface vector: its size, the order of its parts, and the range of each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import addressing_loops as loops
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from papertape.core.accessors import Accessor, DynamicAccessor, SparseAccessor, StaticAccessor
from papertape.core.interface import MASK_MIN, oneplus


def made(cls: type[Accessor], hidden: int, width: int, reads: int, writes: int, **options: Any) -> Accessor:
    return cls(hidden, memory_size=4, word_size=width, num_reads=reads, num_writes=writes, **options)


def static(*sizes: int, **options: Any) -> Accessor:
    return made(StaticAccessor, *sizes, **options)


def dynamic(*sizes: int, **options: Any) -> Accessor:
    return made(DynamicAccessor, *sizes, **options)


def size(accessor: Accessor) -> int:
    assert accessor.interface.size == sum(accessor.interface.sizes.values())
    return accessor.interface.linear.out_features


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 4))
def test_size_of_the_dynamic_interface(width, reads, writes):
    if writes == 1:
        assert size(dynamic(2, width, reads, 1)) == width * reads + 3 * width + 5 * reads + 3
    plain = reads * width + reads + writes * (3 * width + 3) + reads + reads * (1 + 2 * writes)
    assert size(dynamic(2, width, reads, writes)) == plain
    assert size(dynamic(2, width, reads, writes, squash="tanh")) == plain
    assert size(dynamic(2, width, reads, writes, masked_content=True)) == plain + (reads + writes) * width
    assert size(dynamic(2, width, reads, writes, link_sharpening=True)) == plain + reads * 2 * writes


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 4), st.integers(0, 3))
def test_size_of_the_static_interface(width, reads, writes, shift_range):
    heads = reads + writes
    plain = heads * (width + 1 + 1 + (2 * shift_range + 1) + 1) + 2 * writes * width
    assert size(static(2, width, reads, writes, shift_range=shift_range)) == plain
    masked = static(2, width, reads, writes, shift_range=shift_range, masked_content=True)
    assert size(masked) == plain + heads * width


def identity(accessor: Accessor) -> Accessor:
    """The accessor with the Linear of its interface made to hand its input through."""
    count = size(accessor)
    linear = accessor.interface.linear = torch.nn.Linear(count, count, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(count))
        linear.bias.zero_()
    return accessor


Order = list[tuple[str, tuple[int, ...], Callable[[float], float] | None]]
"""Name, shape and function of each part of the interface vector; None is a softmax over the last dimension."""


def assert_parts(accessor: Accessor, order: Order) -> None:
    """That the heads hand these parts over in this order, each put through its function by plain loops."""
    numbers = np.linspace(-3, 3, size(accessor))
    heads = identity(accessor).heads(torch.from_numpy(np.stack([numbers, numbers[::-1].copy()])))
    for row, vector in enumerate((iter(numbers), iter(numbers[::-1]))):
        for name, shape, function in order:
            columns = shape[-1]
            expected = loops.take(vector, math.prod(shape[:-1]), columns, function)
            if function is None:
                expected = np.array([loops.softmax(part) for part in expected])
            found = getattr(heads, name)[row]
            assert found.shape == shape
            np.testing.assert_allclose(found.detach().numpy().reshape(-1, columns), expected, rtol=1e-12, atol=1e-15)
        assert not list(vector)
    assert [name for name, value in heads._asdict().items() if value is not None] == [name for name, *_ in order]


def unchanged(x: float) -> float:
    return x


@pytest.mark.parametrize("options", [{}, {"masked_content": True, "link_sharpening": True, "squash": "tanh"}])
def test_dynamic_parts_come_in_the_order_of_the_paper(options):
    width, reads, writes = 3, 2, 2
    squash = math.tanh if options else unchanged
    order: Order = [
        ("read_keys", (reads, width), squash),
        ("read_strengths", (reads,), loops.oneplus),
        ("write_keys", (writes, width), squash),
        ("write_strengths", (writes,), loops.oneplus),
        ("erase", (writes, width), loops.sigmoid),
        ("add", (writes, width), squash),
        ("free_gates", (reads,), loops.sigmoid),
        ("allocation_gates", (writes,), loops.sigmoid),
        ("write_gates", (writes,), loops.sigmoid),
        ("read_modes", (reads, 1 + 2 * writes), None),
    ]
    if options:
        order += [
            ("read_mask", (reads, width), loops.lookup_mask),
            ("write_mask", (writes, width), loops.lookup_mask),
            ("link_powers", (reads, 2 * writes), loops.oneplus),
        ]
    assert_parts(dynamic(1, width, reads, writes, **options), order)


@pytest.mark.parametrize("masked", [False, True])
def test_static_parts(masked):
    width, reads, writes = 3, 2, 2
    count = reads + writes
    order: Order = [
        ("keys", (count, width), math.tanh),
        ("strengths", (count,), loops.softplus),
        ("gate", (count,), loops.sigmoid),
        ("shift", (count, 3), None),
        ("sharpness", (count,), loops.oneplus),
        ("erase", (writes, width), loops.sigmoid),
        ("add", (writes, width), math.tanh),
    ]
    if masked:
        order.append(("mask", (count, width), loops.lookup_mask))
    assert_parts(static(1, width, reads, writes, masked_content=masked), order)


@pytest.mark.parametrize(("links", "writes"), [(False, 2), (True, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_sparse_parts(masked, links, writes):
    width, reads = 3, 2
    order: Order = [
        ("read_keys", (reads, width), unchanged),
        ("read_strengths", (reads,), loops.oneplus),
        ("add", (writes, width), unchanged),
        ("write_gates", (writes,), loops.sigmoid),
        ("write_modes", (writes, 1 + reads), None),
    ]
    if links:
        order.append(("read_modes", (reads, 3), None))
    if masked:
        order.append(("read_mask", (reads, width), loops.lookup_mask))
    assert_parts(made(SparseAccessor, 1, width, reads, writes, links_per_slot=2 * links, masked_content=masked), order)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from([0.0, 1.0, 30.0, 1e4]), st.sampled_from([torch.float32, torch.float64]))
def test_ranges_hold_at_any_interface_vector(seed, scale, dtype):
    generator = torch.Generator().manual_seed(seed)
    for accessor in (
        static(4, 3, 2, 2, masked_content=True),
        dynamic(4, 3, 2, 2, squash="tanh", masked_content=True, link_sharpening=True),
    ):
        accessor.to(dtype)
        heads = accessor.heads((torch.randn(5, 4, generator=generator) * scale).to(dtype))
        for name, value in heads._asdict().items():
            assert torch.isfinite(value).all(), name
            if "gate" in name or name in ("erase", "shift", "read_modes", "read_mask", "write_mask", "mask"):
                assert value.min() >= (MASK_MIN - 1e-7 if "mask" in name else 0), name
                assert value.max() <= 1 + 1e-6, name
            if name in ("shift", "read_modes"):
                torch.testing.assert_close(value.sum(-1), torch.ones_like(value[..., 0]))
            if "keys" in name or name == "add":
                assert value.abs().max() <= 1, name
            if name in ("read_strengths", "write_strengths", "sharpness", "link_powers"):
                assert value.min() >= 1, name
            if name == "strengths":
                assert value.min() >= 0


def test_oneplus():
    x = torch.tensor([-1000.0, -1.0, 0.0, 1.0, 50.0, 1000.0], dtype=torch.float64)
    expected = torch.tensor([1, 1.3132616875182228, 1.6931471805599454, 2.313261687518223, 51, 1001])
    torch.testing.assert_close(oneplus(x), expected.double())


def test_parked_heads_start_where_they_are():
    """The same random numbers give parked heads a lower gate and a higher sharpness than uniform ones."""
    heads = []
    for init in ("parked", "uniform"):
        torch.manual_seed(0)
        accessor = static(8, 3, 1, 1, head_init=init)
        heads.append(accessor.heads(torch.zeros(1, 8)))
    parked, uniform = heads
    assert (parked.gate < uniform.gate).all() and parked.gate.max() < 0.2
    assert (parked.sharpness > uniform.sharpness).all() and parked.sharpness.min() > 2.5
    with pytest.raises(ValueError, match="head_init: got 'parking'; allowed: 'parked' or 'uniform'"):
        static(8, 3, 1, 1, head_init="parking")
