"""Circuits whose units belong to tasks: what one task learns changes no answer to an earlier one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import papertape
from papertape.agents.evaluation import load_weights, weights_of
from papertape.circuits import RoutedCircuit
from papertape.core.routing import similarities
from papertape.core.state import leaves
from papertape.core.structure import FRESH, Layer, deepened, follow_optimiser, narrowed, shallower, unchanged, widened

WORDS, TASKS, OUTPUTS = 4, 3, 3
SIZES = {"memory_size": 7, "word_size": 4}
INNER: dict[str, dict[str, Any]] = {
    "ntm": {"type": "ntm", "controller": {"type": "lstm", "hidden_size": 5}, **SIZES},
    "two layers": {"type": "ntm", "controller": {"type": "gru", "hidden_size": 4, "num_layers": 2}, **SIZES},
    "dnc": {"type": "dnc", "controller": {"type": "feedforward", "hidden_size": 5}, **SIZES},
    "learned memory": {
        "type": "ntm",
        "controller": {"type": "lstm", "hidden_size": 5},
        "memory_init": "learned",
        "weight_init": "learned",
        **SIZES,
    },
    "feedforward": {"type": "feedforward", "hidden_sizes": [5, 4]},
}
every = pytest.mark.parametrize("inner", INNER)


def made(inner: str = "ntm", tasks: int = TASKS, **options: Any) -> Any:
    torch.manual_seed(1)
    given = {"tag_channels": TASKS, "dtype": torch.float64, **options}
    return RoutedCircuit(WORDS + given["tag_channels"], OUTPUTS, circuit=INNER[inner], tasks=tasks, **given)


def drawn(*tasks: int, steps: int = 6, seed: int = 0) -> Tensor:
    """A sequence of each of some tasks, which the first step says."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.zeros(steps, len(tasks), WORDS + TASKS, dtype=torch.float64)
    inputs[..., :WORDS] = torch.randn(steps, len(tasks), WORDS, generator=generator, dtype=torch.float64)
    inputs[0, torch.arange(len(tasks)), WORDS + torch.tensor(tasks)] = 1
    return inputs


def answers(circuit: Any, *tasks: int) -> list[Tensor]:
    with torch.no_grad():
        return [circuit(drawn(task, task))[0] for task in tasks]


@pytest.mark.parametrize("inner", ["ntm", "feedforward"])
def test_around_a_circuit_whose_batch_comes_first(inner: str) -> None:
    outer = RoutedCircuit(WORDS + TASKS, OUTPUTS, circuit=circuit_of(inner), tag_channels=TASKS, tasks=2)
    turned = RoutedCircuit(WORDS + TASKS, OUTPUTS, circuit=circuit_of(inner, True), tag_channels=TASKS, tasks=2)
    turned.load_state_dict(outer.state_dict())
    inputs = drawn(0, 1, 1, 0, steps=5).float()
    (expected, last, trace), (found, after, seen) = outer(inputs, trace=True), turned(inputs, trace=True)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(leaves(after), leaves(last))
    assert trace.keys() == seen.keys()
    for name in trace:
        torch.testing.assert_close(seen[name], trace[name])
    torch.testing.assert_close(turned.step(inputs[0])[0], outer.step(inputs[0])[0])


def circuit_of(inner: str, batch_first: bool = False) -> papertape.Circuit:
    """A circuit as an object."""
    torch.manual_seed(0)
    kinds = {"ntm": papertape.NTM, "feedforward": papertape.FeedForwardCircuit}
    options = {name: value for name, value in INNER[inner].items() if name != "type"}
    return kinds[inner](WORDS + TASKS, OUTPUTS, batch_first=batch_first, **options)


def learn(circuit: Any, task: int, optimiser: torch.optim.Optimizer, steps: int = 3) -> None:
    for seed in range(steps):
        inputs = drawn(task, task, seed=seed)
        circuit.meet(inputs)
        optimiser.zero_grad()
        circuit(inputs)[0].square().sum().backward()
        optimiser.step()


@every
def test_a_single_task_runs_as_its_circuit_bit_for_bit(inner: str) -> None:
    routed = made(inner, tasks=1)
    torch.manual_seed(1)
    alone = copy.deepcopy(routed.routes[0].circuit)
    inputs = drawn(0, 0)
    (found, state), (expected, last) = routed(inputs), alone(inputs)
    assert torch.equal(found, expected)
    assert all(map(torch.equal, leaves(state.inner), leaves(last)))
    found.sum().backward()
    expected.sum().backward()
    gradients = [parameter.grad for parameter in routed.parameters()]
    assert all(map(torch.equal, gradients, (parameter.grad for parameter in alone.parameters())))


@every
def test_what_earlier_tasks_answer_by_has_no_gradient_of_a_later_task(inner: str) -> None:
    circuit = made(inner)
    for later in range(TASKS):
        for earlier in range(TASKS):
            if earlier == later:
                continue
            names, parameters = zip(*circuit.named_parameters(), strict=True)
            read, moved = (
                torch.autograd.grad(circuit(drawn(task, task))[0].square().sum(), parameters, allow_unused=True)
                for task in (earlier, later)
            )
            for name, one, other in zip(names, read, moved, strict=True):
                if one is not None and other is not None:
                    assert not bool(((one != 0) & (other != 0)).any()), name
            assert any(one is not None and bool(one.any()) for one in moved)


@every
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_learning_a_task_leaves_earlier_ones_as_they_are_bit_for_bit(inner: str, kind: Any) -> None:
    circuit = made(inner)
    optimiser = kind(circuit.parameters(), lr=0.05, weight_decay=0.1)
    learn(circuit, 0, optimiser)
    first = answers(circuit, 0)
    learn(circuit, 1, optimiser)
    both = answers(circuit, 0, 1)
    learn(circuit, 2, optimiser)
    assert torch.equal(both[0], first[0])
    after = answers(circuit, 0, 1)
    assert all(map(torch.equal, after, both))
    fresh = answers(made(inner), 0, 1, 2)
    assert not any(map(torch.equal, answers(circuit, 0, 1, 2), fresh))


@every
def test_a_later_task_reads_earlier_units_and_what_is_not_lent_is_not_read(inner: str) -> None:
    for lending, reads in ((0.0, True), (2.0, False)):
        circuit = made(inner, tasks=2, lending=lending)
        learn(circuit, 1, torch.optim.Adam(circuit.parameters(), lr=0.01), 1)
        before = answers(circuit, 0, 1)
        for route in circuit.routes[1:]:  # its own copy of what inputs lead to, for earlier units alone
            for wire in route.wires:
                if wire.layer is not None and wire.below < 0:
                    rows = (torch.arange(route.sizes[wire.layer]) < circuit.routes[0].sizes[wire.layer]).repeat(
                        wire.blocks
                    )
                    with torch.no_grad():
                        route.circuit.get_parameter(f"{wire.name}.bias")[rows] += 1.0
        after = answers(circuit, 0, 1)
        assert torch.equal(before[0], after[0])
        assert torch.equal(before[1], after[1]) is not reads


@every
def test_a_task_begins_as_a_circuit_of_its_own_units(inner: str) -> None:
    circuit = made(inner, tasks=2)
    first = circuit.routes[0].circuit
    alone = copy.deepcopy(first)
    torch.manual_seed(3)
    circuit.begin()
    torch.manual_seed(3)
    alone.reset_parameters()
    torch.testing.assert_close(circuit(drawn(2, 2))[0], alone(drawn(2, 2))[0], rtol=0, atol=1e-12)
    circuit.reset_parameters()
    assert len(circuit.routes) == 3
    parameters = [p.clone() for p in circuit.parameters()]
    torch.manual_seed(5)
    circuit.reset_parameters()
    torch.manual_seed(5)
    alone.reset_parameters()
    torch.testing.assert_close(circuit(drawn(0, 0))[0], alone(drawn(0, 0))[0], rtol=0, atol=1e-12)
    assert not all(map(torch.equal, parameters, circuit.parameters()))


@every
def test_a_batch_of_several_tasks_is_answered_as_each_alone(inner: str) -> None:
    circuit = made(inner)
    inputs = drawn(2, 0, 1, 0)
    whole, last = circuit(inputs)
    for index in range(4):
        alone, state = circuit(inputs[:, index : index + 1])
        torch.testing.assert_close(whole[:, index : index + 1], alone, rtol=0, atol=1e-12)
        assert int(last.task[index]) == int(state.task[0]) == [2, 0, 1, 0][index]
        for found, expected in zip(leaves(last.inner), leaves(state.inner), strict=True):
            torch.testing.assert_close(found[index : index + 1], expected, rtol=0, atol=1e-12)
    state, outputs = None, []
    for x in inputs:
        y, state = circuit.step(x, state)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs), whole, rtol=0, atol=1e-12)
    _, state = circuit(inputs[:2])
    torch.testing.assert_close(circuit(inputs[2:], state)[0], whole[2:], rtol=0, atol=1e-12)
    traced, _, trace = circuit(inputs, trace=True)
    torch.testing.assert_close(traced, whole, rtol=0, atol=1e-12)
    assert all(part.shape[:2] == (6, 4) for part in trace.values())


@every
def test_settled_circuits_run_alike_without_routing(inner: str) -> None:
    circuit = made(inner)
    circuit.lend(2, 0, torch.arange(circuit.routes[1].sizes[0]) % 2 == 0, lent=False)
    expected = answers(circuit, 0, 1, 2)
    circuit.settle()
    for task, answer in enumerate(expected):
        torch.testing.assert_close(circuit.routes[task].circuit(drawn(task, task))[0], answer, rtol=0, atol=1e-12)
    assert all(map(torch.equal, answers(circuit, 0, 1, 2), expected))


def test_kernels_run_each_task() -> None:
    torch.manual_seed(0)
    fast = made(dtype=torch.float32)
    slow = made(dtype=torch.float32, backend="eager")
    slow.load_state_dict(fast.state_dict())
    for task in range(TASKS):
        inputs = drawn(task, task).float()
        results = []
        for circuit in (fast, slow):
            outputs, _ = circuit(inputs)
            results.append((outputs, torch.autograd.grad(outputs.square().sum(), circuit.routes[task].parameters())))
        assert fast.routes[task].circuit.chosen_backend == "native"
        torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


# ---- structure -------------------------------------------------------------------------------------------------------


def some_edit(data: st.DataObject, circuit: Any) -> tuple[int, Any]:
    """A change of the units of a task that may be made, and that task; what it adds changes no answer."""
    structure = circuit.structure()
    task = data.draw(st.integers(0, len(circuit.routes) - 1))
    edits = list(unchanged(structure))
    count = data.draw(st.integers(1, 2))
    for index, layer in enumerate(structure):
        end = sum(layer.shares[: task + 1])
        units = edits[index].units
        parents = (FRESH,) * end + tuple(range(count)) + (FRESH,) * (len(units) - end)
        edits[index] = edits[index]._replace(units=(*units[:end], *[FRESH] * count, *units[end:]), parents=parents)
    return task, edits


@settings(max_examples=15, deadline=None)
@given(data=st.data(), inner=st.sampled_from(sorted(INNER)))
def test_any_order_of_edits_keeps_answers_and_shares(data: st.DataObject, inner: str) -> None:
    circuit = made(inner, tasks=1)
    optimiser = torch.optim.Adam(circuit.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    learn(circuit, 0, optimiser, 1)
    for _ in range(data.draw(st.integers(1, 5))):
        tasks = range(len(circuit.routes))
        before, structure = answers(circuit, *tasks), circuit.structure()
        kinds = ["grow", "learn", "prune", *(["begin"] if len(tasks) < TASKS else [])]
        kind = data.draw(st.sampled_from(kinds))
        touched = 0
        if kind == "grow":
            touched, edits = some_edit(data, circuit)
            follow_optimiser(circuit.edit(edits, generator=generator), optimiser)
        elif kind == "begin":
            touched = len(tasks)
            follow_optimiser(circuit.begin(), optimiser)
        elif kind == "learn":
            touched = data.draw(st.sampled_from(tasks))
            learn(circuit, touched, optimiser, 1)
        else:
            touched = len(tasks) - 1
            if min(layer.shares[-1] for layer in structure) < 2:
                continue
            first = {index: [layer.size - 1] for index, layer in enumerate(structure)}
            inputs = drawn(touched, touched)
            follow_optimiser(circuit.edit(narrowed(structure, first), inputs, generator), optimiser)
        assert all(map(torch.equal, answers(circuit, *range(touched)), before))
        if kind == "grow":
            for found, expected in zip(answers(circuit, *tasks), before, strict=True):
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        assert len(optimiser.param_groups[0]["params"]) == len(list(circuit.parameters()))
        for layer in circuit.structure():
            assert sum(layer.shares) == layer.size
        assert circuit.live_weights() <= sum(parameter.numel() for parameter in circuit.parameters())
        learn(circuit, touched, optimiser, 1)  # moments fit
    kept = copy.deepcopy(weights_of(circuit))
    other = made(inner, tasks=1)
    load_weights(other, kept)
    tasks = range(len(circuit.routes))
    assert other.structure() == circuit.structure()
    assert all(map(torch.equal, answers(other, *tasks), answers(circuit, *tasks)))


def test_states_follow() -> None:
    circuit = made("two layers", tasks=2)
    inputs = drawn(1, 0)
    expected, _ = circuit(inputs)
    _, state = circuit(inputs[:3])
    edits = list(unchanged(circuit.structure()))
    edits = [edit._replace(units=(0, 1, 2, 3, FRESH, 4, 5, 6, 7)) for edit in edits]
    change = circuit.edit(edits)
    assert circuit.structure() == (Layer(9, False, (5, 4)),) * 2
    rest, _ = circuit(inputs[3:], circuit.follow(change, state))
    torch.testing.assert_close(rest, expected[3:], rtol=0, atol=1e-12)
    change = circuit.begin()
    rest, _ = circuit(inputs[3:], circuit.follow(change, circuit(inputs[:3])[1]))
    torch.testing.assert_close(rest, expected[3:], rtol=0, atol=1e-12)


def test_thresholds_follow_and_are_kept() -> None:
    circuit = made(tasks=2)
    circuit.lend(1, 0, torch.tensor([True, False, True, False, False]), lent=False)
    edits = [edit._replace(units=(1, 0, 2, FRESH, 3, 4, *range(5, 10))) for edit in unchanged(circuit.structure())]
    circuit.edit(edits)
    assert circuit.lent(1)[0].tolist() == [True, False, False] + [True] * 8
    other = made(tasks=1)
    load_weights(
        other, {**weights_of(circuit), "structure": {"first": [[5, False, [5]]], "now": [[11, False, [6, 5]]]}}
    )
    assert other.lent(1)[0].tolist() == circuit.lent(1)[0].tolist()


def test_edits_that_break_ownership_are_refused() -> None:
    circuit = made("two layers", tasks=2)
    structure = circuit.structure()
    with pytest.raises(ValueError, match="task 0 lends units to others; allowed is to keep unit 0"):
        circuit.edit(narrowed(structure, {0: [0], 1: [0]}))
    with pytest.raises(ValueError, match="a later task come before"):
        circuit.edit([edit._replace(units=tuple(range(7, -1, -1))) for edit in unchanged(structure)])
    with pytest.raises(ValueError, match=r"allowed with 2 tasks: \[0, 1\]"):
        circuit.edit(deepened(structure, 0))
    with pytest.raises(ValueError, match=r"allowed with 2 tasks: \[0, 1\]"):
        circuit.edit(shallower(structure, 1), drawn(0))
    with pytest.raises(ValueError, match=r"leaves tasks \(4, 0\) units"):
        circuit.edit(narrowed(structure, {0: [4, 5, 6, 7], 1: [4, 5, 6, 7]}))
    with pytest.raises(ValueError, match="add up"):
        circuit.restructure([[9, False, [4, 4]]] * 2)
    alone = made("two layers", tasks=1)
    before = answers(alone, 0)
    alone.edit(deepened(alone.structure(), 0))
    torch.testing.assert_close(answers(alone, 0), before, rtol=0, atol=1e-12)
    alone.edit(widened(alone.structure(), {0: [1], 1: [1]}))
    torch.testing.assert_close(answers(alone, 0), before, rtol=0, atol=1e-12)


# ---- which task ------------------------------------------------------------------------------------------------------


def kinds(task: int, count: int, seed: int) -> Tensor:
    """Inputs of a task that nothing but their mean tells apart, ``[3, count, 6]``."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(6, generator=torch.Generator().manual_seed(100 + task)).sign()
    return mean + 0.3 * torch.randn(3, count, 6, generator=generator)


def test_a_task_that_comes_is_given_units_and_sequences_are_told_apart_by_the_nearest_key() -> None:
    torch.manual_seed(0)
    circuit = RoutedCircuit(6, 2, circuit=INNER["feedforward"], key_sequences=40)
    for step in range(12):
        changes = circuit.meet(kinds(step // 4, 16, step))
        assert len(changes) == (step in (4, 8)), step
    assert [int(route.count) for route in circuit.routes] == [40, 40, 40]
    right = 0
    for task in range(3):
        first = kinds(task, 200, 1000 + task)[0]
        assert torch.equal(circuit.tasks_of(first), similarities(first, circuit.routes).argmax(-1))
        right += int((circuit.tasks_of(first) == task).sum())
    assert right >= 590, right
    expected, _ = circuit.routes[1].circuit(kinds(1, 5, 7))
    circuit.settle()
    assert torch.equal(circuit(kinds(1, 5, 7))[0], circuit.routes[1].circuit(kinds(1, 5, 7))[0])
    assert expected.shape == (3, 5, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keys_are_exact_and_thresholds_of_the_type_of_the_weights_however_routes_came(dtype: torch.dtype) -> None:
    circuit = made("feedforward", 1, dtype=dtype)
    inputs = drawn(0, 1, 2).to(dtype)
    circuit.routes[0].see(inputs[0, :1, :WORDS] / 3)
    circuit.begin()
    circuit.routes[1].see(inputs[0, 1:2, :WORDS] / 3)
    again = made("feedforward", 1, dtype=dtype)
    load_weights(again, weights_of(circuit))
    for one in (circuit, again, copy.deepcopy(again).to(torch.float32).to(dtype)):
        assert [route.sum.dtype for route in one.routes] == [torch.float64] * 2
        assert [route.thresholds.dtype for route in one.routes] == [dtype] * 2
        assert all(torch.equal(new.sum, old.sum) for new, old in zip(one.routes, circuit.routes, strict=True))


def test_tasks_that_have_units_from_the_beginning_are_met_in_order() -> None:
    torch.manual_seed(0)
    circuit = RoutedCircuit(6, 2, circuit=INNER["feedforward"], tasks=2, max_tasks=2)
    assert circuit.meet(kinds(5, 16, 0)) == [] and circuit.meet(kinds(6, 16, 1)) == []
    assert circuit.tasks_of(kinds(6, 4, 2)[0]).tolist() == [1] * 4
    assert circuit.meet(kinds(7, 16, 3)) == []  # no more may come: it is the most similar one
    assert len(circuit.routes) == 2


def test_channels_bring_units_too() -> None:
    circuit = made(tasks=1, added=2)
    (change, another) = circuit.meet(drawn(2, 0))
    assert circuit.structure() == (Layer(9, False, (5, 2, 2)),)
    assert change.before == (Layer(5, False, (5,)),) and another.before == (Layer(7, False, (5, 2)),)
    assert [int(route.count) for route in circuit.routes] == [1, 0, 1]
    assert circuit.meet(drawn(2, 1)) == []


def test_the_similarity_of_tasks_decides_what_is_lent() -> None:
    torch.manual_seed(0)
    circuit = RoutedCircuit(6, 2, circuit=INNER["feedforward"], lending=0.9, tasks=3)
    assert all(bool(units.all()) for task in range(3) for units in circuit.lent(task))  # none was met yet
    keys = torch.eye(6)[:3]
    keys[2] += keys[0] * 3
    for task, route in enumerate(circuit.routes):
        route.see(keys[task].unsqueeze(0))
    assert circuit.lent(1)[0].tolist() == [False] * 5 + [True] * 5
    assert circuit.lent(2)[0].tolist() == [True] * 5 + [False] * 5 + [True] * 5
    with torch.no_grad():
        before = circuit.routes[1].circuit, circuit(keys[1].view(1, 1, 6))[0]
    columns = circuit.lend(1, 1, torch.tensor([True, False, False, False]), lent=True)
    assert circuit.lent(1)[1].tolist() == [True, False, False, False] + [True] * 4
    assert torch.equal(circuit(keys[1].view(1, 1, 6))[0], before[1])  # it reads nothing of it yet
    assert {name: int(part.sum()) for name, part in columns.items()} == {"routes.1.circuit.layers.2.weight": 2}
    y, _ = circuit(keys[1].view(1, 1, 6))
    (gradient,) = torch.autograd.grad(y.sum(), [circuit.routes[1].circuit.layers[2].weight])
    assert bool(gradient[:, 0].all()) and not bool(gradient[:, 1:4].any())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": 4}, r"tasks: got 4; allowed is at most 3 \(max_tasks, tag_channels\)"),
        ({"embedding_size": 3}, "embedding_size: got 3; tasks share none"),
        ({"tag_channels": 7}, "tag_channels: got 7; inputs have 7 channels"),
        ({"circuit": {"type": "tape"}}, "circuit: tasks can own no units of it"),
        ({"circuit": {"type": "routed", "circuit": INNER["ntm"]}}, r"circuit\.type: got routed within routed"),
        ({"circuit": papertape.NTM(3, 2)}, r"circuit: has sizes \[3, 2\]; expected \[7, 3\]"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    given = {"circuit": INNER["ntm"], "tag_channels": TASKS, **options}
    with pytest.raises(ValueError, match=message):
        RoutedCircuit(7, 3, **given)


def test_inputs_of_no_task_are_refused() -> None:
    circuit = made(tasks=2, max_tasks=2)
    assert circuit(drawn(0, 2))[1].task.tolist() == [0, 1]  # the last one answers for what has no units yet
    with pytest.raises(ValueError, match="none of the last 3 channels is set"):
        circuit(torch.zeros(2, 1, 7, dtype=torch.float64))
    with pytest.raises(ValueError, match="max_tasks: got 2; another task has come"):
        circuit.meet(drawn(2))
    with pytest.raises(ValueError, match="a population cannot evolve them"):
        circuit.run_population({}, drawn(0))
