"""Parameter counts, wrong arguments, and options that agree with the constructors."""

from __future__ import annotations

import inspect
import io
import re
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import papertape
from papertape import (
    DNC,
    GRU,
    LSTM,
    NTM,
    SAM,
    SDNC,
    FeedForwardCircuit,
    MemoryCircuit,
    NeatCircuit,
    NormalisedCircuit,
    RecurrentCircuit,
    RoutedCircuit,
    StackRNN,
    Tape,
    TapeRNN,
    Transformer,
)
from papertape.core.component import fields_of, options_of
from papertape.core.controllers import GRUController, LSTMController
from papertape.core.registry import entries, lookup

CONTROLLERS = ("lstm", "gru", "feedforward", "neat", "direct")
CIRCUITS = (
    *(NTM, DNC, SAM, SDNC, Tape, MemoryCircuit, FeedForwardCircuit, NeatCircuit),
    *(NormalisedCircuit, RecurrentCircuit, RoutedCircuit, LSTM, GRU, StackRNN, TapeRNN, Transformer),
)
"""All that there are; what tests elsewhere register is not ours."""


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_every_circuit_is_exported_and_its_state_can_be_loaded():
    assert set(CIRCUITS) == {circuit for circuit in entries("circuit").values() if "papertape" in circuit.__module__}
    for circuit in CIRCUITS:
        assert getattr(papertape, circuit.__name__) is circuit
        state = circuit(3, 2).initial_state(2)
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        assert type(torch.load(file)) is type(state)


def test_sizes_may_come_from_numpy():
    sizes = {"hidden_size": 6, "num_layers": 2, "memory_size": 5, "word_size": 3, "num_reads": 2}
    for circuit, more in (
        (NTM, {"shift_range": 1}),
        (DNC, {"num_writes": 1}),
        (SDNC, {"slots_per_read": 2, "links_per_slot": 2}),
    ):
        results = []
        for kind in (int, np.int64):
            torch.manual_seed(0)
            built = circuit(kind(4), kind(2), **{name: kind(size) for name, size in {**sizes, **more}.items()})
            results.append(built(torch.ones(2, 3, 4))[0])
        assert torch.equal(*results)


def test_published_settings_give_the_known_numbers_of_parameters():
    assert count(NTM(10, 8)) == 63_060
    assert count(DNC(6, 5, hidden_size=64, memory_size=16, word_size=16)) == 44_236


@pytest.mark.parametrize(
    ("controller", "published", "tolerance"),
    [("lstm", 67_561, 0.04), ("feedforward", 17_162, 0.07)],
)
def test_ntm_paper_counts(controller, published, tolerance):
    """NTM paper, tables 1 and 2, copy: one head (of each kind), controller 100, memory 128 × 20.

    The paper learns its starts (memory, weightings, and perhaps reads and controller states), and says neither how many
    biases its gates have nor what else its heads emit, so that its figures cannot be met exactly. With learned memory
    and weightings ours lie 3.1 % and 6.3 % below; with the constant memory that converges faster, 7.3 % and 22.7 %.
    """
    learned = count(NTM(9, 8, controller=controller, memory_init="learned", weight_init="learned"))
    assert learned == pytest.approx(published, rel=tolerance)
    assert learned < published
    assert learned - count(NTM(9, 8, controller=controller)) == 128 * 20 + 2 * 128


def test_number_of_parameters_does_not_depend_on_the_memory_size():
    for cls in (NTM, DNC):
        assert count(cls(4, 3, memory_size=7)) == count(cls(4, 3, memory_size=70))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("cls", [NTM, DNC])
def test_seeded_construction_is_reproducible(cls, seed):
    def built(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        return list(cls(4, 3, memory_size=5, word_size=3, hidden_size=6).state_dict().values())

    assert all(torch.equal(one, other) for one, other in zip(built(seed), built(seed), strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(built(seed), built(seed + 7), strict=True))


SIZES = [
    "input_size",
    "output_size",
    "hidden_size",
    "num_layers",
    "memory_size",
    "word_size",
    "num_reads",
    "num_writes",
]
WRONG: list[tuple[dict[str, Any], str]] = [
    *(({name: value}, f"{name}: got {value!r}; allowed: greater than or equal to 1") for name in SIZES
      for value in (0, -1)),
    *(({name: value}, f"{name}: got {value!r}; allowed: a valid integer") for name in SIZES
      for value in (2.0, "3", None, True) if not (value is None and name in ("hidden_size", "num_layers"))),
    *(({"clip": value}, f"clip: got {value!r}; allowed: greater than 0") for value in (0, -20.0)),
    *(({"clip": value}, f"clip: got {value!r}; allowed: ") for value in (float("nan"), "20", True)),
    ({"dropout": 1.0}, "dropout: got 1.0; allowed: less than 1"),
    ({"dropout": -0.1}, "dropout: got -0.1; allowed: greater than or equal to 0"),
    ({"recompute_every": 0}, "recompute_every: got 0; allowed: greater than or equal to 1"),
    ({"batch_first": 1}, "batch_first: got 1; allowed: a valid boolean"),
    ({"controller": "transformer"}, "controller.type: got 'transformer'; allowed: automaton, convolution, "),
    ({"controller": "gruu"}, "controller.type: got 'gruu'; did you mean 'gru'? allowed: "),
    ({"controller": None}, "controller: got None; expected a block with a type, such as {type: "),
    ({"controller": {"hidden_size": 6}, "hidden_size": None}, "controller.type: missing; allowed: automaton, "),
    ({"controller": {"type": "gru", "hidden_size": 0}}, "controller.hidden_size: got 0; allowed: greater than or "),
    ({"controller": {"type": "gru", "units": 3}}, "controller.units: unknown option; known here: hidden_size"),
    ({"controller": LSTMController(5, hidden_size=6), "hidden_size": None},
     "controller: its input_size is 5; expected 7"),
    ({"controller": LSTMController(7, hidden_size=6), "hidden_size": None, "clip": -1.0}, "clip: got -1.0"),
    ({"controller": LSTMController(7, hidden_size=6)}, "hidden_size: got 6; the LSTMController that is given has its "),
    ({"controller": {"type": "gru", "hidden_size": 9}}, "hidden_size: got 6; the controller that is given says 9"),
    ({"controller": "direct"}, "hidden_size: got 6; a direct controller has none"),
    ({"controller": "neat", "hidden_size": None, "num_layers": 2}, "num_layers: got 2; a neat controller has none"),
    ({"controller": {"type": "gru", "num_layers": 2}, "hidden_size": None, "num_layers": 3},
     "num_layers: got 3; the controller that is given says 2"),
    ({"backend": "fast"}, "backend: got 'fast'; allowed: auto, "),
]  # fmt: skip
WRONG_NTM: list[tuple[dict[str, Any], str]] = [
    ({"shift_range": -1}, "shift_range: got -1; allowed: greater than or equal to 0"),
    *(({"shift_range": value}, f"shift_range: got {value!r}; allowed: a valid integer")
      for value in (1.5, "1", True, None)),
    ({"memory_init": "zeros"}, "memory_init: got 'zeros'; allowed: 'constant', 'learned' or 'truncated_normal'"),
    ({"weight_init": "last"}, "weight_init: got 'last'; allowed: 'first', 'uniform' or 'learned'"),
    ({"head_init": "here"}, "head_init: got 'here'; allowed: 'parked' or 'uniform'"),
]  # fmt: skip
WRONG_DNC: list[tuple[dict[str, Any], str]] = [
    ({"squash": "sigmoid"}, "squash: got 'sigmoid'; allowed: 'none' or 'tanh'"),
]


@pytest.mark.parametrize(
    ("cls", "wrong", "message"),
    [*((cls, *row) for cls in (NTM, DNC) for row in WRONG), *((NTM, *row) for row in WRONG_NTM),
     *((DNC, *row) for row in WRONG_DNC)],
)  # fmt: skip
def test_wrong_arguments_are_named_with_what_is_allowed(cls, wrong, message):
    arguments = {
        "input_size": 4, "output_size": 3, "hidden_size": 6, "memory_size": 5, "word_size": 3, "num_reads": 1, **wrong
    }  # fmt: skip
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        cls(**arguments)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cls", [NTM, DNC])
def test_sizes_are_given_by_keyword(cls):
    with pytest.raises(TypeError, match=f"{cls.__name__}: got 3 arguments by place; allowed: input_size, output_size"):
        cls(4, 3, "lstm")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"memorysize": 3}, "unknown argument 'memorysize'; did you mean 'memory_size'?"),
        ({"slots_per_read": 3}, "unknown argument 'slots_per_read'; known: input_size, output_size, "),
        ({"accessor": "dynamic"}, "unknown argument 'accessor'; "),
        ({"input_size": 3}, "argument 'input_size' is given twice"),
    ],
)
def test_arguments_that_there_are_not_are_named(wrong, message):
    with pytest.raises(TypeError, match=re.escape(f"NTM: {message}")):
        NTM(4, 3, **wrong)
    with pytest.raises(TypeError, match="NTM: argument 'output_size' is missing"):
        NTM(4)


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_controller_may_be_given_ready_made(name):
    controller = lookup("controller", name)(4 + 2 * 3)
    circuit = NTM(4, 3, controller=controller, memory_size=5, word_size=3, num_reads=2)
    assert circuit.controller is controller
    outputs, _ = circuit(torch.zeros(2, 1, 4))
    assert outputs.shape == (2, 1, 3)


@pytest.mark.parametrize("cls", CIRCUITS)
def test_defaults_of_the_options_are_those_of_the_constructor(cls):
    built, options, arguments = cls(30, 2), cls.Options(), inspect.signature(cls).parameters
    assert built.options == options
    for name in type(options).model_fields.keys() - {"type", "controller", "accessor", "circuit"}:
        assert getattr(options, name) == arguments[name].default == getattr(built, name), name
    others = {name for name, field in fields_of(cls).items() if field.exclude or field.kw_only is False}
    fixed = {name for name, field in fields_of(cls).items() if field.init is False}
    assert set(type(options).model_fields) - {"type"} == set(fields_of(cls)) - others - fixed
    assert set(arguments) == set(fields_of(cls)) - fixed


@pytest.mark.parametrize("cls", CIRCUITS)
def test_every_option_says_what_it_is(cls):
    for name, field in options_of(cls).model_fields.items():
        assert name == "type" or (field.description and "\n" not in field.description), name


def test_gru_and_lstm_hold_their_own_layers():
    assert isinstance(NTM(4, 3, controller="gru").controller, GRUController)
    circuit = DNC(4, 3, controller="lstm", hidden_size=6, num_layers=3, num_reads=1, word_size=3)
    assert [layer.in_features for layer in circuit.controller.inputs] == [7, 6, 6]


def test_standardised_inputs_are_no_tokens():
    with pytest.raises(TypeError, match="unknown argument 'embedding_size'"):
        NormalisedCircuit(5, 2, embedding_size=4)
    with pytest.raises(ValueError, match=r"circuit\.embedding_size: got 4; tokens have no mean, allowed is null"):
        NormalisedCircuit(5, 2, circuit={"type": "ntm", "embedding_size": 4})


def test_a_circuit_behind_statistics_may_have_a_memory_of_another_size():
    circuit = NormalisedCircuit(5, 2, circuit={"type": "ntm"})
    assert circuit.initial_state(3, memory_size=9).accessor.memory.shape[:2] == (3, 9)


@pytest.mark.parametrize("cls", [LSTM, GRU, RecurrentCircuit, NeatCircuit, NTM, DNC, Transformer])
@pytest.mark.parametrize("size", [-1, 0, 2.0, True])
def test_batches_of_no_size_have_no_state(cls, size):
    with pytest.raises(ValueError, match=f"batch_size: got {size}; allowed is a whole number of at least 1"):
        cls(5, 2).initial_state(size)


@pytest.mark.parametrize(
    ("make", "sizes", "allowed"),
    [
        (partial(MemoryCircuit, accessor="delta"), {"memory_size": 9}, "nothing"),
        (partial(MemoryCircuit, accessor="srwm"), {"memory_size": 9}, "nothing"),
        (partial(Transformer, accessor="delta"), {"memory_size": 9}, "nothing"),
        (partial(NormalisedCircuit, circuit="ntm"), {"memorysize": 9}, "memory_size"),
        (partial(NormalisedCircuit, circuit="lstm"), {"memory_size": 9}, "nothing"),
        (partial(RoutedCircuit, circuit="feedforward"), {"memory_size": 9}, "nothing"),
        (NTM, {"memory_size": 5, "memorysize": 9}, "memory_size"),
        (partial(MemoryCircuit, accessor="soft-tape"), {"word_size": 9}, "memory_size, input_length"),
    ],
)
def test_a_size_that_the_memory_does_not_have_is_refused(make, sizes, allowed):
    name = list(sizes)[-1]
    with pytest.raises(ValueError, match=f"^{name}: got 9; allowed beside batch_size: {allowed}$"):
        make(5, 2).initial_state(3, **sizes)


@pytest.mark.parametrize(
    ("kind", "options", "name"),
    [
        ("transformer", {}, "model_size"),
        ("hyper-lstm", {}, "hidden_size"),
        ("hyper-lstm", {}, "hyper_size"),
        ("ctm", {}, "neurons"),
        ("relational", {"num_heads": 1, "gating": "none"}, "head_size"),
        ("srwm", {}, "word_size"),
    ],
)
def test_a_norm_over_one_would_hide_the_inputs(kind, options, name):
    """Of two it hides all but which is larger."""

    def made(size):
        of = {**options, name: size}
        if kind == "transformer":
            return Transformer(3, 2, **of)
        if kind == "srwm":
            return MemoryCircuit(3, 2, controller="direct", accessor={"type": kind, **of})
        return RecurrentCircuit(3, 2, controller={"type": kind, **of})

    with pytest.raises(ValueError, match=rf"{name}: got 1; allowed.* (at least|greater than or equal to) 2"):
        made(1)
    torch.manual_seed(0)
    circuit = made(2)
    x = torch.randn(6, 2, 3)
    seen = [circuit(inputs)[1].reads if kind == "srwm" else circuit(inputs)[0] for inputs in (x, 1 - x)]
    assert not torch.equal(*seen)
    without = {"type": "hyper-lstm", "hidden_size": 1, "hyper_size": 1, "layer_norm": False}
    assert RecurrentCircuit(3, 2, controller=without).controller.hidden_size == 1


def test_a_magnitude_that_is_too_small_is_not_said_to_be_allowed_as_zero_where_zero_is_not():
    with pytest.raises(ValueError, match=r"temperature: got 1e-39; allowed: from 1e-37 to"):
        RecurrentCircuit(5, 2, controller={"type": "automaton", "temperature": 1e-39})
