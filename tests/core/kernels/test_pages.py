"""Large memory of the native backend, kept from one call for the next."""

from __future__ import annotations

import mmap

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from papertape import DNC
from papertape.core.kernels.native import library, pages

pytestmark = pytest.mark.skipif(not hasattr(mmap, "MADV_FREE"), reason="the system cannot take back what is kept")

LIKE = torch.zeros(1)
FLOATS = pages.LEAST // 4


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_kept", [])


def bytes_kept() -> list[int]:
    return [len(block) for block in pages._kept]


def test_a_block_serves_again_and_none_serves_two() -> None:
    first, second = pages.empty(FLOATS, LIKE), pages.empty(FLOATS, LIKE)
    address = first.data_ptr()
    assert address != second.data_ptr()
    first.fill_(1), second.fill_(2)
    assert first.eq(1).all()
    view = first[5:]
    del first
    assert bytes_kept() == []  # a view uses it
    del view
    again = pages.empty(FLOATS // 2, LIKE.double())
    assert (again.data_ptr(), again.dtype, again.shape) == (address, torch.float64, (FLOATS // 2,))
    again.fill_(3)
    assert second.eq(2).all()


def test_the_largest_is_kept_and_a_larger_one_takes_its_place() -> None:
    small, large = pages.empty(FLOATS, LIKE), pages.empty(2 * FLOATS, LIKE)
    del large, small
    assert bytes_kept() == [8 * FLOATS]
    largest = pages.empty(3 * FLOATS, LIKE)
    assert bytes_kept() == []
    del largest
    assert bytes_kept() == [12 * FLOATS]


def test_small_ones_and_those_without_values_are_not_its_business() -> None:
    small = pages.empty(FLOATS - 1, LIKE)
    with FakeTensorMode() as mode:
        fake = pages.empty(FLOATS, mode.from_tensor(LIKE))
    assert type(fake) is not Tensor
    assert fake.shape == (FLOATS,)
    del small, fake
    assert bytes_kept() == []


def test_more_than_there_is_is_torchs_own_error() -> None:
    with pytest.raises(RuntimeError, match="memory"):
        pages.empty(2**58, LIKE)


@pytest.mark.skipif(isinstance(library.load(), str), reason=str(library.load()))
def test_gradients_in_memory_that_was_used_before(monkeypatch: pytest.MonkeyPatch) -> None:
    circuit, inputs = DNC(3, 2, memory_size=16), torch.randn(2, 5, 4, 3)

    def gradients(*sequences: Tensor) -> list[Tensor]:
        answers = [circuit(x)[0].sum() for x in sequences]  # all graphs at once
        return [d for answer in answers for d in torch.autograd.grad(answer, [*circuit.parameters()])]

    expected = gradients(*inputs)
    monkeypatch.setattr(pages, "LEAST", 1)
    for _ in range(3):
        torch.testing.assert_close(gradients(*inputs), expected, rtol=0, atol=0)
    assert len(bytes_kept()) == 1
    pages._kept[0].write(b"\xff" * len(pages._kept[0]))  # not a number
    torch.testing.assert_close(gradients(*inputs), expected, rtol=0, atol=0)
