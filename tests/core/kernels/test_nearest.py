"""Native lookups of sparse access: against brute force, and whole circuits against the eager backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from papertape import SAM, SDNC
from papertape.core.addressing import NORM_EPSILON
from papertape.core.kernels.native import library
from papertape.core.kernels.native.nearest import nearest

pytestmark = pytest.mark.skipif(isinstance(library.load(), str), reason=str(library.load()))


def brute_force(memory: Tensor, norms: Tensor, keys: Tensor, key_norms: Tensor, count: int) -> list[Any]:
    """Sort all slots by similarity, then by number, which is what the first of equals means."""
    similarity = torch.einsum("bnw,brw->brn", memory, keys)
    similarity = similarity / (norms.unsqueeze(1) * key_norms.unsqueeze(-1) + NORM_EPSILON)
    similarity = torch.where(similarity.isnan(), -torch.inf, similarity)
    order = torch.sort(similarity, dim=-1, descending=True, stable=True).indices[..., :count]
    found: list[Any] = order.sort(dim=-1).values.tolist()
    return found


sizes = st.integers(1, 40)


@settings(deadline=None)
@given(st.integers(1, 3), sizes, st.integers(1, 37), st.integers(1, 5), st.data())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_finds_what_brute_force_finds(dtype, batch, rows, word, reads, data):
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    count = data.draw(st.integers(1, rows))
    # Small whole numbers are added up exactly in any order, and often equal.
    memory = torch.randint(-1, 2, (batch, rows, word)).to(dtype)
    keys = torch.randint(-1, 2, (batch, reads, word)).to(dtype)
    norms, key_norms = torch.randint(1, 3, (batch, rows)).to(dtype), torch.ones(batch, reads, dtype=dtype)
    found = nearest(memory, norms, keys, key_norms, count)
    assert found.tolist() == brute_force(memory, norms, keys, key_norms, count)


@pytest.mark.parametrize("name", library.INSTRUCTION_SETS)
def test_every_instruction_set_finds_them(name, monkeypatch):
    variant = library.load_variant(name)
    if isinstance(variant, str):
        pytest.skip(variant)
    monkeypatch.setattr(library, "load", lambda: variant)
    torch.manual_seed(0)
    memory, keys = torch.randn(2, 301, 19), torch.randn(2, 3, 19)
    arguments = (memory, memory.norm(dim=-1), keys, keys.norm(dim=-1), 4)
    assert nearest(*arguments).tolist() == brute_force(*arguments)


def test_it_takes_the_first_rows_of_longer_memories():
    torch.manual_seed(0)
    whole, norms = torch.randn(3, 50, 6), torch.rand(3, 50) + 1
    keys = torch.randn(3, 4, 2, 6).transpose(1, 2)[:, 1]
    arguments = (whole[:, :20], norms[:, :20], keys, keys.norm(dim=-1), 3)
    assert nearest(*arguments).tolist() == brute_force(*arguments)


def test_what_is_no_number_comes_last():
    torch.manual_seed(0)
    memory, keys = torch.randn(1, 40, 3), torch.randn(1, 2, 3)
    memory[0, [0, 1, 16, 39]] = torch.nan
    arguments = (memory, torch.ones(1, 40), keys, torch.ones(1, 2), 38)
    assert nearest(*arguments).tolist() == brute_force(*arguments)
    memory[:] = torch.nan
    assert nearest(*arguments[:4], 2).tolist() == [[[0, 1], [0, 1]]]


def test_threads_share_a_memory_without_changing_what_is_found():
    torch.manual_seed(0)
    memory = torch.randint(-2, 3, (1, 3 * 2**16 + 5, 2)).float()
    keys = torch.tensor([[[1.0, 0.5], [-0.25, 1.0]]])
    arguments = (memory, torch.ones(memory.shape[:2]), keys, torch.ones(1, 2), 9)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert nearest(*arguments).tolist() == brute_force(*arguments)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (SAM, {"num_reads": 3, "num_writes": 2}),
        (SAM, {"num_reads": 1, "slots_per_read": 30}),
        (SDNC, {"num_reads": 2, "links_per_slot": 3, "controller": "gru"}),
    ],
)
def test_sparse_circuits_are_the_same_with_it(kind, options, dtype):
    torch.manual_seed(0)
    eager = kind(4, 2, hidden_size=7, memory_size=30, word_size=5, backend="eager", **options).to(dtype)
    native = kind(4, 2, hidden_size=7, memory_size=30, word_size=5, backend="native", **options).to(dtype)
    native.load_state_dict(eager.state_dict())
    inputs = torch.randn(12, 3, 4, dtype=dtype)
    found, gradients = [], []
    for circuit in (eager, native):
        outputs, state = circuit(inputs)
        second, state = circuit(inputs, state)
        (outputs.square().mean() + second.square().mean()).backward()
        # Those that a head reads are in another order.
        found.append((outputs, second, state.accessor.memory, state.accessor.last_access, state.accessor.used))
        gradients.append([parameter.grad for parameter in circuit.parameters()])
    limits = {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {}
    torch.testing.assert_close(*found, **limits)
    torch.testing.assert_close(*gradients, **limits)
    assert native.chosen_backend == "native"


@pytest.mark.parametrize("kind", [SAM, SDNC])
def test_words_that_became_equal_are_chosen_alike(kind):
    """Slots that are read together are written together, and long after the memory is full many hold equal words."""
    inputs = torch.rand(60, 8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    outputs = []
    for backend in ("eager", "native"):
        torch.manual_seed(0)
        circuit = kind(5, 3, hidden_size=16, memory_size=16, word_size=8, num_reads=4, backend=backend).double()
        outputs.append(circuit(inputs)[0])
        torch.testing.assert_close(circuit(inputs[:, :3])[0], outputs[-1][:, :3])
    torch.testing.assert_close(*outputs)


def test_a_state_may_lie_in_memory_in_any_order():
    torch.manual_seed(0)
    circuit, inputs = SAM(4, 2, memory_size=8, word_size=5, num_reads=2), torch.randn(3, 2, 4)
    _, state = circuit(torch.randn(3, 2, 4))
    memory = state.accessor.memory
    turned = state._replace(
        accessor=state.accessor._replace(memory=memory.transpose(1, 2).contiguous().transpose(1, 2))
    )
    torch.testing.assert_close(circuit(inputs, turned)[0], circuit(inputs, state)[0])


def test_auto_takes_it_and_masked_lookups_do_without():
    inputs = torch.randn(3, 1, 4)
    sam = SAM(4, 2, memory_size=8, word_size=5)
    sam(inputs)
    assert sam.chosen_backend == "native"
    masked = SAM(4, 2, memory_size=8, word_size=5, masked_content=True)
    masked(inputs)
    assert masked.chosen_backend == "eager"
    masked.backend = "native"
    with pytest.raises(RuntimeError, match="cannot run this circuit: it has no masked lookups in a sparse memory"):
        masked(inputs)
