"""Changes of structure: what they must not change, what follows them, and what they refuse."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune, spectral_norm

import papertape
from papertape.agents.evaluation import load_weights, weights_of
from papertape.circuits import FeedForwardCircuit
from papertape.core.accessors import StaticAccessor
from papertape.core.circuit import Circuit
from papertape.core.kernels.dispatch import BackendError
from papertape.core.state import leaves
from papertape.core.structure import (
    FRESH,
    LARGEST_SHARE,
    Change,
    Edit,
    Layer,
    LayerEdit,
    deepened,
    describe,
    follow,
    follow_optimiser,
    follow_units,
    groups,
    narrowed,
    replaced,
    select,
    shallower,
    unchanged,
    widened,
)

INPUTS, OUTPUTS = 5, 3
MEMORY: dict[str, dict[str, Any]] = {
    "ntm": {"memory_size": 7, "word_size": 4, "num_reads": 2},
    "dnc": {"memory_size": 7, "word_size": 4, "num_reads": 2},
    "sam": {"memory_size": 12, "word_size": 4, "num_reads": 2, "slots_per_read": 2},
    "sdnc": {"memory_size": 12, "word_size": 4, "num_reads": 2, "slots_per_read": 2, "links_per_slot": 3},
    "tape-rnn": {"memory_size": 7, "word_size": 4, "num_tapes": 2, "write_layers": [4]},
}
CLASSES = {
    "ntm": papertape.NTM,
    "dnc": papertape.DNC,
    "sam": papertape.SAM,
    "sdnc": papertape.SDNC,
    "tape-rnn": papertape.TapeRNN,
}
CASES = [*[(name, "lstm") for name in MEMORY], ("ntm", "gru"), ("ntm", "feedforward"), ("dnc", "gru")]
CASES += [("feedforward", activation) for activation in ("tanh", "relu", "sigmoid", "gelu")]
BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-6}


def made(
    name: str, inside: str, layers: int = 2, *, dtype: torch.dtype = torch.float64, backend: str = "auto"
) -> Circuit:
    """A circuit with layers of 4 units; ``inside`` is its controller or its activation."""
    torch.manual_seed(1)
    if name == "feedforward":
        options: dict[str, Any] = {"hidden_sizes": [4] * layers, "activation": inside}
        return FeedForwardCircuit(INPUTS, OUTPUTS, **options).to(dtype)
    options = {"controller": inside, "hidden_size": 4, "num_layers": layers, "backend": backend, **MEMORY[name]}
    return CLASSES[name](INPUTS, OUTPUTS, **options).to(dtype)


def drawn(steps: int = 7, batch: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(steps, batch, INPUTS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )


def preserving(data: st.DataObject, circuit: Circuit) -> tuple[LayerEdit, ...]:
    """Some edits that must change no output."""
    structure = circuit.structure()
    kind = data.draw(st.sampled_from(["widen", "split", "deepen", "permute"]))
    if kind == "deepen":
        above = data.draw(st.integers(0, len(structure) - 1))
        return deepened(structure, above, residual=circuit.fresh_residual)
    joint = groups(structure)
    chosen = range(len(joint)) if circuit.uniform else [data.draw(st.integers(0, len(joint) - 1))]
    count = data.draw(st.integers(1, 3))
    if kind == "widen":
        parents = {
            group: data.draw(
                st.lists(st.integers(FRESH, structure[joint[group][0]].size - 1), min_size=count, max_size=count)
            )
            for group in chosen
        }
        return widened(structure, parents)
    edits = list(unchanged(structure))
    for group in chosen:
        units = edits[joint[group][0]].units
        more = [data.draw(st.sampled_from(units)) for _ in range(count)] if kind == "split" else []
        order = tuple(data.draw(st.permutations([*units, *more])))
        for layer in joint[group]:
            edits[layer] = edits[layer]._replace(units=order)
    return tuple(edits)


@settings(max_examples=12, deadline=None)
@given(data=st.data(), case=st.sampled_from(CASES), dtype=st.sampled_from(list(BOUNDS)), layers=st.integers(1, 2))
def test_what_is_added_changes_no_output_and_no_carried_state(data, case, dtype, layers) -> None:
    circuit = made(*case, layers, dtype=dtype)
    inputs, generator = drawn(dtype=dtype), torch.Generator().manual_seed(3)
    expected, last = circuit(inputs)
    _, carried = circuit(inputs[:3])
    for _ in range(data.draw(st.integers(1, 4))):
        change = circuit.edit(preserving(data, circuit), generator=generator)
        carried = circuit.follow(change, carried)
        last = circuit.follow(change, last)
        whole, _ = circuit(inputs)
        rest, state = circuit(inputs[3:], carried)
        torch.testing.assert_close(whole, expected, rtol=0, atol=BOUNDS[dtype])
        torch.testing.assert_close(rest, expected[3:], rtol=0, atol=BOUNDS[dtype])
    if hasattr(last, "accessor"):
        for found, wanted in zip(
            [state.reads, *leaves(state.accessor)], [last.reads, *leaves(last.accessor)], strict=True
        ):
            torch.testing.assert_close(found, wanted, rtol=0, atol=BOUNDS[dtype])


@pytest.mark.parametrize("case", CASES)
def test_units_that_were_there_carry_on_as_before(case: tuple[str, str]) -> None:
    circuit = made(*case)
    inputs = drawn()
    _, before = circuit(inputs)
    wide = widened(circuit.structure(), {0: [FRESH, 1], 1: [FRESH, 2]})
    circuit.edit(wide, generator=torch.Generator().manual_seed(0))
    circuit.edit(deepened(circuit.structure(), 0, residual=circuit.fresh_residual))
    _, after = circuit(inputs)
    for found, wanted in zip(leaves(after), leaves(before), strict=True):
        if found.shape != wanted.shape:  # the hidden and the cell state, [B, L, H]
            found = found[:, [0, 2], :4]
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", [("ntm", "lstm"), ("ntm", "gru"), ("ntm", "feedforward"), ("feedforward", "tanh")])
def test_moments_and_masks_follow_units_that_change_places(case: tuple[str, str]) -> None:
    """Learning goes on as if nothing had happened, which it does only if all moments are with their weights."""
    left, right = made(*case), made(*case)
    optimisers = [torch.optim.Adam(circuit.parameters(), 1e-2) for circuit in (left, right)]
    masks = {name: (torch.rand_like(part) > 0.3).double() for name, part in left.named_parameters()}
    both = [masks, dict(masks)]

    def step(index: int, circuit: Circuit, seed: int) -> None:
        optimisers[index].zero_grad()
        circuit(drawn(seed=seed))[0].square().sum().backward()
        for name, parameter in circuit.named_parameters():
            if parameter.grad is not None:
                parameter.grad *= both[index][name]
        optimisers[index].step()

    for seed in range(3):
        step(0, left, seed)
        step(1, right, seed)
    edits = (LayerEdit(0, (2, 0, 3, 1)), LayerEdit(1, (1, 3, 2, 0)))
    change = right.edit(edits)
    follow_optimiser(change, optimisers[1])
    both[1] = follow(change, both[1], "one")
    for seed in range(3, 6):
        step(0, left, seed)
        step(1, right, seed)
    torch.testing.assert_close(right(drawn())[0], left(drawn())[0], rtol=0, atol=1e-12)
    right.edit((LayerEdit(0, (1, 3, 0, 2)), LayerEdit(1, (3, 0, 2, 1))))  # back
    for name, parameter in left.named_parameters():
        torch.testing.assert_close(right.get_parameter(name), parameter, rtol=0, atol=1e-12)


def slow_select(tensor: Any, dimension: int, sources: tuple[int, ...], fill: float) -> Any:
    """By plain loops over nested lists."""
    if dimension == 0:

        def filled(part: Any) -> Any:
            return [filled(inner) for inner in part] if isinstance(part, list) else fill

        return [filled(tensor[0]) if source == FRESH else tensor[source] for source in sources]
    return [slow_select(part, dimension - 1, sources, fill) for part in tensor]


@settings(max_examples=30, deadline=None)
@given(data=st.data(), shape=st.lists(st.integers(1, 4), min_size=1, max_size=3), fill=st.sampled_from([0.0, 2.5]))
def test_rows_come_from_where_edits_say(data: st.DataObject, shape: list[int], fill: float) -> None:
    tensor = torch.arange(float(np.prod(shape))).view(shape)
    dimension = data.draw(st.integers(0, len(shape) - 1))
    sources = tuple(data.draw(st.lists(st.integers(FRESH, shape[dimension] - 1), min_size=1, max_size=5)))
    found = select(tensor, [Edit(dimension, sources)], fill)
    assert found.tolist() == slow_select(tensor.tolist(), dimension, sources, fill)


def changed(circuit: Circuit) -> tuple[Change, torch.optim.Optimizer]:
    optimiser = torch.optim.Adam(circuit.parameters(), 1e-2, fused=True)
    circuit(drawn())[0].square().sum().backward()
    optimiser.step()
    return circuit.edit(widened(circuit.structure(), {0: [FRESH, 1]})), optimiser


def test_new_entries_of_moments_are_zero_and_of_squares_the_mean() -> None:
    circuit = made("feedforward", "tanh", 1)
    old = dict(circuit.named_parameters())
    change, optimiser = changed(circuit)
    before = {name: dict(optimiser.state[parameter]) for name, parameter in old.items()}
    follow_optimiser(change, optimiser)
    assert all(parameter in optimiser.state for parameter in circuit.parameters())
    for name, fresh in (("layers.0.weight", (slice(4, 6),)), ("layers.1.weight", (slice(None), slice(4, 6)))):
        state, then = optimiser.state[circuit.get_parameter(name)], before[name]
        assert bool((state["exp_avg"][fresh] == 0).all())
        assert torch.equal(
            state["exp_avg_sq"][fresh], torch.full_like(state["exp_avg_sq"][fresh], float(then["exp_avg_sq"].mean()))
        )
        kept = (slice(0, 4),) if name == "layers.0.weight" else (slice(None), slice(0, 4))
        assert torch.equal(state["exp_avg_sq"][kept], then["exp_avg_sq"])
        assert torch.equal(state["exp_avg"][kept], then["exp_avg"])
        assert float(state["step"]) == 1


def test_an_optimiser_that_does_not_follow_moves_nothing_that_was_edited() -> None:
    circuit = made("feedforward", "tanh", 1)
    change, optimiser = changed(circuit)
    optimiser.zero_grad()
    circuit(drawn())[0].square().sum().backward()
    kept = copy.deepcopy(circuit.state_dict())
    optimiser.step()
    assert all(torch.equal(circuit.state_dict()[name], kept[name]) for name in kept)
    follow_optimiser(change, optimiser)
    optimiser.step()
    assert not torch.equal(circuit.state_dict()["layers.0.weight"], kept["layers.0.weight"])


@pytest.mark.parametrize(("kind", "key"), [("Adafactor", "row_var"), ("LBFGS", "d")])
def test_an_optimiser_of_other_shapes_is_refused_and_left_as_it_was(kind: str, key: str) -> None:
    circuit = made("feedforward", "tanh", 1)
    optimiser, unused = (getattr(torch.optim, kind)(circuit.parameters()) for _ in range(2))

    def loss() -> Any:
        circuit.zero_grad()
        found = circuit(drawn())[0].square().sum()
        found.backward()
        return found.detach()

    optimiser.step(loss)
    known = len(optimiser.state)
    change = circuit.edit(widened(circuit.structure(), {0: [FRESH]}))
    message = rf"optimiser: has '{key}' of shape \[.*\] for layers.0.weight, .*; allowed are .* shape, \[4, 5\]"
    with pytest.raises(ValueError, match=message):
        follow_optimiser(change, optimiser)
    assert len(optimiser.state) == known
    follow_optimiser(change, unused)
    before = loss()
    unused.step(loss)
    assert loss() != before, "what has gathered nothing moves the parameters of now"


def test_an_optimiser_that_has_missed_a_change_is_refused() -> None:
    circuit = made("feedforward", "tanh", 1)
    optimiser = torch.optim.Adam(circuit.parameters())
    circuit(drawn())[0].square().sum().backward()
    optimiser.step()
    circuit.edit(widened(circuit.structure(), {0: [FRESH]}))
    optimiser.param_groups[0]["params"] = [*circuit.parameters()]
    change = circuit.edit(widened(circuit.structure(), {0: [FRESH]}))
    with pytest.raises(ValueError, match=r"optimiser: has a parameter of shape \[4, 5\] that the circuit had not"):
        follow_optimiser(change, optimiser)


def test_what_follows() -> None:
    circuit = made("feedforward", "tanh", 2)
    anchors = {name: parameter.detach().clone() for name, parameter in circuit.named_parameters()}
    change = circuit.edit(widened(circuit.structure(), {0: [2]}))
    followed = follow(change, anchors, "parameter")
    assert {name: tuple(part.shape) for name, part in followed.items()} == {
        name: tuple(part.shape) for name, part in circuit.named_parameters()
    }
    assert torch.equal(followed["layers.0.weight"], circuit.get_parameter("layers.0.weight"))
    assert follow(change, anchors, "one")["layers.1.weight"][:, 4].tolist() == [1] * 4
    ages = follow_units(change, [torch.arange(4.0), torch.arange(4.0)], fill=-5)
    assert [part.tolist() for part in ages] == [[0, 1, 2, 3, -5], [0, 1, 2, 3]]
    change = circuit.edit(deepened(circuit.structure(), 0))
    assert [part.tolist() for part in follow_units(change, ages)] == [[0, 1, 2, 3, -5], [0] * 5, [0, 1, 2, 3]]
    moved = follow(change, followed, "zero")
    assert torch.equal(moved["layers.2.weight"], followed["layers.1.weight"])
    assert moved["layers.1.weight"].tolist() == [[0] * 5] * 5
    with pytest.raises(ValueError, match=r"layers\.0\.weight: got shape \[1\]; its parameter had"):
        follow(change, {"layers.0.weight": torch.zeros(1)})


@pytest.mark.parametrize("case", CASES)
def test_a_unit_that_others_determine_is_removed_without_a_trace(case: tuple[str, str]) -> None:
    circuit = made(*case)
    inputs = drawn()
    expected, _ = circuit(inputs)
    structure = circuit.structure()
    edits = tuple(edit._replace(units=(*edit.units, 1, 2)) for edit in unchanged(structure))
    circuit.edit(edits)  # twins
    circuit.edit(narrowed(circuit.structure(), {0: [1, 5], 1: [2, 4]}), inputs=drawn(40, 8, seed=4))
    assert [layer.size for layer in circuit.structure()] == [4, 4]
    torch.testing.assert_close(circuit(inputs)[0], expected, rtol=0, atol=1e-5)


def test_units_that_hardly_differ_are_not_told_apart_by_large_weights() -> None:
    """The difference of two near twins gives any small residue, if its weight is large enough; on other inputs not."""
    torch.manual_seed(0)
    circuit = FeedForwardCircuit(3, 1, hidden_sizes=[12]).double()
    with torch.no_grad():
        first = circuit.layers[0].weight
        first[1:6] = first[0] + 1e-3 * torch.randn(5, 3)
        circuit.layers[0].bias[1:6] = circuit.layers[0].bias[0]
    inputs = torch.randn(1, 40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before = float(circuit.layers[1].weight.detach().abs().max())
    circuit.edit(narrowed(circuit.structure(), {0: [7, 9, 11]}), inputs)
    assert float(circuit.layers[1].weight.detach().abs().max()) < before * (1 + 3 * LARGEST_SHARE)
    assert bool(circuit(100 * inputs)[0].isfinite().all())


def test_removal_is_least_squares() -> None:
    """Against NumPy's own, for the output layer of a network with one hidden layer."""
    circuit = made("feedforward", "tanh", 1)
    inputs = drawn(30, 4)
    hidden = torch.tanh(circuit.layers[0](inputs)).flatten(0, 1).detach().numpy()  # type: ignore[operator]
    weight, bias = (parameter.detach().numpy().copy() for parameter in circuit.layers[1].parameters())
    circuit.edit(narrowed(circuit.structure(), {0: [2]}), inputs=inputs)
    kept = np.concatenate([hidden[:, [0, 1, 3]], np.ones((120, 1))], axis=1)
    fit = np.linalg.lstsq(kept, hidden[:, 2], rcond=None)[0]
    now, constant = (parameter.detach().numpy() for parameter in circuit.layers[1].parameters())
    np.testing.assert_allclose(now, weight[:, [0, 1, 3]] + weight[:, [2]] * fit[:3], atol=1e-6)
    np.testing.assert_allclose(constant, bias + weight[:, 2] * fit[3], atol=1e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layer", [0, 1])
def test_a_layer_is_removed_with_less_harm_by_what_it_did(case: tuple[str, str], layer: int) -> None:
    circuit = made(*case)
    inputs = drawn(20, 8)
    expected, _ = circuit(inputs)
    worse = copy.deepcopy(circuit)
    change = circuit.edit(shallower(circuit.structure(), layer), inputs=inputs)
    assert len(circuit.structure()) == 1
    error = (circuit(inputs)[0] - expected).square().mean()
    worse.restructure([Layer(4)])
    assert error < 0.5 * (worse(inputs)[0] - expected).square().mean()
    assert {name for name, _ in circuit.named_parameters()} == set(change.new)


@settings(max_examples=15, deadline=None)
@given(data=st.data(), case=st.sampled_from(CASES))
def test_any_sequence_of_edits_leaves_a_circuit_that_learns_saves_and_loads(data: st.DataObject, case) -> None:
    circuit = made(*case)
    optimiser = torch.optim.Adam(circuit.parameters(), 1e-3)
    generator, inputs = torch.Generator().manual_seed(0), drawn(4)
    for _ in range(data.draw(st.integers(1, 5))):
        structure = circuit.structure()
        joint = groups(structure)
        least = min(layer.size for layer in structure)
        kinds = ["add", *(["narrow", "replace"] if least > 1 else [])]
        removable = [index for index, layer in enumerate(structure) if layer.residual or [index] in joint]
        kinds += ["shallower"] if len(structure) > 1 and removable else []
        kind = data.draw(st.sampled_from(kinds))
        chosen = range(len(joint)) if circuit.uniform else [data.draw(st.integers(0, len(joint) - 1))]
        unit = st.integers(0, least - 1)
        if kind == "add":
            edits = preserving(data, circuit)
        elif kind == "narrow":
            edits = narrowed(structure, {group: [data.draw(unit)] for group in chosen})
        elif kind == "replace":
            edits = replaced(structure, {group: {data.draw(unit): data.draw(unit)} for group in chosen})
        else:
            edits = shallower(structure, data.draw(st.sampled_from(removable)))
        optimiser.zero_grad()
        circuit(inputs)[0].square().sum().backward()
        optimiser.step()
        change = circuit.edit(edits, inputs=drawn(8, 4), generator=generator)
        follow_optimiser(change, optimiser)
        assert {id(parameter) for parameter in optimiser.param_groups[0]["params"]} == set(
            map(id, circuit.parameters())
        )
        for parameter, state in optimiser.state.items():
            assert state["exp_avg"].shape == state["exp_avg_sq"].shape == parameter.shape
        assert tuple(Layer(len(edit.units), edit.residual) for edit in edits) == circuit.structure()
        again = made(*case)
        load_weights(again, weights_of(circuit))
        assert torch.equal(again(inputs)[0], circuit(inputs)[0])
    load_weights(circuit, weights_of(made(*case)))
    assert torch.equal(circuit(inputs)[0], made(*case)(inputs)[0])


def test_states_from_before_are_refused_and_those_that_follow_are_not() -> None:
    circuit = made("ntm", "lstm", 1)
    _, state = circuit(drawn())
    change = circuit.edit(widened(circuit.structure(), {0: [FRESH]}))
    with pytest.raises(
        ValueError, match=r"state\.controller\.hidden: got shape \[B, 1, 4\]; this circuit has \[B, 1, 5\]"
    ):
        circuit(drawn(), state)
    circuit(drawn(), circuit.follow(change, state))


@pytest.mark.parametrize("inside", ["lstm", "gru", "feedforward"])
def test_kernels_run_widened_circuits_and_step_aside_from_residual_layers(inside: str) -> None:
    circuit = made("ntm", inside, backend="native")
    try:
        circuit(drawn())
    except BackendError as error:
        pytest.skip(str(error))
    slow = made("ntm", inside, backend="eager")
    for one in (circuit, slow):
        one.edit(widened(one.structure(), {0: [0, 1], 1: [FRESH, 2]}), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(circuit(drawn())[0], slow(drawn())[0])
    (found, _), (wanted, _) = (one.step(drawn()[0], one.initial_state(3)) for one in (circuit, slow))
    torch.testing.assert_close(found, wanted)
    circuit.edit(deepened(circuit.structure(), 1))
    with pytest.raises(BackendError, match="does not know the option residual"):
        circuit(drawn())


def test_options_say_what_the_circuit_is_like_now() -> None:
    circuit = made("ntm", "lstm", 1)
    circuit.edit(widened(circuit.structure(), {0: [FRESH]}))
    assert (circuit.hidden_size, circuit.controller.options.hidden_size, circuit.options.controller.hidden_size) == (
        5,
        5,
        5,
    )
    assert describe(circuit.structure()) == "5"
    layered = made("feedforward", "tanh", 1)
    layered.edit(widened(layered.structure(), {0: [FRESH]}))
    layered.edit(deepened(layered.structure(), 0))
    assert layered.options.hidden_sizes == [5, 5]
    assert describe(layered.structure()) == "5 + 5"


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ((), "layers: got none; at least one"),
        (3, "layers: got 3; expected a LayerEdit for each layer"),
        ((3,), r"layers: got \(3,\); expected a LayerEdit for each layer"),
        ((LayerEdit(0, ()),), r"layers\[0\]\.units: got none"),
        ((LayerEdit(2, (0,)),), r"layers\[0\]\.source: got layer 2; allowed: 0 to 1, or -1"),
        ((LayerEdit(1, (0,)), LayerEdit(0, (0,))), r"layers\[1\]\.source: got layer 0 after layer 1; allowed is"),
        ((LayerEdit(0, (0, 4)),), r"layers\[0\]: got unit 4; allowed: 0 to 3"),
        ((LayerEdit(0, (0, 1), residual=True),), r"layers\[0\]\.residual: got True"),
        ((LayerEdit(FRESH, (FRESH,)),), r"layers\[0\]\.source: got a fresh layer"),
        ((LayerEdit(0, (0, 1)), LayerEdit(FRESH, (FRESH,), True)), r"layers\[1\]\.units: a fresh layer has 2"),
        ((LayerEdit(0, (0, 1)), LayerEdit(FRESH, (FRESH,) * 2)), r"layers\[1\]\.residual: got False"),
        ((LayerEdit(0, (0, FRESH), begins=2),), r"layers\[0\]\.begins: got 2; allowed: 0 to 1"),
        ((LayerEdit(0, (0, 1), parents=(1,)),), r"layers\[0\]\.parents: got 1"),
        ((LayerEdit(0, (0, 1)), LayerEdit(1, (0,))), "layers: got sizes 2, 1; allowed is one size"),
        ((LayerEdit(0, (0, 1.0)),), r"layers\[0\]: got unit 1\.0; allowed: 0 to 3"),
        ((LayerEdit(0, (0, 1), parents=(FRESH, True)),), r"layers\[0\]: got unit True; allowed: 0 to 3"),
        ((LayerEdit(0.5, (0, 1)),), r"layers\[0\]\.source: got layer 0\.5; allowed: 0 to 1"),
        ((LayerEdit(0, (0, 1, 2, 3)),), "inputs: got none; a layer that is not residual"),
    ],
)
def test_changes_that_cannot_be_are_refused_before_any(edits: Any, message: str) -> None:
    circuit = made("ntm", "lstm")
    kept = copy.deepcopy(circuit.state_dict())
    with pytest.raises(ValueError, match=message):
        circuit.edit(edits)
    assert all(torch.equal(part, circuit.state_dict()[name]) for name, part in kept.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda now: widened(now, {2: [FRESH]}), "parents: got group 2; allowed: 0 to 1$"),
        (lambda now: widened(now, {-1: [FRESH]}), "parents: got group -1; allowed: 0 to 1$"),
        (lambda now: widened(now, {False: [FRESH]}), "parents: got group False; allowed: 0 to 1$"),
        (lambda now: widened(now, {0: [4]}), r"parents\[0\]: got unit 4; allowed: 0 to 3, or -1 for a fresh one$"),
        (lambda now: widened(now, {0: [1.0]}), r"parents\[0\]: got unit 1\.0; allowed: 0 to 3, or -1"),
        (lambda now: narrowed(now, {2: [0]}), "removed: got group 2; allowed: 0 to 1$"),
        (lambda now: narrowed(now, {1.0: [0]}), r"removed: got group 1\.0; allowed: 0 to 1$"),
        (lambda now: narrowed(now, {1: [0, 6]}), r"removed\[1\]: got unit 6; allowed: 0 to 5$"),
        (lambda now: narrowed(now, {0: [FRESH]}), r"removed\[0\]: got unit -1; allowed: 0 to 3$"),
        (lambda now: narrowed(now, {0: [True]}), r"removed\[0\]: got unit True; allowed: 0 to 3$"),
        (lambda now: narrowed(now, {0: [2, 1, 2]}), r"removed\[0\]: got unit 2 twice; allowed is once$"),
        (lambda now: replaced(now, {2: {0: 0}}), "parents: got group 2; allowed: 0 to 1$"),
        (lambda now: replaced(now, {0: {4: 0}}), r"parents\[0\]: got unit 4; allowed: 0 to 3$"),
        (lambda now: replaced(now, {0: {FRESH: 0}}), r"parents\[0\]: got unit -1; allowed: 0 to 3$"),
        (lambda now: replaced(now, {0: {1: 4}}), r"parents\[0\]\[1\]: got unit 4; allowed: 0 to 3, or -1"),
        (lambda now: deepened(now, 3), "above: got layer 3; allowed: 0 to 2$"),
        (lambda now: deepened(now, -1), "above: got layer -1; allowed: 0 to 2$"),
        (lambda now: deepened((), 0), "above: got layer 0; no layer can change, and Circuit.fixed says why$"),
        (lambda now: shallower(now, 3), "layer: got layer 3; allowed: 0 to 2$"),
        (lambda now: shallower(now, -1), "layer: got layer -1; allowed: 0 to 2$"),
        (lambda now: shallower(now, 0.5), r"layer: got layer 0\.5; allowed: 0 to 2$"),
    ],
)
def test_edits_of_what_is_not_there_are_refused(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        change((Layer(4), Layer(4, True), Layer(6)))


def test_edits_take_whole_numbers_of_any_kind_and_none_changes_nothing() -> None:
    structure = (Layer(4), Layer(4, True), Layer(6))
    number = np.int64
    assert narrowed(structure, {number(0): torch.tensor([1, 3])}) == narrowed(structure, {0: [1, 3]})
    assert widened(structure, {number(1): np.array([2, FRESH])}) == widened(structure, {1: [2, FRESH]})
    assert replaced(structure, {0: {number(1): number(2)}}) == replaced(structure, {0: {1: 2}})
    assert deepened(structure, number(1)) == deepened(structure, 1)
    assert shallower(structure, number(1)) == shallower(structure, 1)
    for nothing in (widened(structure, {0: []}), narrowed(structure, {1: []}), replaced(structure, {1: {}})):
        assert nothing == unchanged(structure)


def test_residual_layers_keep_the_units_of_the_layer_below() -> None:
    circuit = made("feedforward", "tanh", 1)
    circuit.edit(deepened(circuit.structure(), 0))
    with pytest.raises(ValueError, match=r"layers\[1\]: it is residual"):
        circuit.edit((LayerEdit(0, (0, 1)), LayerEdit(1, (0, 2), True)))
    with pytest.raises(ValueError, match=r"layers\[0\]: it is residual"):
        circuit.edit((LayerEdit(1, (0, 1, 2, 3), True),), inputs=drawn())


def test_structures_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="got 4 - 5; allowed is one size of all layers"):
        made("ntm", "lstm").restructure([(4, False), (5, False)])
    with pytest.raises(ValueError, match=r"got 4 \+ 5; allowed is one size of a residual layer and that below it"):
        made("feedforward", "tanh").restructure([(4, False), (5, True)])
    with pytest.raises(ValueError, match="got no layers; allowed are layers of units"):
        made("feedforward", "tanh").restructure([])
    with pytest.raises(ValueError, match="structure: got 3; expected size and whether residual of each layer"):
        made("feedforward", "tanh").restructure(3)
    with pytest.raises(ValueError, match=r"structure: got shares \(2, 2\); no task owns units here, allowed is none"):
        made("feedforward", "tanh", 1).restructure([(4, False, [2, 2])])
    for layer in ([7.9, False], [True, False], [7, "no"], [7, 0], [7]):
        with pytest.raises(ValueError, match="structure: got .*; expected size and whether residual of each layer"):
            made("feedforward", "tanh", 1).restructure([layer])
    grown, other = made("ntm", "lstm"), made("ntm", "lstm", 1)
    grown.edit(widened(grown.structure(), {0: [FRESH], 1: [FRESH]}))
    with pytest.raises(ValueError, match="its hidden layers began with 4 - 4; those of this circuit with 4"):
        load_weights(other, weights_of(grown))


@pytest.mark.parametrize(
    ("circuit", "why"),
    [
        (papertape.NTM(2, 2, controller="direct", memory_size=4), "a DirectController has no layers"),
        (
            papertape.NTM(2, 2, controller="hyper-lstm", hidden_size=3, memory_size=4),
            "a HyperLSTMController has no layers",
        ),
        (papertape.NTM(2, 2, controller="rnn", hidden_size=3, memory_size=4), "a RNNController has no layers"),
        (FeedForwardCircuit(2, 2, hidden_sizes=[]), "it has no hidden layer"),
        (papertape.circuits.NeatCircuit(2, 2), "a NeatCircuit has no layers"),
    ],
)
def test_fixed_structures_say_why(circuit: Circuit, why: str) -> None:
    assert circuit.structure() == ()
    with pytest.raises(ValueError, match=f"it is fixed: {why}|the structure is fixed: {why}"):
        circuit.edit(())
    with pytest.raises(ValueError, match=why):
        circuit.restructure([(3, False)])


def test_accessors_say_what_gets_the_output_of_the_controller() -> None:
    class Wordy(StaticAccessor):
        def setup(self) -> None:
            super().setup()
            self.extra = torch.nn.Linear(self.hidden_size, 4)

        def forward(self, hidden: Tensor, state: Any) -> Any:
            words, state, heads = super().forward(hidden, state)
            return words + self.extra(hidden).unsqueeze(1), state, heads

    class Told(Wordy):
        readers = ("interface.linear", "extra")

    def circuit(kind: Any) -> Circuit:
        return papertape.MemoryCircuit(INPUTS, OUTPUTS, hidden_size=5, accessor=kind(5, word_size=4)).double()

    assert "the extra of a Wordy may get its output" in (circuit(Wordy).fixed() or "")
    told, inputs = circuit(Told), drawn()
    expected, _ = told(inputs)
    told.edit(widened(told.structure(), {0: [FRESH, 1]}))
    torch.testing.assert_close(told(inputs)[0], expected, rtol=0, atol=1e-12)


def test_layers_that_are_no_plain_linear_are_fixed() -> None:
    circuit = made("ntm", "lstm")
    nn.utils.parametrizations.weight_norm(circuit.output)
    assert "where only a torch.nn.Linear" in str(circuit.fixed())


@pytest.mark.parametrize("kind", ["ntm", "feedforward"])
@pytest.mark.parametrize("computed", [partial(prune.l1_unstructured, amount=0.5), spectral_norm])
@pytest.mark.filterwarnings("ignore:.*spectral_norm:FutureWarning")
def test_layers_whose_weights_are_no_parameters_are_fixed(kind: str, computed: Any) -> None:
    circuit: Any = made(kind, "lstm" if kind == "ntm" else "tanh")
    computed(circuit.output if kind == "ntm" else circuit.layers[0], name="weight")
    assert "the weight of a torch.nn.Linear is computed" in str(circuit.fixed())
    with pytest.raises(ValueError, match="the weight of a torch.nn.Linear is computed"):
        circuit.edit(unchanged(circuit.structure()))


def test_steps_that_are_not_finite_are_left_out_of_what_removed_units_did() -> None:
    circuit, inputs = made("feedforward", "tanh"), drawn()
    inputs[2, 1, 0] = torch.nan
    other, kept = copy.deepcopy(circuit), torch.ones(7, 3, dtype=torch.bool)
    kept[2, 1] = False
    circuit.edit(narrowed(circuit.structure(), {0: [1]}), inputs)
    other.edit(narrowed(other.structure(), {0: [1]}), inputs[kept].unsqueeze(1))
    for found, wanted in zip(circuit.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found, wanted)
    circuit.edit(narrowed(circuit.structure(), {0: [1]}), torch.full_like(inputs, torch.nan))
    assert all(bool(parameter.isfinite().all()) for parameter in circuit.parameters())


def test_activity_is_that_of_time_major_inputs_whatever_the_layout() -> None:
    circuit, inputs = made("ntm", "lstm"), drawn()
    expected = circuit.activity(inputs)
    circuit.batch_first = True
    for name, seen in circuit.activity(inputs).items():
        torch.testing.assert_close(seen, expected[name])
