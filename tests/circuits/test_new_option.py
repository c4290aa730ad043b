"""What it takes to add an option to the static accessor: one field where it is declared, and where it is used."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from pydantic import Field

import papertape
from papertape.core.accessors import DynamicAccessor, StaticAccessor
from papertape.core.accessors.static import StaticHeads
from papertape.core.component import build
from papertape.core.kernels import dispatch, guard, triton


class KeyScaleOptions(papertape.Component):
    key_scale: float = Field(1.0, gt=0, description="factor of every key")


class ScaledAccessor(KeyScaleOptions, StaticAccessor):
    """The static accessor with an option more, of the same kind as before to any kernel that does not look closer."""

    def heads(self, hidden: torch.Tensor) -> StaticHeads:
        heads = super().heads(hidden)
        return heads._replace(keys=heads.keys * self.key_scale)


def circuit(**more: Any) -> papertape.MemoryCircuit:
    torch.manual_seed(0)
    accessor = ScaledAccessor(6, memory_size=5, word_size=4, **more)
    return papertape.MemoryCircuit(3, 2, accessor=accessor, hidden_size=6)


def test_one_line_declares_it():
    assert ScaledAccessor.Options.model_fields["key_scale"].description == "factor of every key"
    assert ScaledAccessor.Options(key_scale=0.5).model_dump()["key_scale"] == 0.5
    assert build(ScaledAccessor.Options(key_scale=0.5), 6).specification()["key_scale"] == 0.5
    with pytest.raises(ValueError, match=r"key_scale: got 0.0; allowed: greater than 0"):
        circuit(key_scale=0.0)
    assert circuit(key_scale=0.5).accessor.options.key_scale == 0.5


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_kernels_refuse_what_they_do_not_know_whatever_its_value(scale, caplog):
    dispatch._warn_of_slowness.cache_clear()
    inputs, unknown = torch.rand(4, 2, 3), "it does not know the option key_scale of ScaledAccessor"
    chosen = circuit(key_scale=scale)
    outputs, _ = chosen(inputs)
    assert chosen.chosen_backend == "eager"
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned == [f"native: {unknown}; such circuits run on the slower eager backend"]
    chosen.backend = "eager"
    torch.testing.assert_close(chosen(inputs)[0], outputs)
    chosen.backend = "native"
    with pytest.raises(dispatch.BackendError, match=f"backend: 'native' cannot run this circuit: {unknown}"):
        chosen(inputs)
    known = guard.known("triton", chosen, triton.ACCESSORS, None)
    assert known.unavailable(chosen, inputs, chosen.initial_state(2)) == unknown


def test_it_changes_what_is_computed():
    inputs = torch.rand(4, 2, 3)
    one, other = circuit(key_scale=1.0)(inputs)[0], circuit(key_scale=0.01)(inputs)[0]
    plain = papertape.MemoryCircuit(3, 2, hidden_size=6, accessor={"type": "static", "memory_size": 5, "word_size": 4})
    plain.load_state_dict(circuit(key_scale=1.0).state_dict())
    torch.testing.assert_close(plain(inputs)[0], one)
    assert not torch.allclose(one, other)


def test_the_known_options_are_all_that_the_accessor_has():
    """So that whoever adds one is told by a test that kernels refuse, and where to say that they know it."""
    for known, cls in ((guard.STATIC, StaticAccessor), (guard.DYNAMIC, DynamicAccessor)):
        assert set(known) == set(cls(4).specification())


class Given(NamedTuple):
    keywords: dict[str, Any]
    message: str


@pytest.mark.parametrize(
    "given",
    [
        Given(
            {"clip": 1.0, "controller": papertape.core.controllers.LSTMController(23, clip=3.0)}, "clip: got 1.0; the "
        ),
        Given({"dropout": 0.5}, r"dropout: got 0.5; it is between layers, allowed with num_layers 1: 0"),
        Given({"num_layers": 1000}, "num_layers: got 1000; allowed: less than or equal to 100"),
        Given({"dtype": torch.int64}, "dtype: got torch.int64; allowed: a floating type"),
        Given({"dtype": "float32"}, "dtype: got 'float32'; allowed: a floating type"),
        Given({"device": "nowhere"}, "device: got 'nowhere'; allowed: a torch.device or its name"),
        Given({"controller": "direct", "hidden_size": 9}, "hidden_size: got 9; a direct controller has none"),
    ],
)
def test_arguments_that_conflict_or_would_be_passed_over(given):
    with pytest.raises(ValueError, match=f"^{given.message}"):
        papertape.NTM(3, 2, **given.keywords)
