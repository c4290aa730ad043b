from __future__ import annotations

import io

import pytest
import torch

from papertape import DNC, NTM, SAM, SDNC, Tape
from papertape.core.trace import Trace, TraceField, check_fields

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
    ],
)
def test_a_field_that_is_none_is_refused(field, message):
    with pytest.raises(ValueError, match=f"Mine.seen: .*{message}"):
        check_fields("Mine", {"seen": field})


@pytest.mark.parametrize("cls", [NTM, DNC, SAM, SDNC, Tape])
def test_every_circuit_shows_all_that_it_names(cls):
    circuit = cls(3, 2, memory_size=6, word_size=4)
    check_fields(cls.__name__, circuit.trace_fields)
    outputs, state, trace = circuit(torch.rand(5, 2, 3), trace=True)
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
