"""Sequences of different lengths, one sequence without a batch, and packed sequences, as torch.nn.LSTM takes them."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from papertape import DNC, NTM, SAM, SDNC, FeedForwardCircuit, NeatCircuit, Tape
from papertape.core.state import map_state

SIZES = {"memory_size": 7, "word_size": 4}
CIRCUITS = {
    **{cls.__name__: (cls, SIZES) for cls in (NTM, DNC, SAM, SDNC, Tape)},
    "NTM gru": (NTM, {**SIZES, "controller": "gru"}),
    "DNC feedforward": (DNC, {**SIZES, "controller": "feedforward"}),
    "feedforward": (FeedForwardCircuit, {}),
    "neat": (NeatCircuit, {}),
}
LENGTHS = [6, 2, 4, 2]


@pytest.fixture(params=CIRCUITS)
def circuit(request):
    cls, options = CIRCUITS[request.param]
    torch.manual_seed(0)
    return cls(3, 2, **options)


def same(state, other):
    map_state(lambda leaf, theirs: torch.testing.assert_close(leaf, theirs, atol=1e-6, rtol=1e-5), state, other)


def test_each_sequence_ends_at_its_own_end(circuit):
    x = torch.rand(8, 4, 3)
    outputs, state = circuit(x, lengths=LENGTHS)
    assert outputs.shape == (8, 4, 2)
    for row, length in enumerate(LENGTHS):
        alone, last = circuit(x[:length, row : row + 1])
        torch.testing.assert_close(outputs[:length, row], alone[:, 0], atol=1e-6, rtol=1e-5)
        assert not outputs[length:, row].any()
        same(map_state(lambda leaf: leaf[row : row + 1], state), last)  # noqa: B023


def test_what_lies_after_the_end_is_not_looked_at(circuit):
    x = torch.rand(6, 4, 3)
    spoilt = x.clone()
    for row, length in enumerate(LENGTHS):
        spoilt[length:, row] = torch.nan
    first, second = circuit(x, lengths=LENGTHS), circuit(spoilt, lengths=torch.tensor(LENGTHS))
    assert torch.equal(first[0], second[0])
    same(first[1], second[1])


def test_a_state_goes_in_and_comes_out_for_every_sequence(circuit):
    x = torch.rand(5, 4, 3)
    _, state = circuit(torch.rand(3, 4, 3))
    kept = map_state(torch.clone, state)
    outputs, _ = circuit(x, state, lengths=[1, 5, 1, 3])
    alone, _ = circuit(x[:3, 3:], map_state(lambda leaf: leaf[3:], state))
    torch.testing.assert_close(outputs[:3, 3:], alone, atol=1e-6, rtol=1e-5)
    same(state, kept)


def test_gradients_are_those_of_each_sequence_alone():
    torch.manual_seed(0)
    circuit = NTM(3, 2, **SIZES, dtype=torch.float64, backend="eager")
    x = torch.rand(6, 4, 3, dtype=torch.float64)
    circuit(x, lengths=LENGTHS)[0].square().sum().backward()
    together = [parameter.grad.clone() for parameter in circuit.parameters()]
    circuit.zero_grad()
    for row, length in enumerate(LENGTHS):
        circuit(x[:length, row : row + 1])[0].square().sum().backward()
    for parameter, gradient in zip(circuit.parameters(), together, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-12, rtol=1e-9)


def test_a_packed_sequence_comes_back_packed(circuit):
    x = torch.rand(6, 4, 3)
    packed = pack_padded_sequence(x, torch.tensor(LENGTHS), enforce_sorted=False)
    outputs, state = circuit(packed)
    assert torch.equal(outputs.batch_sizes, packed.batch_sizes)
    assert torch.equal(outputs.sorted_indices, packed.sorted_indices)
    expected, last = circuit(x, lengths=LENGTHS)
    torch.testing.assert_close(pad_packed_sequence(outputs)[0], expected)
    same(state, last)
    with pytest.raises(ValueError, match="lengths: got some beside a PackedSequence"):
        circuit(packed, lengths=LENGTHS)


def test_a_sorted_packed_sequence_and_batch_first():
    circuit = DNC(3, 2, **SIZES, batch_first=True)
    x = torch.rand(3, 5, 3)
    outputs, state = circuit(pack_padded_sequence(x, torch.tensor([5, 4, 1]), batch_first=True))
    expected, last = circuit(x, lengths=[5, 4, 1])
    torch.testing.assert_close(pad_packed_sequence(outputs, batch_first=True)[0], expected)
    same(state, last)


def test_one_sequence_needs_no_batch(circuit):
    x = torch.rand(5, 3)
    outputs, state = circuit(x)
    expected, last = circuit(x.unsqueeze(1))
    assert torch.equal(outputs, expected[:, 0])
    same(state, last)
    again, _ = circuit(x, state)
    assert again.shape == (5, 2)


def test_a_trace_stops_with_its_sequence():
    circuit = DNC(3, 2, **SIZES)
    x = torch.rand(5, 2, 3)
    outputs, _, trace = circuit(x, lengths=[5, 2], trace=True)
    alone, _, expected = circuit(x[:2, 1:], trace=True)
    torch.testing.assert_close(outputs[:2, 1:], alone)
    for name, seen in trace.items():
        assert seen.shape[:2] == (5, 2)
        torch.testing.assert_close(seen[:2, 1:], expected[name])
        assert not seen[2:, 1].any()


@pytest.mark.parametrize("lengths", [[1, 2, 3], [0, 1, 1, 1], [1, 1, 1, 9], [1.0, 2, 3, 4], [[1, 2, 3, 4]], [True] * 4])
def test_lengths_that_are_none_are_refused(lengths):
    with pytest.raises(ValueError, match="lengths: got .*; expected a whole number from 1 to 6"):
        NTM(3, 2, **SIZES)(torch.rand(6, 4, 3), lengths=lengths)


@pytest.mark.parametrize("lengths", [[None, 2], "ab", [True, 5], [[1, 2]], {1: 2}])
def test_lengths_that_are_no_whole_numbers_are_said(lengths):
    with pytest.raises(ValueError, match=r"^lengths: got .*; expected a whole number from 1 to 5"):
        NTM(3, 2, memory_size=4, word_size=3, hidden_size=4)(torch.zeros(5, 2, 3), lengths=lengths)
