"""Every equation against a loop in float64, its gradient against finite differences, and what must always hold."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import addressing_loops as loops
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from papertape.core import addressing

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}
dtypes = st.sampled_from([torch.float32, torch.float64])
seeds = st.integers(0, 2**31)
sizes = st.integers(1, 9)
heads = st.integers(1, 3)
scales = st.sampled_from([0.0, 1e-6, 1e-2, 1.0, 30.0, 1e4])
"""Of the logits of random weightings and gates: 0 gives uniform weightings, 1e4 exactly one-hot ones and shut gates."""
some = settings(max_examples=40, deadline=None)


class Draw:
    """Random arguments of the equations, from one seed, in one floating-point type."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=self.generator, dtype=torch.float64) * scale).to(self.dtype)

    def gate(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.sigmoid(self.normal(*shape, scale=scale))

    def weighting(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.softmax(self.normal(*shape, scale=scale), dim=-1)

    def partial(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Weightings that sum to at most 1, as the DNC's are."""
        return self.gate(*shape[:-1], 1, scale=scale) * self.weighting(*shape, scale=scale)

    def links(self, batch: int, heads: int, slots: int) -> tuple[Tensor, Tensor]:
        """Links and precedence after a few random writes."""
        link = torch.zeros(batch, heads, slots, slots, dtype=self.dtype)
        precedence = torch.zeros(batch, heads, slots, dtype=self.dtype)
        for _ in range(4):
            weights = self.partial(batch, heads, slots, scale=2.0)
            link = addressing.link(link, precedence, weights)
            precedence = addressing.precedence(precedence, weights)
        return link, precedence


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def finite_with_gradients(function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    """The result, after checking that it and the gradients of a random (not uniform) mix of it are finite."""
    inputs = leaves(*arguments)
    result = function(*inputs)
    assert torch.isfinite(result).all()
    upstream = torch.randn(result.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradients = torch.autograd.grad(result, inputs, upstream.to(result.dtype), allow_unused=True)
    for gradient in gradients:
        assert gradient is None or torch.isfinite(gradient).all()
    return result.detach()


def assert_weighting(weights: Tensor, total: float | None = None) -> None:
    """Not negative, and sums to the total, or to at most 1."""
    tolerance = TOLERANCE[weights.dtype]
    sums = weights.sum(-1)
    assert weights.min() >= -tolerance
    if total is None:
        assert sums.max() <= 1 + tolerance
    else:
        torch.testing.assert_close(sums, torch.full_like(sums, total), rtol=0, atol=tolerance)


def one_hot(slot: int, slots: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """``[1, 1, N]``."""
    return torch.eye(slots, dtype=dtype)[slot].expand(1, 1, slots)


def by_row(function: Callable[..., np.ndarray], *arguments: Tensor) -> Tensor:
    """Apply a loop to each entry of the first dimension."""
    rows = zip(*(argument.double().numpy() for argument in arguments), strict=True)
    return torch.from_numpy(np.stack([function(*row) for row in rows]))


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal to a float64 result up to the rounding of the actual type."""
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-9}[actual.dtype]
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


# ---- each equation against its loop ------------------------------------------------------------------------------


@some
@given(seeds, dtypes, sizes, sizes, heads, scales, st.booleans())
def test_content_equals_loop(seed, dtype, slots, width, count, scale, masked):
    draw = Draw(seed, dtype)
    memory, keys = draw.normal(2, slots, width, scale=min(scale, 30.0)), draw.normal(2, count, width)
    strengths = 3 * draw.normal(2, count).abs()
    mask = draw.gate(2, count, width) if masked else torch.ones(2, count, width, dtype=dtype)
    expected = by_row(
        lambda m, ks, ss, qs: np.stack([loops.content(m, k, s, q) for k, s, q in zip(ks, ss, qs, strict=True)]),
        *(memory, keys, strengths, mask),
    )
    assert_same(addressing.content_weights(memory, keys, strengths, mask if masked else None), expected)


@some
@given(seeds, dtypes, sizes, heads, st.integers(0, 4), st.sampled_from([0.0, 1.0, 30.0]), st.floats(1, 100))
def test_location_equals_loop(seed, dtype, slots, count, shift_range, scale, sharpest):
    draw = Draw(seed, dtype)
    content, previous = draw.weighting(2, count, slots), draw.weighting(2, count, slots)
    gate, shift = draw.gate(2, count, scale=scale), draw.weighting(2, count, 2 * shift_range + 1, scale=min(scale, 3))
    sharpness = 1 + (sharpest - 1) * draw.gate(2, count)
    expected = by_row(
        lambda *rows: np.stack([loops.location(*head) for head in zip(*rows, strict=True)]),
        *(content, previous, gate, shift, sharpness),
    )
    actual = addressing.location_weights(content, previous, gate, shift, sharpness)
    # A power multiplies the relative rounding error of what it is applied to.
    tolerance = (1e-6 if dtype == torch.float32 else 1e-12) * 4 * sharpest
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


@some
@given(seeds, dtypes, sizes, heads, heads, scales)
def test_usage_equals_loop(seed, dtype, slots, reads, writes, scale):
    draw = Draw(seed, dtype)
    previous, written = draw.gate(2, slots, scale=scale), draw.partial(2, writes, slots, scale=scale)
    free, read = draw.gate(2, reads, scale=scale), draw.partial(2, reads, slots, scale=scale)
    assert_same(addressing.write_union(written), by_row(loops.union, written))
    assert_same(addressing.retention(free, read), by_row(loops.retention, free, read))
    used = addressing.usage(previous, written, free, read)
    assert_same(used, by_row(loops.usage, previous, written, free, read))
    assert used.min() >= -TOLERANCE[dtype] and used.max() <= 1 + TOLERANCE[dtype]


usages = st.lists(
    st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.0, 1.0, 0.5, 1e-30, 1e-7, 1e-6, 1 - 1e-6, 1 - 6e-8])),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(usages, dtypes, st.lists(st.sampled_from([0.0, 1e-3, 0.5, 1.0]), min_size=1, max_size=3))
def test_allocation_equals_loop_under_ties_and_extremes(values, dtype, gates):
    used, gates = torch.tensor([values], dtype=dtype), torch.tensor([gates], dtype=dtype)
    if len(gates[0]) > 1:
        # Rounding decides which of two slots equally used after the first head comes first; keep them apart.
        used = (used * 0.5 + torch.linspace(0.01, 0.4, len(values), dtype=dtype)).clamp(0, 1)
    result = finite_with_gradients(addressing.allocation_weights, used, gates)
    # Usages that round to the same number after scaling are ties for the loop too.
    epsilon = addressing.USAGE_EPSILON
    rounded = (((1 - epsilon) * used + epsilon).double() - epsilon) / (1 - epsilon)
    assert_same(result, by_row(loops.allocations, rounded, gates))
    assert_weighting(result)
    scaled = (1 - addressing.USAGE_EPSILON) * used.double() + addressing.USAGE_EPSILON
    torch.testing.assert_close(result[:, 0].double().sum(-1), 1 - scaled.prod(-1), rtol=0, atol=1e-5)


@some
@given(seeds, dtypes, sizes, heads, heads)
def test_links_equal_loops(seed, dtype, slots, reads, writes):
    draw = Draw(seed, dtype)
    link, precedence = draw.links(2, writes, slots)
    weights, read = draw.partial(2, writes, slots), draw.partial(2, reads, slots)

    def each_head(function):
        return lambda *rows: np.stack([function(*head) for head in zip(*rows, strict=True)])

    def each_pair(function):
        return lambda ls, ws: np.stack([np.stack([function(matrix, w) for matrix in ls]) for w in ws])

    assert_same(addressing.link(link, precedence, weights), by_row(each_head(loops.link), link, precedence, weights))
    assert_same(addressing.precedence(precedence, weights), by_row(each_head(loops.precedence), precedence, weights))
    for forward, loop in ((True, loops.forward), (False, loops.backward)):
        followed = addressing.directional_weights(link, read, forward=forward)
        assert followed.shape == (2, reads, writes, slots)
        assert_same(followed, by_row(each_pair(loop), link, read))
    power = 1 + draw.normal(2, reads).abs()
    followed = addressing.directional_weights(link, read, forward=True)[:, :, 0]
    assert_same(
        addressing.sharpen_links(followed, power), by_row(each_head(loops.sharpen_links), followed.clamp(min=0), power)
    )


@some
@given(seeds, dtypes, sizes, sizes, heads, scales)
def test_write_and_read_equal_loops(seed, dtype, slots, width, count, scale):
    draw = Draw(seed, dtype)
    memory, weights = draw.normal(2, slots, width), draw.partial(2, count, slots, scale=scale)
    erase, add = draw.gate(2, count, width, scale=scale), draw.normal(2, count, width)
    assert_same(addressing.write(memory, weights, erase, add), by_row(loops.write, memory, weights, erase, add))
    expected = by_row(lambda m, ws: np.stack([loops.read(m, w) for w in ws]), memory, weights)
    assert_same(addressing.read(memory, weights), expected)


# ---- all equations: gradients, types, layouts, mapping -----------------------------------------------------------


def cases(dtype: torch.dtype = torch.float64) -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    """Each public function with ordinary arguments: batch 2, 5 slots, words of 3, 2 heads."""
    draw = Draw(7, dtype)
    link, precedence = draw.links(2, 2, 5)
    memory, keys, strengths = draw.normal(2, 5, 3), draw.normal(2, 2, 3), draw.normal(2, 2).abs() * 3
    weights, partial = draw.weighting(2, 2, 5), draw.partial(2, 2, 5)
    gates, used, mask = draw.gate(2, 2), draw.gate(2, 5), draw.gate(2, 2, 3)
    shift, power = draw.weighting(2, 2, 3), 1 + draw.normal(2, 2).abs()
    return {
        "cosine_similarity": (addressing.cosine_similarity, [memory, keys]),
        "content_weights": (addressing.content_weights, [memory, keys, strengths]),
        "content_weights masked": (addressing.content_weights, [memory, keys, strengths, mask]),
        "sharpen": (addressing.sharpen, [weights, power]),
        "shift_weights": (addressing.shift_weights, [weights, shift]),
        "location_weights": (addressing.location_weights, [draw.weighting(2, 2, 5), weights, gates, shift, power]),
        "write_union": (addressing.write_union, [partial]),
        "retention": (addressing.retention, [gates, partial]),
        "usage": (addressing.usage, [used, partial, gates, weights]),
        "allocation_weights": (addressing.allocation_weights, [used, gates]),
        "link": (addressing.link, [link, precedence, partial]),
        "precedence": (addressing.precedence, [precedence, partial]),
        "directional_weights forward": (lambda *a: addressing.directional_weights(*a, forward=True), [link, partial]),
        "directional_weights backward": (lambda *a: addressing.directional_weights(*a, forward=False), [link, partial]),
        "sharpen_links": (addressing.sharpen_links, [partial, power]),
        "write": (addressing.write, [memory, partial, mask, keys]),
        "read": (addressing.read, [memory, partial]),
    }


def each(loop: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """A loop for one head, for several."""
    return lambda *heads: np.stack([loop(*head) for head in zip(*heads, strict=True)])


def each_key(loop: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """A loop for one key or weighting in a memory, for several."""
    return lambda memory, *heads: np.stack([loop(memory, *head) for head in zip(*heads, strict=True)])


def each_read_and_link(loop: Callable[..., Any]) -> Callable[..., np.ndarray]:
    return lambda links, reads: np.stack([[loop(link, read) for link in links] for read in reads])


LOOPS: dict[str, Callable[..., np.ndarray]] = {
    "cosine_similarity": each_key(lambda memory, key: [loops.cosine(key, word) for word in memory]),
    "content_weights": each_key(loops.content),
    "content_weights masked": each_key(loops.content),
    "sharpen": each(loops.sharpen),
    "shift_weights": each(loops.shift),
    "location_weights": each(loops.location),
    "write_union": loops.union,
    "retention": loops.retention,
    "usage": loops.usage,
    "allocation_weights": loops.allocations,
    "link": each(loops.link),
    "precedence": each(loops.precedence),
    "directional_weights forward": each_read_and_link(loops.forward),
    "directional_weights backward": each_read_and_link(loops.backward),
    "sharpen_links": each(loops.sharpen_links),
    "write": loops.write,
    "read": each_key(loops.read),
}


each_case = pytest.mark.parametrize("name", cases())


def test_every_public_function_has_a_case():
    public = {
        name
        for name, value in vars(addressing).items()
        if callable(value) and getattr(value, "__module__", "") == addressing.__name__
    }
    assert public == {name.split()[0] for name in cases()}


@each_case
def test_every_public_function_equals_its_loop(name):
    for dtype in (torch.float32, torch.float64):
        function, arguments = cases(dtype)[name]
        assert_same(function(*arguments), by_row(LOOPS[name], *arguments))


@each_case
def test_gradients_agree_with_finite_differences(name):
    function, arguments = cases()[name]
    # The full Jacobian: every output alone, so that a constraint on their sum hides nothing.
    assert torch.autograd.gradcheck(function, leaves(*arguments))


@each_case
def test_float32_agrees_with_float64(name):
    results = []
    for dtype in (torch.float32, torch.float64):
        function, arguments = cases(dtype)[name]
        inputs = leaves(*arguments)
        result = function(*inputs)
        assert result.dtype == dtype
        upstream = Draw(1, dtype).normal(*result.shape)
        results.append([result, *torch.autograd.grad(result, inputs, upstream, allow_unused=True)])
    for single, double in zip(*results, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)


@each_case
def test_layout_of_arguments_does_not_matter(name):
    function, arguments = cases()[name]
    scattered = [torch.stack([argument, argument], dim=-1)[..., 0] for argument in arguments]
    assert not any(argument.is_contiguous() for argument in scattered)
    torch.testing.assert_close(function(*scattered), function(*arguments))


@each_case
def test_maps_over_a_population(name):
    function, arguments = cases()[name]
    stacked = [torch.stack([argument, argument.flip(0)]) for argument in arguments]
    mapped = torch.func.vmap(function)(*stacked)
    for member in range(2):
        torch.testing.assert_close(mapped[member], function(*(argument[member] for argument in stacked)))


@each_case
def test_rows_of_a_batch_are_independent(name):
    function, arguments = cases()[name]
    together = function(*arguments)
    for row in range(2):
        torch.testing.assert_close(together[row : row + 1], function(*(part[row : row + 1] for part in arguments)))


# ---- lookup by content -------------------------------------------------------------------------------------------


@some
@given(seeds, dtypes, sizes, sizes, scales, scales, st.sampled_from([0.0, 1.0, 1e3, 1e8]), st.booleans())
def test_content_always_a_weighting(seed, dtype, slots, width, key_scale, memory_scale, strength, masked):
    draw = Draw(seed, dtype)
    arguments = [
        draw.normal(2, slots, width, scale=memory_scale),
        draw.normal(2, 2, width, scale=key_scale),
        torch.full((2, 2), strength, dtype=dtype),
        *([0.1 + 0.9 * draw.gate(2, 2, width, scale=key_scale)] if masked else []),
    ]
    assert_weighting(finite_with_gradients(addressing.content_weights, *arguments), total=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_empty_keys_and_slots_are_finite_and_alike(dtype):
    draw = Draw(0, dtype)
    memory, keys, strengths = draw.normal(1, 4, 3), draw.normal(1, 2, 3), torch.full((1, 2), 1e4, dtype=dtype)
    memory[:, 2] = 0
    assert addressing.cosine_similarity(memory, keys)[0, :, 2].tolist() == [0, 0]
    assert addressing.cosine_similarity(memory, torch.zeros_like(keys)).abs().max() == 0
    for lookup in ((memory, 0 * keys), (0 * memory, keys), (0 * memory, 0 * keys)):
        weights = finite_with_gradients(addressing.content_weights, *lookup, strengths)
        torch.testing.assert_close(weights, torch.full_like(weights, 0.25))


@some
@given(seeds, dtypes, st.integers(2, 9), st.integers(2, 9))
def test_exact_key_with_large_strength_is_one_hot(seed, dtype, slots, width):
    draw = Draw(seed, dtype)
    # Distinct directions around a circle, at random lengths.
    angles = torch.arange(slots, dtype=torch.float64) * (2 * torch.pi / slots)
    memory = torch.zeros(1, slots, width, dtype=dtype)
    memory[0, :, 0], memory[0, :, 1] = angles.cos().to(dtype), angles.sin().to(dtype)
    memory = memory * (0.5 + draw.gate(1, slots, 1))
    weights = addressing.content_weights(memory, memory, torch.full((1, slots), 1e4, dtype=dtype))
    torch.testing.assert_close(weights[0], torch.eye(slots, dtype=dtype))


def test_strength_zero_looks_everywhere():
    draw = Draw(0)
    weights = addressing.content_weights(draw.normal(1, 5, 3), draw.normal(1, 1, 3), torch.zeros(1, 1))
    torch.testing.assert_close(weights, torch.full_like(weights, 0.2))


def test_mask_hides_elements():
    draw = Draw(0)
    memory, keys, strengths = draw.normal(1, 4, 3), draw.normal(1, 2, 3), draw.normal(1, 2).abs()
    ones = torch.ones_like(keys)
    torch.testing.assert_close(
        addressing.content_weights(memory, keys, strengths, ones), addressing.content_weights(memory, keys, strengths)
    )
    hidden = ones.clone()
    hidden[..., 1] = 0
    torch.testing.assert_close(
        addressing.content_weights(memory, keys, strengths, hidden),
        addressing.content_weights(memory[..., [0, 2]], keys[..., [0, 2]], strengths),
    )


# ---- NTM location ------------------------------------------------------------------------------------------------


@some
@given(seeds, dtypes, st.integers(1, 200), scales, st.sampled_from([1.0, 1.5, 20.0, 25.0, 100.0]))
def test_sharpening_is_finite_at_every_sharpness(seed, dtype, slots, scale, power):
    weights = Draw(seed, dtype).weighting(2, slots, scale=scale)
    sharp = finite_with_gradients(addressing.sharpen, weights, torch.full((2,), power, dtype=dtype))
    assert_weighting(sharp, total=1)
    top = weights.argmax(-1, keepdim=True)
    assert (sharp.gather(-1, top) >= weights.gather(-1, top) - TOLERANCE[dtype]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("power", [1.0, 21.0, 100.0])
def test_sharpening_equal_weights_and_zeros(dtype, power):
    powers = torch.tensor([power], dtype=dtype)
    # 128 equal weights: w ** 21 is 0 in float32, and the quotient of powers 0/0.
    equal = torch.full((1, 128), 1 / 128, dtype=dtype)
    torch.testing.assert_close(finite_with_gradients(addressing.sharpen, equal, powers), equal)
    single = one_hot(3, 128, dtype)[0]
    torch.testing.assert_close(finite_with_gradients(addressing.sharpen, single, powers), single)
    pair = (one_hot(3, 128, dtype) + one_hot(4, 128, dtype))[0] / 2
    torch.testing.assert_close(finite_with_gradients(addressing.sharpen, pair, powers), pair)
    # Nothing at all is not a weighting, but must not poison a run either.
    torch.testing.assert_close(finite_with_gradients(addressing.sharpen, 0 * equal, powers), equal)


def test_sharpening_is_equation_9_at_every_power():
    """Also where published code, with 1e-16 in the denominator, gives weightings that sum to far less than 1."""
    draw = Draw(3)
    for slots, power in itertools.product((2, 16, 128, 1024), (1.0, 1.5, 5.0, 9.0, 30.0, 100.0)):
        for scale in (0.0, 1.0, 10.0):
            weights = draw.weighting(3, slots, scale=scale)
            weights[1] = torch.where(draw.gate(slots) < 0.4, 0, weights[1])
            weights[1] /= weights[1].sum()
            found = addressing.sharpen(weights, torch.full((3,), power, dtype=torch.float64))
            expected = np.stack([loops.sharpen(row, power) for row in weights.numpy()])
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=slots * 1e-16)


def test_power_one_changes_nothing():
    weights = Draw(0).weighting(3, 7)
    torch.testing.assert_close(addressing.sharpen(weights, torch.ones(3)), weights, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shift_range", [0, 1, 2, 5])
def test_first_shift_is_the_most_negative(shift_range):
    slots, start = 4, 1
    for index in range(2 * shift_range + 1):
        shifted = addressing.shift_weights(one_hot(start, slots), one_hot(index, 2 * shift_range + 1))
        torch.testing.assert_close(shifted, one_hot((start + index - shift_range) % slots, slots))


@some
@given(seeds, dtypes, st.integers(1, 40), st.integers(0, 3), scales, st.floats(1, 100))
def test_location_is_always_a_weighting(seed, dtype, slots, shift_range, scale, sharpness):
    draw = Draw(seed, dtype)
    result = finite_with_gradients(
        addressing.location_weights,
        draw.weighting(2, 2, slots, scale=scale),
        draw.weighting(2, 2, slots, scale=scale),
        draw.gate(2, 2, scale=scale),
        draw.weighting(2, 2, 2 * shift_range + 1, scale=scale),
        torch.full((2, 2), sharpness, dtype=dtype),
    )
    assert_weighting(result, total=1)


def test_gate_chooses_between_content_and_last_position():
    draw = Draw(0)
    content, previous = draw.weighting(1, 2, 5), draw.weighting(1, 2, 5)
    still, power = one_hot(1, 3).expand(1, 2, 3), torch.ones(1, 2)
    for gate, expected in ((torch.ones(1, 2), content), (torch.zeros(1, 2), previous)):
        torch.testing.assert_close(addressing.location_weights(content, previous, gate, still, power), expected)


# ---- usage and allocation ----------------------------------------------------------------------------------------


@some
@given(st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 3), min_size=1, max_size=40), dtypes)
def test_usage_stays_between_0_and_1(rows, dtype):
    previous, written, read = torch.tensor(rows, dtype=dtype).unbind(-1)
    used = addressing.usage(
        previous[:, None], written[:, None, None], torch.ones_like(read)[:, None], read[:, None, None]
    )
    assert used.min() >= 0 and used.max() <= 1


@settings(max_examples=20, deadline=None)
@given(seeds, dtypes, st.integers(1, 6), heads, heads, scales)
def test_usage_over_many_steps(seed, dtype, slots, reads, writes, scale):
    draw, used = Draw(seed, dtype), torch.zeros(2, slots, dtype=dtype)
    for _ in range(10):
        used = finite_with_gradients(
            addressing.usage,
            used,
            draw.partial(2, writes, slots, scale=scale),
            draw.gate(2, reads, scale=scale),
            draw.partial(2, reads, slots, scale=scale),
        )
        assert used.min() >= -TOLERANCE[dtype] and used.max() <= 1 + TOLERANCE[dtype]
        assert_weighting(finite_with_gradients(addressing.allocation_weights, used, draw.gate(2, writes, scale=scale)))


def test_full_write_uses_a_slot_and_full_read_frees_it():
    previous, nothing = Draw(0).gate(1, 4), torch.zeros(1, 1, 4)
    written = addressing.usage(previous, one_hot(2, 4), torch.ones(1, 1), nothing)
    torch.testing.assert_close(written[0, 2].item(), 1.0)
    freed = addressing.usage(torch.ones(1, 4), nothing, torch.ones(1, 1), one_hot(2, 4))
    assert freed[0].tolist() == [1, 1, 0, 1]
    kept = addressing.usage(previous, nothing, torch.zeros(1, 1), one_hot(2, 4))
    assert torch.equal(kept, previous)


def test_the_last_write_is_freed_by_reading_it():
    # u = (u + w - u w) ψ: the write counts before the freeing.
    used = addressing.usage(torch.zeros(1, 3), one_hot(0, 3), torch.ones(1, 1), one_hot(0, 3))
    assert used.abs().max() == 0


@some
@given(seeds, dtypes, st.integers(2, 30))
def test_least_used_slot_comes_first(seed, dtype, slots):
    used = Draw(seed, dtype).gate(1, slots, scale=2.0)
    allocation = addressing.allocation_weights(used, torch.ones(1, 1, dtype=dtype))[0, 0]
    in_order = allocation[used[0].argsort(stable=True)]
    assert (in_order.diff() <= TOLERANCE[dtype]).all()
    assert in_order[0] == allocation.max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("slots", [1, 2, 300])
def test_full_and_fresh_memory(dtype, slots):
    gates = torch.ones(1, 2, dtype=dtype)
    full = finite_with_gradients(addressing.allocation_weights, torch.ones(1, slots, dtype=dtype), gates)
    assert full.abs().max() <= 1e-6
    fresh = finite_with_gradients(addressing.allocation_weights, torch.zeros(1, slots, dtype=dtype), gates)
    torch.testing.assert_close(fresh[0, 0].sum().item(), 1.0, rtol=0, atol=2e-6)
    # The first slot in order is taken whole.
    assert fresh[0, 0, 0] == fresh.max() and fresh[0, 0, 0] > 0.99999


@pytest.mark.parametrize("empty", [1, 2, 64])
def test_gradient_of_allocation_keeps_its_digits_for_empty_slots(empty):
    """The gradient of an empty slot is a sum of small numbers; taking the sum over all and subtracting the large
    one of the slot itself left float32 with an error of 4 % to 150 %."""
    gradients = []
    for dtype in (torch.float32, torch.float64):
        draw = Draw(0, dtype)
        used = torch.cat([torch.zeros(1, empty, dtype=dtype), draw.gate(1, 64 - empty)], dim=-1).requires_grad_()
        allocation = addressing.allocation_weights(used, torch.ones(1, 1, dtype=dtype))
        gradients.append(torch.autograd.grad(allocation, used, draw.normal(1, 1, 64))[0].double())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def test_gates_do_not_matter_to_a_single_head():
    used = Draw(0).gate(2, 5)
    allocations = [addressing.allocation_weights(used, torch.full((2, 1), gate)) for gate in (0.0, 0.3, 1.0)]
    assert torch.equal(allocations[0], allocations[1]) and torch.equal(allocations[0], allocations[2])


def test_later_heads_see_what_earlier_ones_took():
    used = torch.tensor([[0.9, 0.0, 0.5, 0.0, 0.8]], dtype=torch.float64)
    before = used.clone()
    allocations = addressing.allocation_weights(used, torch.tensor([[1.0, 0.0, 1.0]]))
    # The first takes slot 1; the second takes slot 3 but its gate is shut, so that the third is offered it again.
    assert allocations[0].argmax(-1).tolist() == [1, 3, 3]
    assert torch.equal(used, before), "allocation must not touch the usage that is carried on"


# ---- temporal links ----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seeds, dtypes, st.integers(1, 8), heads, scales)
def test_links_stay_weightings_over_many_writes(seed, dtype, slots, writes, scale):
    draw = Draw(seed, dtype)
    link = torch.zeros(2, writes, slots, slots, dtype=dtype)
    precedence = torch.zeros(2, writes, slots, dtype=dtype)
    for _ in range(20):
        weights = draw.partial(2, writes, slots, scale=scale)
        link = finite_with_gradients(addressing.link, link, precedence, weights)
        precedence = finite_with_gradients(addressing.precedence, precedence, weights)
        assert link.diagonal(dim1=-2, dim2=-1).abs().max() == 0
        assert_weighting(link)
        assert_weighting(link.transpose(-1, -2))
        assert_weighting(precedence)
    read = draw.partial(2, 2, slots, scale=scale)
    for forward in (True, False):
        followed = addressing.directional_weights(link, read, forward=forward)
        assert_weighting(followed)
        powers = 1 + draw.normal(2, 2, writes, scale=10.0).abs()
        assert_weighting(finite_with_gradients(addressing.sharpen_links, followed, powers))


@some
@given(st.permutations(range(6)), dtypes)
def test_links_follow_the_order_of_writes(order, dtype):
    slots = len(order)
    link, precedence = torch.zeros(1, 1, slots, slots, dtype=dtype), torch.zeros(1, 1, slots, dtype=dtype)
    for slot in order:
        weights = one_hot(slot, slots, dtype)
        link, precedence = addressing.link(link, precedence, weights), addressing.precedence(precedence, weights)
    for before, after in itertools.pairwise(order):
        forward = addressing.directional_weights(link, one_hot(before, slots, dtype), forward=True)
        backward = addressing.directional_weights(link, one_hot(after, slots, dtype), forward=False)
        assert torch.equal(forward[:, :, 0], one_hot(after, slots, dtype))
        assert torch.equal(backward[:, :, 0], one_hot(before, slots, dtype))
    assert addressing.directional_weights(link, one_hot(order[-1], slots, dtype), forward=True).abs().max() == 0
    assert addressing.directional_weights(link, one_hot(order[0], slots, dtype), forward=False).abs().max() == 0


def test_rewriting_a_slot_moves_it_to_the_end_of_the_chain():
    link, precedence = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4)
    for slot in (0, 1, 2, 0):
        weights = one_hot(slot, 4, torch.float32)
        link, precedence = addressing.link(link, precedence, weights), addressing.precedence(precedence, weights)
    after = addressing.directional_weights(link, one_hot(2, 4, torch.float32), forward=True)
    assert after[0, 0, 0].tolist() == [1, 0, 0, 0]
    assert addressing.directional_weights(link, one_hot(0, 4, torch.float32), forward=True).abs().max() == 0


def test_no_write_changes_no_link():
    draw = Draw(0)
    link, precedence = draw.links(2, 2, 5)
    nothing = torch.zeros(2, 2, 5, dtype=torch.float64)
    assert torch.equal(addressing.link(link, precedence, nothing), link)
    assert torch.equal(addressing.precedence(precedence, nothing), precedence)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sharpened_links(dtype):
    power = torch.tensor([3.0], dtype=dtype)
    empty = finite_with_gradients(addressing.sharpen_links, torch.zeros(1, 5, dtype=dtype), power)
    assert empty.abs().max() == 0
    faint = finite_with_gradients(addressing.sharpen_links, one_hot(2, 5, dtype)[0] * 0.01, power)
    torch.testing.assert_close(faint, one_hot(2, 5, dtype)[0], rtol=0, atol=2e-4)
    # Two write weights that sum to 1 + 1e-7 leave a link of -1e-8, whose logarithm was not a number.
    below_zero = torch.tensor([[-1e-8, 0.25, 0.75]], dtype=dtype)
    assert_weighting(finite_with_gradients(addressing.sharpen_links, below_zero, power), total=1 / (1 + 1e-6))


# ---- writing and reading -----------------------------------------------------------------------------------------


def test_writes_that_change_nothing():
    draw = Draw(0)
    memory, weights = draw.normal(2, 5, 3), draw.weighting(2, 2, 5)
    erase, add = draw.gate(2, 2, 3), draw.normal(2, 2, 3)
    assert torch.equal(addressing.write(memory, 0 * weights, erase, add), memory)
    assert torch.equal(addressing.write(memory, weights, 0 * erase, 0 * add), memory)


def test_full_write_replaces_a_word_and_reading_returns_it():
    draw = Draw(0)
    memory, word = draw.normal(1, 4, 3), draw.normal(1, 1, 3)
    written = addressing.write(memory, one_hot(2, 4), torch.ones(1, 1, 3), word)
    assert torch.equal(written[:, 2:3], word)
    assert torch.equal(written[:, [0, 1, 3]], memory[:, [0, 1, 3]])
    assert torch.equal(addressing.read(written, one_hot(2, 4)), word)


def test_all_heads_erase_before_any_adds():
    word = torch.ones(1, 2, 3)
    weights = torch.ones(1, 2, 1) * one_hot(0, 2, torch.float32)
    written = addressing.write(torch.full((1, 2, 3), 5.0), weights, torch.ones(1, 2, 3), word)
    assert written[0].tolist() == [[2, 2, 2], [5, 5, 5]]


# ---- slots are interchangeable -----------------------------------------------------------------------------------


@some
@given(seeds, dtypes, st.integers(2, 8), heads)
def test_permuting_slots_permutes_every_result(seed, dtype, slots, count):
    draw = Draw(seed, dtype)
    order = torch.randperm(slots, generator=draw.generator)
    memory, keys, strengths = draw.normal(2, slots, 3), draw.normal(2, count, 3), draw.normal(2, count).abs()
    weights, read = draw.partial(2, count, slots), draw.partial(2, count, slots)
    used, gates = draw.gate(2, slots), draw.gate(2, count)
    link, precedence = draw.links(2, count, slots)
    permuted = link[..., order, :][..., order]
    near: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    pairs = [
        (addressing.content_weights(memory[:, order], keys, strengths),
         addressing.content_weights(memory, keys, strengths)[..., order]),
        (addressing.usage(used[:, order], weights[..., order], gates, read[..., order]),
         addressing.usage(used, weights, gates, read)[:, order]),
        (addressing.allocation_weights(used[:, order], gates),
         addressing.allocation_weights(used, gates)[..., order]),
        (addressing.link(permuted, precedence[..., order], weights[..., order]),
         addressing.link(link, precedence, weights)[..., order, :][..., order]),
        (addressing.precedence(precedence[..., order], weights[..., order]),
         addressing.precedence(precedence, weights)[..., order]),
        (addressing.directional_weights(permuted, read[..., order], forward=True),
         addressing.directional_weights(link, read, forward=True)[..., order]),
        (addressing.directional_weights(permuted, read[..., order], forward=False),
         addressing.directional_weights(link, read, forward=False)[..., order]),
        (addressing.write(memory[:, order], weights[..., order], keys.sigmoid(), keys),
         addressing.write(memory, weights, keys.sigmoid(), keys)[:, order]),
        (addressing.read(memory[:, order], read[..., order]), addressing.read(memory, read)),
    ]  # fmt: skip
    for result, expected in pairs:
        torch.testing.assert_close(result, expected, **near)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_sharpening_is_finite_in_every_type(kind):
    """Also in float16, in which 1e-16 is 0."""
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=kind, requires_grad=True)
    power = torch.tensor([2.0, 100.0], dtype=kind, requires_grad=True)
    sharpened = addressing.sharpen(weights, power)
    sharpened.square().sum().backward()
    assert all(part.isfinite().all() for part in (sharpened, weights.grad, power.grad))
    assert sharpened[0, 0] > 0.99
