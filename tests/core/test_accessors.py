"""One step of access: hand-set heads that solve tasks, gates that change nothing, and interchangeable slots.

Here the accessor's Linear hands its input through, so that the test writes the interface vector itself.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from papertape.core import addressing
from papertape.core.accessors import Accessor, DynamicAccessor, DynamicState, StaticAccessor
from papertape.core.state import map_state

WIDTH = 6
OPEN, SHUT = 60.0, -60.0
"""Raw values that sigmoid, tanh and softmax take to their ends."""


def handed_through(cls: type[Accessor], *sizes: int, dtype: torch.dtype = torch.float64, **options: Any) -> Accessor:
    """An accessor whose controller's output is the interface vector."""
    options |= dict(zip(("memory_size", "word_size", "num_reads", "num_writes"), sizes, strict=True))
    accessor = cls(cls(1, **options).interface.size, **options).to(dtype)
    with torch.no_grad():
        accessor.interface.linear.weight.copy_(torch.eye(accessor.interface.size))
        accessor.interface.linear.bias.zero_()
    return accessor


def vector(accessor: Accessor, **parts: Any) -> Tensor:
    """An interface vector ``[1, size]``; parts that are not named are 0."""
    raw = {name: torch.zeros(size, dtype=torch.float64) for name, size in accessor.interface.sizes.items()}
    for name, value in parts.items():
        raw[name] = raw[name] + torch.as_tensor(value, dtype=torch.float64).reshape(-1)
    return torch.cat([raw[name] for name in accessor.interface.sizes]).unsqueeze(0)


def run(accessor: Accessor, state: Any, **parts: Any) -> tuple[Tensor, Any]:
    """One step; the words read ``[R, W]`` and the next state."""
    reads, state, _ = accessor(vector(accessor, **parts).to(accessor.interface.linear.weight.dtype), state)
    return reads[0], state


MARKER = torch.ones(WIDTH, dtype=torch.float64)


def words(count: int, seed: int = 0) -> Tensor:
    """Random words of -1 and 1, none of them the marker."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, 2, (count, WIDTH), generator=generator, dtype=torch.float64) * 2 - 1
    drawn[:, 0] = -1
    return drawn


# ---- NTM: write, shift, rewind by content, read ------------------------------------------------------------------

STAY, NEXT = [SHUT, OPEN, SHUT], [SHUT, SHUT, OPEN]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1, 5, 20, 127])
def test_ntm_copies_a_sequence_with_hand_set_heads(length, dtype):
    accessor = handed_through(StaticAccessor, 128, WIDTH, 1, 1, dtype=dtype)
    state = accessor.initial_state(1)
    copied = []
    # The read head comes first in every part. It stays while the write head writes the marker and then the words.
    for step, word in enumerate([MARKER, *words(length)]):
        _, state = run(
            accessor, state, gate=[SHUT, SHUT], shift=[STAY, NEXT if step else STAY], sharpness=OPEN,
            erase=OPEN, add=word * OPEN,
        )  # fmt: skip
    for step in range(length):
        # Rewind: find the marker by content and go one further; then keep going.
        read, state = run(
            accessor, state, keys=[*(MARKER * OPEN), *([0.0] * WIDTH)], strengths=[200.0, 0.0],
            gate=[SHUT if step else OPEN, SHUT], shift=[NEXT, STAY], sharpness=OPEN, erase=SHUT,
        )  # fmt: skip
        copied.append(read[0])
    torch.testing.assert_close(torch.stack(copied).double(), words(length), rtol=0, atol=1e-5)


# ---- DNC: allocate, follow the links forward, free ---------------------------------------------------------------

BACKWARD, CONTENT, FORWARD = torch.eye(3, dtype=torch.float64).mul(OPEN).unbind(0)


def copy_by_links(accessor: DynamicAccessor, state: DynamicState, sequence: Tensor, free: float) -> tuple[Tensor, Any]:
    """Allocate a slot for the marker and for each word; look the marker up, then follow the links."""
    for word in [MARKER, *sequence]:
        _, state = run(
            accessor, state, write_gates=OPEN, allocation_gates=OPEN, erase=OPEN, add=word, free_gates=SHUT
        )  # fmt: skip
    copied = []
    for step in range(len(sequence) + 1):
        read, state = run(
            accessor, state, write_gates=SHUT, read_keys=MARKER, read_strengths=500.0,
            read_modes=FORWARD if step else CONTENT, free_gates=free,
        )  # fmt: skip
        copied.append(read[0])
    # What was read last is freed at the next step.
    _, state = run(accessor, state, write_gates=SHUT, free_gates=free, read_modes=FORWARD)
    return torch.stack(copied), state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1, 5, 15])
def test_dnc_copies_a_sequence_by_allocation_and_links(length, dtype):
    accessor = handed_through(DynamicAccessor, 16, WIDTH, 1, 1, dtype=dtype)
    copied, state = copy_by_links(accessor, accessor.initial_state(1), words(length), free=SHUT)
    torch.testing.assert_close(copied.double(), torch.stack([MARKER, *words(length)]), rtol=0, atol=1e-3)
    assert torch.equal(copied.sign().double(), torch.stack([MARKER, *words(length)]))
    assert state.usage.sum().item() == pytest.approx(length + 1, abs=1e-3)


@pytest.mark.parametrize("wipe", [False, True])
def test_dnc_frees_what_it_has_read_and_copies_again_and_again(wipe):
    accessor = handed_through(DynamicAccessor, 5, WIDTH, 1, 1, memory_wipe=wipe)
    state = accessor.initial_state(1)
    for repeat in range(4):
        if not wipe:
            # Without the wipe the old marker is still there to be found; start from clean contents but used slots.
            state = state._replace(memory=torch.zeros_like(state.memory))
        copied, state = copy_by_links(accessor, state, words(4, seed=repeat), free=OPEN)
        assert torch.equal(copied.sign(), torch.stack([MARKER, *words(4, seed=repeat)]))
        assert state.usage.abs().max() < 1e-3, "all that was read is free again"
        assert (state.memory.abs().max() < 1e-2) == wipe


def test_dnc_reads_backward():
    accessor = handed_through(DynamicAccessor, 8, WIDTH, 1, 1)
    state, sequence = accessor.initial_state(1), words(5)
    for word in [*sequence, MARKER]:
        _, state = run(accessor, state, write_gates=OPEN, allocation_gates=OPEN, erase=OPEN, add=word, free_gates=SHUT)
    copied = []
    for step in range(6):
        read, state = run(
            accessor, state, write_gates=SHUT, read_keys=MARKER, read_strengths=500.0, free_gates=SHUT,
            read_modes=BACKWARD if step else CONTENT,
        )  # fmt: skip
        copied.append(read[0])
    assert torch.equal(torch.stack(copied).sign(), torch.stack([MARKER, *sequence.flip(0)]))


def test_full_memory_is_not_overwritten_by_allocation():
    accessor = handed_through(DynamicAccessor, 3, WIDTH, 1, 1)
    state = accessor.initial_state(1)
    for word in words(3):
        _, state = run(accessor, state, write_gates=OPEN, allocation_gates=OPEN, erase=OPEN, add=word, free_gates=SHUT)
    before = state.memory
    _, state = run(accessor, state, write_gates=OPEN, allocation_gates=OPEN, erase=OPEN, add=MARKER, free_gates=SHUT)
    torch.testing.assert_close(state.memory, before, rtol=0, atol=1e-4)


def test_two_write_heads_allocate_two_slots_and_leave_the_usage_alone():
    accessor = handed_through(DynamicAccessor, 6, WIDTH, 1, 2)
    pair = words(2)
    state = accessor.initial_state(1)
    _, after = run(accessor, state, write_gates=OPEN, allocation_gates=OPEN, erase=OPEN, add=pair, free_gates=SHUT)
    first, second = after.write_weights[0].argmax(-1).tolist()
    # The first head's allocation spills a millionth onto slot 1, so that any slot but 0 may be the least used now.
    assert first == 0 and second != 0
    torch.testing.assert_close(after.memory[0, [first, second]], pair, rtol=0, atol=1e-4)
    # Allocation works on a copy: the usage is that of the writes before this step, of which there were none.
    assert torch.equal(after.usage, state.usage)
    _, third = run(accessor, after, write_gates=SHUT, free_gates=SHUT)
    expected = addressing.usage(after.usage, after.write_weights, torch.zeros(1, 1), after.read_weights)
    torch.testing.assert_close(third.usage, expected)


# ---- what always holds -------------------------------------------------------------------------------------------

KINDS = [
    (StaticAccessor, {}),
    (StaticAccessor, {"masked_content": True, "weight_init": "uniform"}),
    (DynamicAccessor, {}),
    (DynamicAccessor, {"masked_content": True, "memory_wipe": True, "link_sharpening": True, "squash": "tanh"}),
]


def random_state(accessor: Accessor, seed: int, steps: int = 5, batch: int = 2) -> Any:
    """A state after a few random steps."""
    generator = torch.Generator().manual_seed(seed)
    state = accessor.initial_state(batch)
    for _ in range(steps):
        hidden = torch.randn(batch, accessor.hidden_size, generator=generator) * 3
        _, state, _ = accessor(hidden.to(accessor.interface.linear.weight.dtype), state)
    return map_state(torch.detach, state)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from(KINDS),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from([1e-3, 1.0, 30.0, 1e4]),
    st.integers(1, 6),
    st.integers(1, 3),
    st.integers(1, 2),
)
def test_every_state_is_sound_and_every_gradient_finite(seed, kind, dtype, scale, slots, reads, writes):
    cls, options = kind
    if options.get("link_sharpening"):
        # The slope of w^p is p / w: with powers of 1e4, a chain of faint links truly leaves the range of float32.
        scale = min(scale, 30.0)
    accessor = handed_through(cls, slots, 3, reads, writes, dtype=dtype, **options)
    generator = torch.Generator().manual_seed(seed)
    hiddens = torch.randn(8, 2, accessor.hidden_size, generator=generator).mul(scale).to(dtype).requires_grad_()
    state, total, tolerance = accessor.initial_state(2), 0.0, 5e-6 if dtype == torch.float32 else 1e-12
    for hidden in hiddens:
        reads_now, state, _ = accessor(hidden, state)
        total = total + (reads_now * torch.randn(reads_now.shape, generator=generator)).sum()
        for part in state:
            assert torch.isfinite(part).all()
        for weights in (state.read_weights, state.write_weights):
            assert weights.min() >= -tolerance and weights.sum(-1).max() <= 1 + tolerance
            if cls is StaticAccessor:
                torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]), rtol=0, atol=tolerance)
        if cls is DynamicAccessor:
            assert state.usage.min() >= -tolerance and state.usage.max() <= 1 + tolerance
            assert state.precedence.min() >= -tolerance and state.precedence.sum(-1).max() <= 1 + tolerance
            assert state.link.diagonal(dim1=-2, dim2=-1).abs().max() == 0
            assert state.link.min() >= -tolerance
            assert state.link.sum(-1).max() <= 1 + tolerance and state.link.sum(-2).max() <= 1 + tolerance
    total.backward()
    assert torch.isfinite(hiddens.grad).all()


def test_saturated_link_sharpening_stays_finite_over_a_long_run():
    """Writes that sum to 1 + 1e-7 leave links a hair below zero; sharpening those gave NaN in float32."""
    accessor = handed_through(DynamicAccessor, 64, 3, 2, 1, dtype=torch.float32, link_sharpening=True)
    generator, state, lowest = torch.Generator().manual_seed(0), accessor.initial_state(16), 0.0
    with torch.no_grad():
        for _ in range(150):
            hidden = torch.randn(16, accessor.hidden_size, generator=generator) * 20
            _, state, _ = accessor(hidden, state)
            lowest = min(lowest, state.link.min().item())
    assert lowest < 0, "the run must meet a link below zero for this test to say anything"
    assert all(torch.isfinite(part).all() for part in state)


def test_shut_write_gate_leaves_memory_link_and_precedence():
    accessor = handed_through(DynamicAccessor, 5, 3, 2, 2)
    state = random_state(accessor, 0)
    _, after = run(accessor, map_state(lambda leaf: leaf[:1], state), write_gates=-1000.0, add=1.0, erase=OPEN)
    for part in ("memory", "link", "precedence"):
        assert torch.equal(getattr(after, part), getattr(state, part)[:1]), part
    assert after.write_weights.abs().max() == 0


def test_wipe_empties_a_slot_that_was_read_and_freed():
    for wipe in (False, True):
        accessor = handed_through(DynamicAccessor, 4, WIDTH, 1, 1, memory_wipe=wipe)
        one_hot = torch.eye(4, dtype=torch.float64)[2].expand(1, 1, 4)
        memory = torch.ones(1, 4, WIDTH, dtype=torch.float64)
        state = accessor.initial_state(1)._replace(memory=memory, usage=torch.ones(1, 4), read_weights=one_hot)
        _, after = run(accessor, state, write_gates=SHUT, free_gates=OPEN)
        assert after.usage[0].tolist() == pytest.approx([1, 1, 0, 1])
        kept = 0.0 if wipe else 1.0
        torch.testing.assert_close(after.memory[0, 2], torch.full((WIDTH,), kept, dtype=torch.float64))
        torch.testing.assert_close(after.memory[0, [0, 1, 3]], memory[0, :3])


@pytest.mark.parametrize("let", [False, True])
def test_gradient_from_usage_into_the_last_writes_only_when_asked_for(let):
    accessor = handed_through(DynamicAccessor, 4, 3, 1, 1, usage_gradient=let)
    state = random_state(accessor, 0, batch=1)
    written = state.write_weights.requires_grad_()
    _, after, _ = accessor(torch.randn(1, accessor.hidden_size, dtype=torch.float64), state)
    (gradient,) = torch.autograd.grad(after.usage.square().sum(), written, allow_unused=True)
    if let:
        assert gradient.abs().min() > 0
    else:
        assert gradient is None


@pytest.mark.parametrize(("cls", "options"), KINDS[2:])
def test_slots_of_a_dnc_are_interchangeable(cls, options):
    accessor = handed_through(cls, 7, 3, 2, 2, **options)
    state = random_state(accessor, 1)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])

    def permuted(state: DynamicState) -> DynamicState:
        return DynamicState(
            state.memory[:, order],
            state.usage[:, order],
            state.link[..., order, :][..., order],
            *(part[..., order] for part in (state.precedence, state.read_weights, state.write_weights)),
        )

    other = permuted(state)
    generator = torch.Generator().manual_seed(2)
    for _ in range(6):
        hidden = torch.randn(2, accessor.hidden_size, generator=generator).double() * 2
        reads, state, _ = accessor(hidden, state)
        other_reads, other, _ = accessor(hidden, other)
        torch.testing.assert_close(other_reads, reads)
        for part, expected in zip(other, permuted(state), strict=True):
            torch.testing.assert_close(part, expected)


@pytest.mark.parametrize(("cls", "options"), KINDS)
def test_initial_state(cls, options):
    accessor = cls(4, memory_size=5, word_size=3, num_reads=2, num_writes=2, **options).double()
    state = accessor.initial_state(6)
    shapes = {name: tuple(part.shape) for name, part in state._asdict().items()}
    expected = {"memory": (6, 5, 3), "read_weights": (6, 2, 5), "write_weights": (6, 2, 5)}
    if cls is DynamicAccessor:
        expected |= {"usage": (6, 5), "link": (6, 2, 5, 5), "precedence": (6, 2, 5)}
        assert all(part.abs().max() == 0 for part in state)
    assert shapes == expected
    assert all(part.dtype == torch.float64 for part in state)
    larger = accessor.initial_state(1, memory_size=11)
    assert larger.memory.shape == (1, 11, 3) and larger.read_weights.shape == (1, 2, 11)


@pytest.mark.parametrize(("cls", "options"), KINDS)
def test_state_keeps_its_layout_from_step_to_step(cls, options):
    """So that a step compiled for the second state serves the first one too."""
    accessor = cls(4, memory_size=5, word_size=3, num_reads=2, num_writes=2, **options)
    state = accessor.initial_state(6)
    _, after, _ = accessor(torch.randn(6, 4), state)
    assert [part.stride() for part in after] == [part.stride() for part in state]


@pytest.mark.parametrize("name", ["hidden_size", "memory_size", "word_size", "num_reads", "num_writes"])
@pytest.mark.parametrize("cls", [StaticAccessor, DynamicAccessor])
def test_wrong_sizes_are_named(cls, name):
    sizes = {"hidden_size": 4, "memory_size": 5, "word_size": 3, "num_reads": 1, "num_writes": 1}
    with pytest.raises(ValueError, match=f"{name}: got 0"):
        cls(**{**sizes, name: 0})
