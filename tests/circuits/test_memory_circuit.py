"""Any controller with any memory, chosen by options; and what every circuit has as every module of torch has it."""

from __future__ import annotations

import io
import logging
import re
from typing import Any

import pytest
import torch

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
    RecurrentCircuit,
    StackRNN,
    Tape,
    TapeRNN,
    Transformer,
)
from papertape.core.component import options_of
from papertape.core.controllers import GRUController
from papertape.core.kernels import dispatch
from papertape.core.registry import lookup
from papertape.core.state import leaves, map_state

CONTROLLERS: dict[str, dict[str, Any]] = {
    "lstm": {"hidden_size": 6, "num_layers": 2},
    "gru": {"hidden_size": 6},
    "feedforward": {"hidden_size": 6},
    "neat": {"hidden_size": 6, "max_nodes": 3},
    "direct": {},
    "rnn": {"hidden_size": 6, "nonlinearity": "relu"},
    "convolution": {"hidden_size": 6},
    "automaton": {"hidden_size": 6, "num_states": 3},
}
ACCESSORS: dict[str, dict[str, Any]] = {
    "static": {"num_reads": 2, "memory_init": "learned", "weight_init": "learned"},
    "dynamic": {"num_reads": 2},
    "sparse": {"num_reads": 2, "slots_per_read": 2, "links_per_slot": 2},
    "tape": {},
    "stack": {"num_stacks": 2},
    "soft-tape": {"num_tapes": 2, "write_layers": [4]},
    "delta": {"num_heads": 2, "key_size": 4, "value_size": 3, "decay": True, "num_rules": 2},
    "srwm": {"num_heads": 2, "word_size": 4},
    "attention": {"num_heads": 2, "key_size": 4, "value_size": 3},
}
SIZES = {"memory_size": 5, "word_size": 3}
CIRCUITS: dict[str, tuple[type, dict[str, Any]]] = {
    **{cls.__name__: (cls, SIZES) for cls in (NTM, DNC, SAM, SDNC, Tape, StackRNN, TapeRNN)},
    **{cls.__name__: (cls, {}) for cls in (LSTM, GRU, RecurrentCircuit, Transformer)},
    "DeltaNet": (Transformer, {"controller": "convolution", "accessor": "delta"}),
    "NTM learned": (NTM, {**SIZES, "memory_init": "learned", "weight_init": "learned"}),
    "NTM drawn": (NTM, {**SIZES, "memory_init": "truncated_normal", "head_init": "uniform"}),
    "Tape tied": (Tape, {**SIZES, "tied_bits": True}),
    "feedforward": (FeedForwardCircuit, {}),
    "neat": (NeatCircuit, {}),
    **{f"NTM {name}": (NTM, {**SIZES, "controller": name}) for name in CONTROLLERS},
}
every_circuit = pytest.mark.parametrize("name", CIRCUITS)


def made(name: str, seed: int = 0, **more: Any) -> Any:
    cls, options = CIRCUITS[name]
    torch.manual_seed(seed)
    return cls(3, 2, **options, **more)


def combined(controller: str, accessor: str, **more: Any) -> MemoryCircuit:
    torch.manual_seed(0)
    known = options_of(lookup("accessor", accessor)).model_fields
    sizes = {name: size for name, size in SIZES.items() if name in known}
    return MemoryCircuit(
        4,
        2,
        controller={"type": controller, **CONTROLLERS[controller]},
        accessor={"type": accessor, **sizes, **ACCESSORS[accessor]},
        **more,
    )


def saved_and_loaded(what: Any) -> Any:
    file = io.BytesIO()
    torch.save(what, file)
    file.seek(0)
    return torch.load(file)


@pytest.mark.parametrize("accessor", ACCESSORS)
@pytest.mark.parametrize("controller", CONTROLLERS)
def test_any_controller_drives_any_memory(controller, accessor):
    circuit, inputs = combined(controller, accessor), torch.randn(7, 3, 4)
    outputs, last = circuit(inputs)
    assert outputs.shape == (7, 3, 2) and torch.isfinite(outputs).all()
    assert outputs.std() > 0
    assert outputs.requires_grad == circuit.differentiable == (accessor != "tape")

    first, state = circuit(inputs[:3])
    second, end = circuit(inputs[3:], saved_and_loaded(map_state(torch.detach, state)))
    torch.testing.assert_close(torch.cat([first, second]), outputs)
    assert type(saved_and_loaded(map_state(torch.detach, last))) is type(last)
    map_state(lambda one, other: torch.testing.assert_close(one, other) or one, end, last)

    circuit.backend = "eager"
    torch.testing.assert_close(circuit(inputs)[0], outputs, rtol=1e-4, atol=1e-5)
    if circuit.differentiable:
        circuit(inputs)[0].square().sum().backward()
        parts = {name.split(".")[0] for name, part in circuit.named_parameters() if part.grad.any()}
        assert parts == {"controller", "accessor", "output"} - ({"controller"} if controller == "direct" else set())
        assert all(torch.isfinite(part.grad).all() for part in circuit.parameters())


@pytest.mark.parametrize(
    ("cls", "accessor"),
    [
        (NTM, {"type": "static"}),
        (DNC, {"type": "dynamic"}),
        (SAM, {"type": "sparse"}),
        (SDNC, {"type": "sparse", "links_per_slot": 8}),
        (Tape, {"type": "tape"}),
    ],
)
def test_a_circuit_with_a_name_is_a_controller_and_a_memory(cls, accessor):
    torch.manual_seed(0)
    named = cls(3, 2)
    torch.manual_seed(0)
    controller = dict(named.options.controller)
    general = MemoryCircuit(3, 2, controller=controller, accessor=accessor)
    assert type(named.accessor) is type(general.accessor)
    assert named.accessor.specification() == general.accessor.specification()
    inputs = torch.rand(3, 2, 3)
    assert torch.equal(named(inputs)[0], general(inputs)[0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"accessor": "dynamc"}, "accessor.type: got 'dynamc'; did you mean 'dynamic'?"),
        ({"accessor": {"memory_size": 5}}, "accessor.type: missing; allowed: "),
        ({"accessor": {"type": "static", "memory_size": 0}}, "accessor.memory_size: got 0; allowed: greater than or "),
        ({"accessor": {"type": "static", "slots_per_read": 2}}, "accessor.slots_per_read: unknown option; "),
        ({"accessor": {"type": "sparse", "num_writes": 2, "links_per_slot": 1}}, "accessor.num_writes: got 2; "),
        ({"accessor": {"type": "sparse", "num_writes": 9, "memory_size": 4}}, "accessor.memory_size: got 4; "),
        ({"controller": GRUController(9), "accessor": "static"}, "controller: its input_size is 9; expected 23"),
    ],
)
def test_what_does_not_fit_is_named(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MemoryCircuit(3, 2, **wrong)


def test_an_accessor_may_be_given_ready_made():
    memory = DNC(3, 2, hidden_size=6, **SIZES).accessor
    circuit = MemoryCircuit(3, 2, hidden_size=6, accessor=memory)
    assert circuit.accessor is memory and circuit(torch.rand(2, 1, 3))[0].shape == (2, 1, 2)
    with pytest.raises(ValueError, match="accessor: its hidden_size is 6; expected 7, the controller's"):
        MemoryCircuit(3, 2, hidden_size=7, accessor=memory)


def test_sizes_beside_the_name_of_a_controller_are_its_own():
    circuit = NTM(3, 2, controller="gru", hidden_size=9, num_layers=2, dropout=0.25, **SIZES)
    assert circuit.options.controller == GRUController.Options(hidden_size=9, num_layers=2, dropout=0.25)
    assert (circuit.controller.hidden_size, circuit.hidden_size, circuit.controller.dropout) == (9, 9, 0.25)
    again = NTM(3, 2, controller={"type": "gru", "hidden_size": 9, "num_layers": 2, "dropout": 0.25}, **SIZES)
    assert again.options == circuit.options
    assert NTM(3, 2, controller={"type": "gru"}, hidden_size=9, **SIZES).hidden_size == 9
    assert NTM(3, 2, **SIZES).hidden_size == 100 and DNC(3, 2, **SIZES).hidden_size == 256
    with pytest.raises(ValueError, match="hidden_size: got 500; the GRUController that is given has its own"):
        NTM(3, 2, controller=again.controller, hidden_size=500, **SIZES)


# ---- as torch.nn ---------------------------------------------------------------------------------------------------


@every_circuit
def test_type_and_device_are_given_to_the_constructor(name):
    built, expected = made(name, dtype=torch.float64), made(name).double()
    for (key, one), other in zip(built.state_dict().items(), expected.state_dict().values(), strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other), key
    outputs, state = built(torch.rand(2, 1, 3, dtype=torch.float64))
    assert outputs.dtype == torch.float64
    assert {leaf.dtype for leaf in leaves(state)} <= {torch.float64, torch.int64, torch.bool}
    nowhere = made(name, device="meta")
    assert {part.device.type for part in (*nowhere.parameters(), *nowhere.buffers())} == {"meta"}
    assert {leaf.device.type for leaf in leaves(nowhere.initial_state(2))} <= {"meta"}
    assert "device" not in vars(built) and "dtype" not in vars(built), "they would not follow what .to does later"


@every_circuit
def test_weights_are_drawn_anew(name):
    circuit = made(name, dtype=torch.float64)
    before = {key: value.clone() for key, value in circuit.state_dict().items()}
    constant = {key for key, value in before.items() if torch.equal(value, made(name, seed=1).state_dict()[key])}
    places = {key: parameter.data_ptr() for key, parameter in circuit.named_parameters()}

    def redrawn(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        circuit.reset_parameters()
        return {key: value.clone() for key, value in circuit.state_dict().items()}

    once, again, other = redrawn(1), redrawn(1), redrawn(2)
    assert {key: parameter.data_ptr() for key, parameter in circuit.named_parameters()} == places
    for key, value in before.items():
        assert once[key].dtype == value.dtype and torch.equal(once[key], again[key]), key
        assert torch.equal(once[key], value) == torch.equal(once[key], other[key]) == (key in constant), key


@pytest.mark.parametrize("cls", [NTM, DNC, SAM])
def test_weights_drawn_anew_are_drawn_as_at_first(cls):
    """Ranges and means over some seeds; parked heads stay parked."""
    built, redrawn = [], []
    for seed in range(8):
        torch.manual_seed(seed)
        circuit = cls(3, 2, hidden_size=30, **SIZES)
        built.append({name: value.detach().clone() for name, value in circuit.named_parameters()})
        circuit.reset_parameters()
        redrawn.append({name: value.detach().clone() for name, value in circuit.named_parameters()})
    for name in built[0]:
        first, second = (torch.stack([one[name] for one in drawn]) for drawn in (built, redrawn))
        spread = first.std().item()
        assert second.std().item() == pytest.approx(spread, rel=0.35), name
        assert second.mean().item() == pytest.approx(first.mean().item(), abs=5 * spread / first.numel() ** 0.5), name
        assert second.abs().max() <= 1.2 * first.abs().max(), name


def test_weights_that_nobody_draws_are_named():
    class Scaled(NTM):
        def setup(self) -> None:
            super().setup()
            self.scale = torch.nn.Parameter(torch.ones(()))

    with pytest.raises(TypeError, match=r"Scaled: has weights of its own \(scale\) and no reset_parameters"):
        Scaled(3, 2, **SIZES).reset_parameters()


@every_circuit
def test_it_shows_itself_as_a_module_does(name):
    first = repr(made(name, batch_first=True)).splitlines()[0]
    assert first.startswith(f"{CIRCUITS[name][0].__name__}(")
    shown = repr(made(name, batch_first=True))
    assert "3, 2, batch_first=True" in shown
    assert "batch_first" not in repr(made(name))
    if isinstance(made(name), MemoryCircuit):
        assert "clip=20.0, backend='auto'" in shown


# ---- dropout -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("controller", ["lstm", "gru", "feedforward"])
def test_with_dropout_it_trains_by_eager_and_says_so_and_runs_natively_after(controller, caplog):
    dispatch._warn_of_slowness.cache_clear()
    torch.manual_seed(0)
    circuit, inputs = NTM(3, 2, controller=controller, num_layers=2, dropout=0.5, **SIZES), torch.rand(4, 2, 3)
    with caplog.at_level(logging.WARNING, dispatch.__name__):
        first, second = circuit(inputs)[0], circuit(inputs)[0]
        assert circuit.chosen_backend == "eager" and not torch.equal(first, second)
        assert len(caplog.records) == 1 and "dropout=0.5" in caplog.messages[0]
        circuit.eval()
        evaluated = circuit(inputs)[0]
        assert circuit.chosen_backend == "native" and torch.equal(circuit(inputs)[0], evaluated)
        circuit.backend = "eager"
        torch.testing.assert_close(circuit(inputs)[0], evaluated)
        circuit.backend = "auto"
        circuit.train()
        circuit(inputs)[0].sum().backward()
        assert circuit.chosen_backend == "eager"
    assert len(caplog.records) == 1


def test_dropout_leaves_out_a_share_of_what_layers_but_the_last_hand_on():
    torch.manual_seed(0)
    controller = GRUController(3, hidden_size=4000, num_layers=2, dropout=0.3)
    with torch.no_grad():
        controller.inputs[1].weight.zero_()
    handed_on = []
    controller.inputs[1].register_forward_pre_hook(lambda _, arguments: handed_on.append(arguments[0]))
    hidden, state = controller(torch.rand(1, 3), controller.initial_state(1))
    left_out = handed_on[0] == 0
    assert left_out.double().mean().item() == pytest.approx(0.3, abs=0.03)
    torch.testing.assert_close(handed_on[0][~left_out], (state.hidden[:, 0] / 0.7)[~left_out])
    assert (state.hidden != 0).all() and (hidden != 0).all(), "states and the last layer are whole"
