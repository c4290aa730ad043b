"""Rows changed in place give what plain operations give, forward and backward, and leave the original alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from papertape.core import sparse_addressing
from papertape.core.kernels.rows import UNTOUCHED_BYTES, InPlaceRows, InPlaceTimes, Rows

BATCH, SLOTS, WIDTH = 2, 6, 3


def sequence(kind: type[Rows], memory: Tensor, new: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Some of everything, with slots named twice; what was read and the memory at the end."""
    rows = kind(memory)
    first = rows.take(torch.tensor([[0, 3, 3], [1, 1, 5]]))
    rows.put(torch.tensor([[2, 4, 2], [0, 0, 3]]), torch.stack([new[:, 0], new[:, 1], new[:, 0]], 1) * scale)
    rows.put(torch.tensor([[5], [5]]), torch.zeros(BATCH, 1, WIDTH, dtype=memory.dtype))
    rows.add(torch.tensor([[2, 2, 0], [4, 3, 3]]), first * scale + new)
    second = rows.take(torch.tensor([[2, 5], [3, 4]]))
    rows.add(torch.tensor([[1, 2], [4, 4]]), second.square())
    return torch.cat([first, second, rows.take(torch.tensor([[1, 2], [4, 0]]))], 1), rows.close()


def same_rows(new: Tensor) -> Tensor:
    """A slot that is put twice must get the same row twice, in either row of the batch."""
    return torch.stack([new[:, 0], new[:, 0], new[:, 2]], 1)


def arguments(seed: int = 0) -> list[Tensor]:
    torch.manual_seed(seed)
    shapes = [(BATCH, SLOTS, WIDTH), (BATCH, 3, WIDTH), (1,)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("uses", ["reads", "memory", "both"])
def test_in_place_equals_plain_forward_and_backward(uses):
    results = []
    for kind in (Rows, InPlaceRows):
        memory, new, scale = arguments()
        before = memory.detach().clone()
        reads, last = sequence(kind, memory, same_rows(new), scale)
        of_reads, of_memory = (torch.linspace(-1, 2, part.numel()).view_as(part) for part in (reads, last))
        loss = {
            "reads": (reads * of_reads).sum(),
            "memory": (last.square() * of_memory).sum(),
            "both": (reads * of_reads).sum() + (last.square() * of_memory).sum(),
        }[uses]
        results.append([reads, last, *torch.autograd.grad(loss, [memory, new, scale])])
        assert torch.equal(memory, before)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_agree_with_finite_differences():
    def function(memory, new, scale):
        return sequence(InPlaceRows, memory, same_rows(new), scale)

    assert torch.autograd.gradcheck(function, arguments())


def test_backward_twice_and_a_gradient_that_the_caller_keeps():
    memory, new, scale = arguments()
    reads, last = sequence(InPlaceRows, memory, same_rows(new), scale)
    upstream = torch.randn_like(last)
    kept = upstream.clone()
    first = torch.autograd.grad([reads.sum(), last], [memory, new], [torch.ones(()).double(), upstream], True)
    second = torch.autograd.grad([reads.sum(), last], [memory, new], [torch.ones(()).double(), upstream])
    assert torch.equal(upstream, kept)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_whole_numbers_and_two_dimensions():
    for kind in (Rows, InPlaceRows):
        start = torch.arange(12).view(2, 6)
        rows = kind(start)
        rows.put(torch.tensor([[1, 1], [0, 5]]), torch.tensor([[9, 9], [7, 8]]))
        rows.add(torch.tensor([[0, 0], [3, 4]]), torch.tensor([[1, 2], [3, 4]]))
        assert rows.take(torch.tensor([[1, 0], [5, 3]])).tolist() == [[9, 3], [8, 12]]
        assert rows.close().tolist() == [[3, 9, 2, 3, 4, 5], [7, 7, 8, 12, 14, 8]]
        assert torch.equal(start, torch.arange(12).view(2, 6))


@pytest.mark.parametrize("slots", [3, sparse_addressing.BLOCK, 3 * sparse_addressing.BLOCK + 5])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_times_find_the_least_recent_after_every_change(slots, count):
    generator = torch.Generator().manual_seed(slots + count)
    given = torch.randint(0, 4, (BATCH, slots), generator=generator)
    plain, before = given.clone(), given.clone()
    times = InPlaceTimes(given)
    for step in range(4, 30):
        found = times.least_recent(count)
        assert torch.equal(found, sparse_addressing.least_recent(plain, count))
        touched = torch.cat([found, torch.randint(0, slots, (BATCH, 2), generator=generator)], dim=1)
        plain.scatter_(1, touched, step)
        times.put(touched, torch.full_like(touched, step))
    assert torch.equal(times.close(), plain)
    assert torch.equal(given, before)


def test_a_large_gradient_is_zero_where_nothing_was_touched():
    slots = UNTOUCHED_BYTES // (4 * WIDTH) + 1
    memory = torch.zeros(1, slots, WIDTH, requires_grad=True)
    rows = InPlaceRows(memory)
    rows.take(torch.tensor([[1, slots - 1, 1]])).sum().backward()
    assert memory.grad is not None
    expected = torch.zeros(1, slots, WIDTH)
    expected[0, 1], expected[0, -1] = 2, 1
    assert torch.equal(memory.grad, expected)
