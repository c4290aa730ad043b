from __future__ import annotations

import io

import pytest
import torch

from papertape import DNC, NTM, SAM, SDNC, Tape
from papertape.core.trace import Trace, TraceField, check_fields, concatenate

FIELDS = {"weights": TraceField("R N", "weighting", "where"), "gate": TraceField("", "gate")}


def test_a_trace_is_a_mapping_with_names():
    trace = Trace({"weights": torch.rand(5, 2, 1, 7), "gate": torch.rand(5, 2)}, FIELDS)
    assert list(trace) == ["weights", "gate"] and len(trace) == 2
    assert trace.weights is trace["weights"]
    assert list(trace.of_kind("gate", "words")) == ["gate"]
    assert trace.map(lambda tensor: tensor[:, :1]).gate.shape == (5, 1)
    assert repr(trace).startswith("Trace(weights [T, B, R, N]")
    with pytest.raises(AttributeError, match="this trace has no 'usage'; it has weights, gate"):
        _ = trace.usage


def test_a_tensor_with_other_axes_is_refused():
    with pytest.raises(ValueError, match=r"trace.weights: got shape \[5, 2, 7\]; its axes are T B R N"):
        Trace({"weights": torch.rand(5, 2, 7)}, FIELDS)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (TraceField("R N", "colour"), "got kind 'colour'; allowed: weighting"),
        (TraceField("N", "memory"), "at least two"),
        (TraceField("", "words"), "at least one"),
    ],
)
def test_a_field_that_is_none_is_refused(field, message):
    with pytest.raises(ValueError, match=f"Mine.seen: .*{message}"):
        check_fields("Mine", {"seen": field})


@pytest.mark.parametrize("cls", [NTM, DNC, SAM, SDNC, Tape])
def test_every_circuit_shows_all_that_it_names(cls):
    circuit = cls(3, 2, memory_size=6, word_size=4)
    check_fields(cls.__name__, circuit.trace_fields)
    _, state, trace = circuit(torch.rand(5, 2, 3), trace=True)
    for name in ("read_weights", "write_weights", "memory", "reads", "add"):
        assert name in trace
    assert torch.equal(trace.reads[-1], state.reads)
    assert torch.equal(trace.memory[-1], state.accessor.memory)
    for weights in trace.of_kind("weighting").values():
        assert (weights >= 0).all() and (weights.sum(-1) <= max(1, weights.shape[-1]) + 1e-5).all()


def test_a_trace_is_saved_and_loaded_as_it_is():
    _, _, trace = NTM(3, 2, memory_size=6, word_size=4)(torch.rand(5, 2, 3), trace=True)
    file = io.BytesIO()
    torch.save(trace, file)
    file.seek(0)
    loaded = torch.load(file)
    assert loaded.fields == trace.fields
    assert all(torch.equal(loaded[name], trace[name]) for name in trace)


@pytest.mark.parametrize("cls", [NTM, DNC, SAM, SDNC, Tape])
@pytest.mark.parametrize("batch_first", [False, True])
def test_traces_of_single_steps_are_one_trace(cls, batch_first):
    torch.manual_seed(0)
    circuit = cls(3, 2, memory_size=6, word_size=4, batch_first=batch_first)
    inputs = torch.rand(2, 5, 3) if batch_first else torch.rand(5, 2, 3)
    _, _, whole = circuit(inputs, trace=True)
    state, parts = None, []
    for step in inputs.split(1, dim=int(batch_first)):
        _, state, part = circuit(step, state, trace=True)
        parts.append(part)
    joined = concatenate(parts, dim=int(batch_first))
    assert joined.fields == whole.fields
    for name, tensor in whole.items():
        torch.testing.assert_close(joined[name], tensor)


def test_traces_of_several_circuits_are_not_joined():
    _, _, first = NTM(3, 2, memory_size=6, word_size=4)(torch.rand(1, 2, 3), trace=True)
    _, _, other = DNC(3, 2, memory_size=6, word_size=4)(torch.rand(1, 2, 3), trace=True)
    with pytest.raises(ValueError, match="expected the same fields in each"):
        concatenate([first, other])
    with pytest.raises(ValueError, match="traces: got none"):
        concatenate([])
