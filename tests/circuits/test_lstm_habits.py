"""What one is used to of torch.nn.LSTM: every circuit, and every controller with every memory, has it."""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import papertape
from papertape import envs
from papertape.core import registry
from papertape.core.component import options_of
from papertape.core.state import leaves, map_state
from papertape.envs.images import DataError

SIZES = {"memory_size": 7, "word_size": 4, "hidden_size": 6, "num_layers": 2, "max_nodes": 4}
SIZES |= {"hyper_size": 4, "num_heads": 2, "head_size": 3, "neurons": 5}
LENGTHS = [5, 2, 4, 2]


def block(kind: str, name: str) -> dict[str, Any]:
    fields = options_of(registry.lookup(kind, name)).model_fields
    return {"type": name, **{size: value for size, value in SIZES.items() if size in fields}}


def of(name: str) -> Callable[..., papertape.Circuit]:
    def make(**more: Any) -> papertape.Circuit:
        sizes = {size: value for size, value in block("circuit", name).items() if size != "type"}
        circuit: papertape.Circuit = registry.lookup("circuit", name)(3, 2, **sizes, **more)
        return circuit

    return make


def joined(controller: str, accessor: str, **options: Any) -> Callable[..., papertape.Circuit]:
    parts: Any = {"controller": block("controller", controller), "accessor": block("accessor", accessor), **options}
    return lambda **more: papertape.MemoryCircuit(3, 2, **parts, **more)


CONTROLLERS = ("direct", "feedforward", "gru", "lstm", "neat")
ACCESSORS = ("dynamic", "sparse", "static", "tape")
LATER_CONTROLLERS = (
    "automaton",
    "convolution",
    "ctm",
    "hyper-lstm",
    "leaky",
    "plastic",
    "relational",
    "reservoir",
    "rnn",
)
LATER_ACCESSORS = ("attention", "delta", "soft-tape", "srwm", "stack")
"""Those of which each is tried with one partner alone."""
MAKE = {name: of(name) for name in ("ntm", "dnc", "sam", "sdnc", "tape", "feedforward", "neat")}
MAKE |= {name: of(name) for name in ("lstm", "gru", "recurrent", "stack-rnn", "tape-rnn", "transformer")}
MAKE |= {f"{one} with {other}": joined(one, other) for one in CONTROLLERS for other in ACCESSORS}
MAKE |= {f"{one} with static": joined(one, "static") for one in LATER_CONTROLLERS}
MAKE |= {f"lstm with {other}": joined("lstm", other) for other in LATER_ACCESSORS}
MAKE |= {
    f"convolution before {other}": joined("convolution", other, read_feedback=False) for other in ("delta", "attention")
}

each = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
Make = Callable[..., papertape.Circuit]


def seeded(make: Make, seed: int = 0, **more: Any) -> papertape.Circuit:
    torch.manual_seed(seed)
    return make(**more)


def same(state: Any, other: Any) -> None:
    for one, another in zip(leaves(state), leaves(other), strict=True):
        torch.testing.assert_close(one, another, atol=1e-9, rtol=1e-7)


def test_these_are_all_that_there_are() -> None:
    assert {*CONTROLLERS, *LATER_CONTROLLERS} <= set(registry.entries("controller"))
    assert {*ACCESSORS, *LATER_ACCESSORS} <= set(registry.entries("accessor"))


@each
def test_device_and_dtype(make: Make) -> None:
    single, double, meta = seeded(make), seeded(make, dtype=torch.float64), make(device="meta")
    for (name, weight), other in zip(single.named_parameters(), double.parameters(), strict=True):
        assert other.dtype == torch.float64 and torch.equal(weight.double(), other), name
    outputs, state = double(torch.rand(3, 2, 3, dtype=torch.float64))
    kinds = {leaf.dtype for leaf in leaves(state) if leaf.is_floating_point()}
    assert outputs.dtype == torch.float64 and kinds <= {torch.float64}
    assert all(tensor.is_meta for tensor in (*meta.parameters(), *meta.buffers()))
    assert meta(torch.rand(3, 2, 3, device="meta"))[0].shape == (3, 2, 2)


@each
def test_lengths_packed_and_single_sequences_are_each_row_alone(make: Make) -> None:
    """In float64: where a memory sorts or picks, rounding may choose another slot."""
    circuit, first = seeded(make, dtype=torch.float64), seeded(make, dtype=torch.float64, batch_first=True)
    x = torch.rand(6, 4, 3, dtype=torch.float64)
    outputs, state = circuit(x, lengths=LENGTHS)
    for row, length in enumerate(LENGTHS):
        alone, last = circuit(x[:length, row])
        torch.testing.assert_close(outputs[:length, row], alone, atol=1e-9, rtol=1e-7)
        assert not outputs[length:, row].any()
        same(map_state(lambda leaf: leaf[row : row + 1], state), last)  # noqa: B023 (called at once)
    packed = pack_sequence([x[:length, row] for row, length in enumerate(LENGTHS)], enforce_sorted=False)
    answered, last = circuit(packed)
    torch.testing.assert_close(pad_packed_sequence(answered, total_length=6)[0], outputs)
    same(last, state)
    swapped, last = first(x.transpose(0, 1), lengths=torch.tensor(LENGTHS))
    torch.testing.assert_close(swapped.transpose(0, 1), outputs)
    same(last, state)


@each
def test_weights_are_drawn_anew_as_at_construction(make: Make) -> None:
    circuit = seeded(make, 1)
    torch.manual_seed(2)
    circuit.reset_parameters()
    fresh = seeded(make, 2).state_dict()
    for name, weight in circuit.state_dict().items():
        assert torch.equal(weight, fresh[name]), name


@pytest.mark.parametrize(
    "make", [*MAKE.values(), partial(papertape.Tape, 3, 2, tied_bits=True)], ids=[*MAKE, "tape of tied bits"]
)
def test_from_the_meta_device(make: Make) -> None:
    """Emptied and drawn anew, or with weights that are assigned, it computes what the circuit that has them does."""
    reference, x = seeded(make), torch.rand(4, 2, 3)
    expected = reference(x)[0]
    emptied = make(device="meta").to_empty(device="cpu")
    for tensor in (*emptied.parameters(), *emptied.buffers()):
        tensor.detach().fill_(1)  # whatever was there
    emptied.reset_parameters()
    emptied.load_state_dict(reference.state_dict())
    torch.testing.assert_close(emptied(x)[0], expected)
    assigned = make(device="meta")
    assigned.load_state_dict(reference.state_dict(), assign=True)
    torch.testing.assert_close(assigned(x)[0], expected)


@each
def test_a_state_that_is_changed_in_place_leaves_what_was_learned(make: Make) -> None:
    circuit = seeded(make)
    before = copy.deepcopy(circuit.state_dict())
    for batch_size in (1, 2):
        for leaf in leaves(circuit.initial_state(batch_size)):
            with torch.no_grad():
                leaf[:1].fill_(3)
    assert all(torch.equal(weight, before[name]) for name, weight in circuit.state_dict().items())


ALONE = {
    f"{controller} before {accessor}, {backend}": joined(controller, accessor, read_feedback=False, backend=backend)
    for controller, accessor in (("lstm", accessor) for accessor in ACCESSORS + LATER_ACCESSORS)
    for backend in ("auto", "eager")
}
ALONE |= {
    f"{name} alone": partial(papertape.RecurrentCircuit, 3, 2, controller=block("controller", name))
    for name in CONTROLLERS + LATER_CONTROLLERS
}


@pytest.mark.parametrize("make", [*MAKE.values(), *ALONE.values()], ids=[*MAKE, *ALONE])
def test_a_state_keeps_nothing_of_the_sequence_that_it_came_from(make: Make) -> None:
    """Neither in memory, cut off from its graph, nor in what torch.save writes, which is whole storages."""
    circuit = seeded(make)

    def kept(steps: int) -> int:
        _, state = circuit(torch.rand(steps, 2, 3))
        storages = [leaf.untyped_storage() for leaf in leaves(papertape.detach(state))]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    assert kept(24) == kept(12)


@each
def test_types_change_and_states_travel(make: Make) -> None:
    circuit, x = seeded(make), torch.rand(4, 2, 3)
    for kind in (torch.float64, torch.float16, torch.bfloat16):
        outputs, _ = copy.deepcopy(circuit).to(kind)(x.to(kind))
        assert outputs.dtype == kind and outputs.isfinite().all()
    assert copy.deepcopy(circuit).half()(x.half())[0].dtype == torch.float16
    outputs, state = circuit(x)
    other = seeded(make, 5)
    for saved, take in ((circuit.state_dict(), other.load_state_dict), (map_state(Tensor.detach, state), None)):
        file = io.BytesIO()
        torch.save(saved, file)
        file.seek(0)
        loaded = torch.load(file)
        if take is not None:
            take(loaded)
        else:
            torch.testing.assert_close(other(x, loaded)[0], circuit(x, state)[0])
    assert torch.equal(other(x)[0], outputs)
    assert "3, 2" in repr(circuit)


ENVS = {name for name in dir(envs) if name.endswith("Env") and not inspect.isabstract(getattr(envs, name))}


@pytest.mark.parametrize("name", sorted(ENVS - {"ImagesEnv", "LettersEnv"}))
def test_a_task_needs_no_arguments(name: str) -> None:
    try:
        env = getattr(envs, name)()
    except DataError as error:  # of images that are neither here nor to be had
        pytest.skip(str(error))
    assert env.input_size >= 1 and env.output_size >= 1


@pytest.mark.parametrize("name", papertape.__all__)
def test_public_names_are_there(name: str) -> None:
    assert getattr(papertape, name)
