"""Sparse access: equal to dense access where nothing is left out, and as cheap as it should be where something is."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from papertape import SAM, SDNC, CircuitState, MemoryCircuit, map_state
from papertape.core import addressing, sparse_memory
from papertape.core.accessors import SparseAccessor, SparseState
from papertape.core.sparse_memory import ACCESS_THRESHOLD

HIDDEN, BATCH, STEPS = 7, 2, 12


class DenseState(NamedTuple):
    """The same model over all slots."""

    memory: Tensor
    last_access: Tensor
    read_weights: Tensor
    link: Tensor
    precedence: Tensor


def dense_step(accessor: SparseAccessor, hidden: Tensor, state: DenseState, step: int) -> tuple[Tensor, DenseState]:
    """A step of SAM or SDNC in the functions of core.addressing, each over the whole memory."""
    heads, slots = accessor.heads(hidden), state.memory.shape[1]
    oldest = state.last_access.sort(dim=-1, stable=True).indices[:, : accessor.num_writes]
    emptied = torch.nn.functional.one_hot(oldest, slots).to(hidden.dtype)
    sources = torch.cat(
        [emptied.unsqueeze(2), state.read_weights.unsqueeze(1).expand(-1, accessor.num_writes, -1, -1)], 2
    )
    written = heads.write_gates.unsqueeze(-1) * (heads.write_modes.unsqueeze(2) @ sources).squeeze(2)
    nothing, everything = torch.zeros_like(heads.add), torch.ones_like(heads.add)
    memory = addressing.write(state.memory, emptied, everything, nothing)
    memory = addressing.write(memory, written, nothing, heads.add)
    link = addressing.link(state.link, state.precedence, written)
    precedence = addressing.precedence(state.precedence, written)
    read = addressing.content_weights(memory, heads.read_keys, heads.read_strengths, heads.read_mask)
    if heads.read_modes is not None:
        backward = addressing.directional_weights(link, state.read_weights, forward=False).squeeze(2)
        forward = addressing.directional_weights(link, state.read_weights, forward=True).squeeze(2)
        read = (heads.read_modes.unsqueeze(2) @ torch.stack([backward, read, forward], 2)).squeeze(2)
    accessed = (written.sum(1) + read.sum(1)).detach() > ACCESS_THRESHOLD
    last_access = torch.where(accessed, step, state.last_access)
    return addressing.read(memory, read), DenseState(memory, last_access, read, link, precedence)


def build(slots: int = 6, seed: int = 0, **options: Any) -> SparseAccessor:
    torch.manual_seed(seed)
    sizes = {"num_reads": 2, "num_writes": 1, "slots_per_read": slots, **options}
    accessor = SparseAccessor(HIDDEN, memory_size=slots, word_size=4, **sizes).double()
    with torch.no_grad():
        for parameter in accessor.parameters():
            parameter.mul_(2.5)
    return accessor


VARIATIONS: dict[str, dict[str, Any]] = {
    "sam": {},
    "sam many heads": {"num_reads": 3, "num_writes": 2},
    "sam masked": {"masked_content": True},
    "sam one slot": {"slots": 1},
    "sdnc": {"links_per_slot": 6},
    "sdnc one head": {"links_per_slot": 99, "num_reads": 1, "slots_per_read": 99},
    "sdnc masked": {"links_per_slot": 6, "masked_content": True},
    "sdnc one slot": {"slots": 1, "links_per_slot": 8},
}


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("name", VARIATIONS)
def test_equals_dense_access_where_nothing_is_left_out(name, in_place):
    """Words read, memory and all gradients, over more steps than there are slots."""
    accessor = build(**VARIATIONS[name])
    slots = accessor.memory_size
    hidden = torch.randn(STEPS, BATCH, HIDDEN, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(STEPS, BATCH, accessor.num_reads, 4, dtype=torch.float64)
    start = accessor.initial_state(BATCH)

    state: Any = accessor.begin(start, STEPS) if in_place else start
    sparse_reads = []
    for x in hidden:
        read, state, last = accessor(x, state)
        sparse_reads.append(read)
    state = accessor.end(state)

    heads, writes = accessor.num_reads, accessor.num_writes
    zeros = hidden.new_zeros
    dense = DenseState(
        start.memory, start.last_access, zeros(BATCH, heads, slots), zeros(BATCH, writes, slots, slots),
        zeros(BATCH, writes, slots),
    )  # fmt: skip
    dense_reads = []
    for step, x in enumerate(hidden, 1):
        read, dense = dense_step(accessor, x, dense, step)
        dense_reads.append(read)

    torch.testing.assert_close(torch.stack(sparse_reads), torch.stack(dense_reads))
    torch.testing.assert_close(state.memory, dense.memory)
    torch.testing.assert_close(state.last_access, dense.last_access)
    torch.testing.assert_close(accessor.observed(last, state)["read_weights"], dense.read_weights)
    inputs = [hidden, *accessor.parameters()]
    gradients = []
    for reads, memory in ((sparse_reads, state.memory), (dense_reads, dense.memory)):
        loss = (torch.stack(reads) * upstream).sum() + memory.square().sum()
        gradients.append(torch.autograd.grad(loss, inputs))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    assert gradients[0][0].abs().sum() > 0


@pytest.mark.parametrize("cls", [SAM, SDNC])
@pytest.mark.parametrize("slots_per_read", [1, 3])
def test_a_sequence_in_place_equals_its_steps(cls, slots_per_read):
    """Where much is left out: the steps make everything anew in plain differentiable operations."""
    torch.manual_seed(0)
    options = {"links_per_slot": 2} if cls is SDNC else {"num_writes": 2}
    circuit = cls(
        4, 2, hidden_size=8, memory_size=15, word_size=5, num_reads=2, slots_per_read=slots_per_read, **options
    )
    circuit.double()
    with torch.no_grad():
        for parameter in circuit.parameters():
            parameter.mul_(2)
    inputs = torch.randn(20, 3, 4, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(20, 3, 2, dtype=torch.float64)
    start = circuit.initial_state(3)
    kept = map_state(torch.clone, start)
    results = []
    for whole in (True, False):
        if whole:
            outputs, state = circuit(inputs, start)
        else:
            steps, state = [], start
            for x in inputs:
                y, state = circuit.step(x, state)
                steps.append(y)
            outputs = torch.stack(steps)
        loss = (outputs * upstream).sum() + state.accessor.memory.square().sum()
        results.append((outputs, state, torch.autograd.grad(loss, [inputs, *circuit.parameters()])))
    torch.testing.assert_close(results[0][0], results[1][0])
    map_state(lambda one, other: torch.testing.assert_close(one, other) or one, results[0][1], results[1][1])
    for one, other in zip(results[0][2], results[1][2], strict=True):
        torch.testing.assert_close(one, other)
    map_state(lambda one, other: torch.testing.assert_close(one, other, rtol=0, atol=0) or one, start, kept)


@pytest.mark.parametrize("cls", [SAM, SDNC])
def test_slots_beyond_those_in_use_change_nothing(cls):
    """A larger memory, and a search over all of it, give the same; in float32 too, where ties would be decided."""
    torch.manual_seed(0)
    circuit = cls(4, 2, hidden_size=8, memory_size=64, word_size=5, num_reads=2)
    inputs = torch.randn(6, 3, 4)
    outputs, state = circuit(inputs)
    assert state.accessor.used.max() < 64
    large, large_state = circuit(inputs, circuit.initial_state(3, memory_size=3000))
    torch.testing.assert_close(large, outputs)
    torch.testing.assert_close(large_state.accessor.memory[:, :64], state.accessor.memory)
    assert large_state.accessor.memory[:, 64:].abs().max() == 0
    assert torch.equal(large_state.accessor.read_slots, state.accessor.read_slots)
    start = circuit.initial_state(3, memory_size=3000)
    everywhere = start.accessor._replace(used=start.accessor.used + 3000)
    torch.testing.assert_close(circuit(inputs, start._replace(accessor=everywhere))[0], outputs)


@pytest.mark.parametrize("backend", ["auto", "native", "eager", "graphs"])
@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("cls", [SAM, SDNC])
def test_a_single_step_does_not_look_beyond_the_slots_in_use(cls, gradient, backend):
    """Nor copy them one by one: what lies there, which no step can have written, is neither found nor changed."""
    torch.manual_seed(0)
    circuit = cls(4, 2, hidden_size=8, memory_size=200, word_size=5, num_reads=2)
    x = torch.randn(3, 4)
    _, start = circuit(torch.randn(6, 3, 4))
    assert start.accessor.used.max() < 90
    circuit.backend = backend
    hidden = start.accessor.memory.clone()
    hidden[:, 100:] = torch.randn(5)
    with torch.set_grad_enabled(gradient):
        expected, after = circuit.step(x, start)
        found, last = circuit.step(x, start._replace(accessor=start.accessor._replace(memory=hidden)))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert found.requires_grad == gradient
    assert torch.equal(last.accessor.read_slots, after.accessor.read_slots)
    assert torch.equal(last.accessor.memory[:, :100], after.accessor.memory[:, :100])
    assert torch.equal(last.accessor.memory[:, 100:], hidden[:, 100:])


def saved_bytes(circuit: Any, steps: int, memory_size: int) -> int:
    """What a whole sequence keeps for its backward pass, apart from parameters."""
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        kept.append(tensor)
        return tensor

    kept: list[Tensor] = []
    inputs, state = torch.zeros(steps, 1, 4), circuit.initial_state(1, memory_size=memory_size)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        circuit(inputs, state)
    return sum(storages.values())


@pytest.mark.parametrize("cls", [SAM, SDNC])
def test_what_is_kept_does_not_grow_with_the_memory(cls):
    circuit = cls(4, 2, hidden_size=8, memory_size=100, word_size=8, num_reads=2)
    small, large = (saved_bytes(circuit, 10, slots) for slots in (200, 20_000))
    assert large < 1.05 * small
    # Each step adds some rows, not the memory.
    assert saved_bytes(circuit, 20, 20_000) - large < 10 * 20_000 * 8 * 4 / 4


def test_every_write_takes_the_least_recently_used_slot():
    accessor = build(5, slots_per_read=1)
    with torch.no_grad():
        accessor.interface.linear.weight.zero_()
        bias = dict(
            zip(
                accessor.interface.sizes,
                accessor.interface.linear.bias.split(list(accessor.interface.sizes.values())),
                strict=True,
            )
        )
        for part in bias.values():
            part.zero_()
        bias["write_gates"].fill_(30)
        bias["write_modes"][0] = 30
        bias["add"].fill_(1)
    state, seen = accessor.initial_state(BATCH), []
    for _ in range(7):
        _, state, heads = accessor(torch.zeros(BATCH, HIDDEN, dtype=torch.float64), state)
        seen.append(accessor.observed(heads, state)["write_weights"][0, 0].argmax().item())
    # Every read, of a key of zeros, is of slot 0, which is thus never the least recently used again.
    assert seen == [0, 1, 2, 3, 4, 1, 2]
    assert state.used.tolist() == [5, 5]


def test_links_lead_to_the_slots_written_before_and_after():
    circuit = SDNC(3, 2, memory_size=12, word_size=4, num_reads=1, slots_per_read=2, links_per_slot=2).double()
    working = circuit.accessor.begin(circuit.accessor.initial_state(1), 9)
    order = [3, 7, 1, 5]
    for slot in order:
        # A weak second entry, named twice, must not disturb.
        working.links.write(torch.tensor([[slot, 0, 0]]), torch.tensor([[0.98, 0.01, 0.01]], dtype=torch.float64))
    for before, slot, after in zip(order[:-2], order[1:-1], order[2:], strict=True):
        weights = torch.ones(1, 1, 1, dtype=torch.float64)
        found = working.links.around(torch.tensor([[[slot]]]), weights)
        for (slots, values), expected in zip(found, (before, after), strict=True):
            heaviest = values.argmax()
            assert slots.flatten()[heaviest] == expected and values.flatten()[heaviest] > 0.9


def test_link_weights_stay_within_one():
    """As in the DNC: rows and columns of the links, and the precedence, sum to at most 1, and no entry is negative."""
    torch.manual_seed(3)
    circuit = SDNC(3, 2, hidden_size=8, memory_size=9, word_size=4, num_reads=2, slots_per_read=3, links_per_slot=3)
    with torch.no_grad():
        for parameter in circuit.parameters():
            parameter.mul_(4)
    state = circuit.initial_state(4)
    for x in torch.randn(40, 4, 3):
        _, state, heads = circuit.transition(x, state)
        links = state.accessor.links
        assert links.values.min() > -1e-6 and links.values.sum(-1).max() < 1 + 1e-5
        assert links.precedence.min() > -1e-6 and links.precedence.sum(-1).max() < 1 + 1e-5
        read = circuit.accessor.observed(heads, state.accessor)["read_weights"]
        assert read.min() > -1e-6 and read.sum(-1).max() < 1 + 1e-5
        assert all(len(set(row)) == 3 for row in state.accessor.read_slots.flatten(0, 1).tolist())


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (SAM, {"slots_per_read": 0}, "slots_per_read: got 0"),
        (SAM, {"num_writes": 3, "memory_size": 2}, "memory_size: got 2; each of the 3 write heads needs"),
        (
            MemoryCircuit,
            {"accessor": {"type": "sparse", "num_writes": 2, "links_per_slot": 2}},
            "num_writes: got 2; allowed with temporal links: 1",
        ),
        (SDNC, {"links_per_slot": 0}, "links_per_slot: got 0"),
    ],
)
def test_wrong_arguments_are_named(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(3, 2, **options)


def test_a_memory_smaller_than_its_write_heads_is_refused():
    with pytest.raises(ValueError, match="memory_size: got 1; each of the 2 write heads"):
        SAM(3, 2, num_writes=2).initial_state(1, memory_size=1)


def test_state_is_explicit():
    state = SAM(3, 2, memory_size=10).initial_state(2)
    assert isinstance(state, CircuitState) and isinstance(state.accessor, SparseState)


@pytest.mark.parametrize("masked_content", [False, True])
@pytest.mark.parametrize("slots", [300, 3000])
def test_of_equal_words_it_reads_the_first(slots: int, masked_content: bool) -> None:
    """Few different words fill the memory; the larger one is searched by matrix products."""
    accessor = build(slots, num_reads=3, slots_per_read=4, masked_content=masked_content)
    words = torch.randn(5, 4, dtype=torch.float64)
    places = torch.randint(5, (BATCH, slots))
    state = accessor.initial_state(BATCH)
    state = state._replace(memory=words[places], used=torch.full_like(state.used, slots))
    hidden = torch.randn(BATCH, HIDDEN, dtype=torch.float64)
    _, after, heads = accessor(hidden, state)
    for row in range(BATCH):
        for head in range(3):
            key = heads.read_keys[row, head]
            weight = torch.ones_like(key) if heads.read_mask is None else heads.read_mask[row, head]
            memory = after.memory[row].detach() * weight
            # Correctly rounded sums: equal words are exactly equally similar.
            products = [math.fsum(word) for word in (memory * key * weight).tolist()]
            squares = [math.fsum(word) for word in (memory * memory).tolist()]
            scores = [
                dot / math.sqrt(square + addressing.NORM_EPSILON) for dot, square in zip(products, squares, strict=True)
            ]
            best = sorted(range(slots), key=lambda slot: (-scores[slot], slot))[:4]
            assert after.read_slots[row, head].tolist() == sorted(best)


@pytest.mark.parametrize("writes", [1, 2])
def test_many_slots_are_accessed_as_few_are(monkeypatch, writes):
    torch.manual_seed(0)
    accessor = SparseAccessor(5, memory_size=1200, word_size=4, num_reads=2, num_writes=writes, slots_per_read=3)
    hidden = torch.randn(12, BATCH, 5)

    def sequence() -> SparseState:
        working = accessor.begin(accessor.initial_state(BATCH)._replace(used=torch.full((BATCH,), 1200)), len(hidden))
        for step in hidden:
            accessor(step, working)
        return accessor.end(working)

    few = sequence()
    monkeypatch.setattr(sparse_memory, "MANY_SLOTS", 1)
    for one, other in zip(few, sequence(), strict=True):
        assert not isinstance(one, Tensor) or torch.equal(one, other)
