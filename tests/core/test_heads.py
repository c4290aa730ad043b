"""The interface vector: its size, the order of its parts, and the range of each."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from papertape.core.interface import MASK_MIN, DynamicInterface, Interface, StaticInterface, oneplus


def size(interface: Interface) -> int:
    return interface.linear.out_features


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 4))
def test_size_of_the_dynamic_interface(width, reads, writes):
    if writes == 1:
        assert size(DynamicInterface(2, width, reads, 1)) == width * reads + 3 * width + 5 * reads + 3
    plain = reads * width + reads + writes * (3 * width + 3) + reads + reads * (1 + 2 * writes)
    assert size(DynamicInterface(2, width, reads, writes)) == plain
    assert size(DynamicInterface(2, width, reads, writes, squash="tanh")) == plain
    assert size(DynamicInterface(2, width, reads, writes, masked_content=True)) == plain + (reads + writes) * width
    assert size(DynamicInterface(2, width, reads, writes, link_sharpening=True)) == plain + reads * 2 * writes


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 4), st.integers(0, 3))
def test_size_of_the_static_interface(width, reads, writes, shift_range):
    heads = reads + writes
    plain = heads * (width + 1 + 1 + (2 * shift_range + 1) + 1) + 2 * writes * width
    assert size(StaticInterface(2, width, reads, writes, shift_range)) == plain
    masked = StaticInterface(2, width, reads, writes, shift_range, masked_content=True)
    assert size(masked) == plain + heads * width


def identity(interface: Interface) -> Interface:
    """The interface with its Linear made to hand its input through."""
    count = size(interface)
    interface.linear = torch.nn.Linear(count, count, dtype=torch.float64)
    with torch.no_grad():
        interface.linear.weight.copy_(torch.eye(count))
        interface.linear.bias.zero_()
    return interface


@pytest.mark.parametrize("options", [{}, {"masked_content": True, "link_sharpening": True, "squash": "tanh"}])
def test_dynamic_parts_come_in_the_order_of_the_paper(options):
    width, reads, writes = 3, 2, 2
    interface = identity(DynamicInterface(1, width, reads, writes, **options))
    vector = torch.linspace(-3, 3, size(interface), dtype=torch.float64).expand(2, -1)
    heads, position = interface(vector), 0
    squash = torch.tanh if options else (lambda raw: raw)
    order = [
        ("read_keys", (reads, width), squash),
        ("read_strengths", (reads,), oneplus),
        ("write_keys", (writes, width), squash),
        ("write_strengths", (writes,), oneplus),
        ("erase", (writes, width), torch.sigmoid),
        ("add", (writes, width), squash),
        ("free_gates", (reads,), torch.sigmoid),
        ("allocation_gates", (writes,), torch.sigmoid),
        ("write_gates", (writes,), torch.sigmoid),
        ("read_modes", (reads, 1 + 2 * writes), lambda raw: torch.softmax(raw, -1)),
    ]
    if options:
        order += [
            ("read_mask", (reads, width), lambda raw: MASK_MIN + (1 - MASK_MIN) * torch.sigmoid(raw)),
            ("write_mask", (writes, width), lambda raw: MASK_MIN + (1 - MASK_MIN) * torch.sigmoid(raw)),
            ("link_powers", (reads, 2 * writes), oneplus),
        ]
    for name, shape, function in order:
        length = torch.Size(shape).numel()
        raw = vector[:, position : position + length].reshape(2, *shape)
        torch.testing.assert_close(getattr(heads, name), function(raw))
        position += length
    assert position == vector.shape[1]
    assert [name for name, value in heads._asdict().items() if value is not None] == [name for name, *_ in order]


@pytest.mark.parametrize("masked", [False, True])
def test_static_parts(masked):
    width, reads, writes = 3, 2, 2
    interface = identity(StaticInterface(1, width, reads, writes, 1, masked_content=masked))
    vector = torch.linspace(-3, 3, size(interface), dtype=torch.float64).expand(2, -1)
    heads, position, count = interface(vector), 0, reads + writes
    order = [
        ("keys", (count, width), torch.tanh),
        ("strengths", (count,), functional.softplus),
        ("gate", (count,), torch.sigmoid),
        ("shift", (count, 3), lambda raw: torch.softmax(raw, -1)),
        ("sharpness", (count,), oneplus),
        ("erase", (writes, width), torch.sigmoid),
        ("add", (writes, width), torch.tanh),
    ]
    if masked:
        order.append(("mask", (count, width), lambda raw: MASK_MIN + (1 - MASK_MIN) * torch.sigmoid(raw)))
    for name, shape, function in order:
        length = torch.Size(shape).numel()
        raw = vector[:, position : position + length].reshape(2, *shape)
        torch.testing.assert_close(getattr(heads, name), function(raw))
        position += length
    assert position == vector.shape[1]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from([0.0, 1.0, 30.0, 1e4]), st.sampled_from([torch.float32, torch.float64]))
def test_ranges_hold_at_any_interface_vector(seed, scale, dtype):
    generator = torch.Generator().manual_seed(seed)
    for interface in (
        StaticInterface(4, 3, 2, 2, 1, masked_content=True),
        DynamicInterface(4, 3, 2, 2, squash="tanh", masked_content=True, link_sharpening=True),
    ):
        interface.to(dtype)
        heads = interface((torch.randn(5, 4, generator=generator) * scale).to(dtype))
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
        interface = StaticInterface(8, 3, 1, 1, 1, head_init=init)
        heads.append(interface(torch.zeros(1, 8)))
    parked, uniform = heads
    assert (parked.gate < uniform.gate).all() and parked.gate.max() < 0.2
    assert (parked.sharpness > uniform.sharpness).all() and parked.sharpness.min() > 2.5
    with pytest.raises(ValueError, match="head_init: got 'parking'; allowed: parked, uniform"):
        StaticInterface(8, 3, 1, 1, 1, head_init="parking")
