"""The native backend against the eager one, forward and backward."""

from __future__ import annotations

import _ctypes
import importlib.machinery
import multiprocessing
import subprocess
import sys
import unittest.mock
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import papertape
from papertape.agents.genome import Layout
from papertape.core import addressing, interface
from papertape.core.circuit import Circuit
from papertape.core.kernels import native
from papertape.core.kernels.native import library
from papertape.core.state import detach, map_state

pytestmark = pytest.mark.skipif(isinstance(library.load(), str), reason=str(library.load()))

STEPS, BATCH, INPUTS, OUTPUTS = 5, 3, 4, 2

# Slots, word size, read heads, write heads, hidden size: odd ones, one of each, more than one vector, whole vectors.
SHAPES = [(7, 5, 1, 1, 6), (1, 1, 1, 1, 1), (37, 6, 5, 1, 17), (16, 4, 2, 3, 16), (64, 3, 4, 2, 33)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def leaves(state: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_state(lambda leaf: (found.append(leaf), leaf)[1], state)
    return found


def ntm(shape: tuple[int, ...] = SHAPES[0], **options: Any) -> Circuit:
    slots, word, reads, writes, hidden = shape
    sizes = {"memory_size": slots, "word_size": word, "num_reads": reads, "num_writes": writes, "hidden_size": hidden}
    defaults = {"memory_init": "truncated_normal", "weight_init": "learned"}
    return papertape.NTM(INPUTS, OUTPUTS, **(sizes | defaults | options))


def dnc(shape: tuple[int, ...] = SHAPES[0], **options: Any) -> Circuit:
    slots, word, reads, writes, hidden = shape
    sizes = {"memory_size": slots, "word_size": word, "num_reads": reads, "num_writes": writes, "hidden_size": hidden}
    return papertape.DNC(INPUTS, OUTPUTS, **(sizes | options))


def stack(shape: tuple[int, ...] = SHAPES[0], **options: Any) -> Circuit:
    cells, word, stacks, _, hidden = shape
    sizes = {"memory_size": cells, "word_size": word, "num_stacks": stacks, "hidden_size": hidden}
    return papertape.StackRNN(INPUTS, OUTPUTS, **(sizes | options))


def tape(shape: tuple[int, ...] = SHAPES[0], **options: Any) -> Circuit:
    """The last channel says that the input is over: where drawn from a normal distribution, at a third of the steps."""
    cells, word, tapes, _, hidden = shape
    cells = max(cells, 2)  # on one cell all moves are one: the gradients of their shares are rounding alone
    sizes = {"memory_size": cells, "word_size": word, "num_tapes": tapes, "hidden_size": hidden}
    sizes |= {"gated_write": hidden % 2 == 1}
    return papertape.TapeRNN(INPUTS, OUTPUTS, **(sizes | options))


ADDRESSED: dict[str, Callable[..., Circuit]] = {"ntm": ntm, "dnc": dnc}
STEPPED = ADDRESSED | {"stack": stack}
BUILDERS = STEPPED | {"tape": tape}
CONTROLLERS: dict[str, dict[str, Any]] = {
    **{name: {"controller": name} for name in ("lstm", "gru", "feedforward", "rnn")},
    "relu": {"controller": {"type": "rnn", "nonlinearity": "relu"}},
}
each_controller = pytest.mark.parametrize("controller", CONTROLLERS)
each_addressed = pytest.mark.parametrize("build", ADDRESSED.values(), ids=ADDRESSED.keys())
each_stepped = pytest.mark.parametrize("build", STEPPED.values(), ids=STEPPED.keys())
each_circuit = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS.keys())


def prepare(circuit: Circuit, dtype: torch.dtype = torch.float64) -> Circuit:
    """In another type; in float64 with larger weights, so that the gates are far from one half.

    Not so in float32: with them, eager's own rounding reaches 2e-4.
    """
    circuit = circuit.to(dtype)
    scale = 2.0 if dtype == torch.float64 else 1.0
    with torch.no_grad():
        for parameter in circuit.parameters():
            parameter.mul_(scale)
    return circuit


def results(
    circuit: Circuit, backend: str, inputs: Tensor, state: Any, *, seed: int = 1
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Outputs with every leaf of the last state, and the gradients of a random sum of them in everything."""
    circuit.backend = backend
    inputs = inputs.clone().requires_grad_()
    state = map_state(lambda leaf: leaf.clone().requires_grad_(leaf.is_floating_point()), state)
    outputs, last = circuit(inputs, state)
    assert circuit.chosen_backend == backend
    made = [part for part in (outputs, *leaves(last)) if part.is_floating_point()]
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(part.shape, generator=generator, dtype=torch.float64).to(part) for part in made]
    total = sum((part * weight).sum() for part, weight in zip(made, weights, strict=True))
    given = [inputs, *(leaf for leaf in leaves(state) if leaf.requires_grad), *circuit.parameters()]
    gradients = torch.autograd.grad(total, given, allow_unused=True)
    return [part.detach() for part in made], list(gradients)


def assert_close(
    actual: list[Tensor | None], expected: list[Tensor | None], tolerance: float, *, floor: float = 1e-12
) -> None:
    """Largest difference of each tensor, relative to its own largest value."""
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        if e is None:
            assert a is None or not a.any(), f"tensor {index}: got a gradient, expected none"
            continue
        assert a is not None, f"tensor {index}: no gradient"
        assert a.shape == e.shape
        assert torch.isfinite(a).all()
        error = (a.double() - e.double()).abs().max() / (e.double().abs().max() + floor)
        assert error < tolerance, f"tensor {index} of shape {list(a.shape)}: relative error {error:.1e}"


def random_state(circuit: Circuit, batch: int, seed: int = 0) -> Any:
    """The first state, moved a little in every leaf, so that none of it is zero and weightings stay near a sum of 1."""
    generator = torch.Generator().manual_seed(seed)

    def moved(leaf: Tensor) -> Tensor:
        if not leaf.is_floating_point():
            return leaf
        noise = torch.rand(leaf.shape, generator=generator, dtype=leaf.dtype)
        return leaf.detach() + 0.5 * noise / (leaf.shape[-1] + 1)

    return map_state(moved, circuit.initial_state(batch))


def assert_agrees(circuit: Circuit, steps: int = STEPS, batch: int = BATCH) -> None:
    """In the circuit's type against eager in float64."""
    dtype = next(circuit.parameters()).dtype
    inputs = torch.randn(steps, batch, INPUTS, dtype=dtype)
    state = random_state(circuit, batch)
    made, gradients = results(circuit, "native", inputs, state)
    circuit = circuit.double()
    exact = map_state(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, state)
    expected, expected_gradients = results(circuit, "eager", inputs.double(), exact)
    tolerance, floor = (1e-9, 1e-12) if dtype == torch.float64 else (1e-4, 1e-4)
    assert_close(made, expected, tolerance, floor=floor)
    # In float32 rounding reaches 1e-4 in the gradient of a weighting, for some weights that a version of torch draws.
    assert_close(gradients, expected_gradients, tolerance if dtype == torch.float64 else 3e-4, floor=floor)


@each_circuit
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@each_controller
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_eager(
    build: Callable[..., Circuit], shape: tuple[int, ...], controller: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    assert_agrees(prepare(build(shape, **CONTROLLERS[controller]), dtype))


@each_circuit
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("layers", [2, 3])
@each_controller
def test_layers(build: Callable[..., Circuit], controller: str, layers: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for shape in SHAPES[:3]:
        assert_agrees(prepare(build(shape, **CONTROLLERS[controller], num_layers=layers, clip=0.5), dtype))


AUTOMATA: dict[str, dict[str, Any]] = {
    "alone": {"num_states": 1},
    "few": {"num_states": 3},
    "many": {"num_states": 37, "temperature": 1.0},
    "sharpened": {"num_states": 16, "sharpening": 1.7},
    "discrete": {"num_states": 8, "discrete": True},
}


def automaton(build: Callable[..., Circuit], name: str, shape: tuple[int, ...] = SHAPES[0], **options: Any) -> Circuit:
    """Its first state is moved to others by inputs and words read alike, and no two are equally likely."""
    controller = AUTOMATA[name]
    shape = (*shape[:-1], shape[-1] + controller["num_states"])
    circuit = build(shape, controller={"type": "automaton", **controller}, **options)
    with torch.no_grad():
        for parameter in circuit.controller.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return circuit


@each_circuit
@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", AUTOMATA)
def test_automata(build: Callable[..., Circuit], name: str, dtype: torch.dtype) -> None:
    for shape in SHAPES[:3]:
        torch.manual_seed(1)
        assert_agrees(automaton(build, name, shape).to(dtype), batch=11)


@each_stepped
@pytest.mark.parametrize("name", AUTOMATA)
def test_automata_of_a_population_and_step_by_step(build: Callable[..., Circuit], name: str) -> None:
    torch.manual_seed(0)
    circuit = automaton(build, name, SHAPES[2]).double()
    population = population_of(circuit, 3)
    inputs = torch.randn(STEPS, 9, INPUTS, dtype=torch.float64)
    answers = circuit.run_population(population, inputs)
    assert circuit.chosen_backend == "native"
    with torch.no_grad():
        whole, last = circuit(inputs)
        state, made = None, []
        for x in inputs:
            output, state = circuit.step(x, state)
            made.append(output)
    assert circuit.chosen_backend == "native"
    torch.testing.assert_close(torch.stack(made), whole, rtol=0, atol=1e-10)
    assert_close(leaves(state), leaves(last), 1e-10)
    circuit.backend = "eager"
    torch.testing.assert_close(answers, one_by_one(circuit, population, inputs), rtol=0, atol=1e-10)


def test_an_automaton_of_too_many_states_runs_eagerly() -> None:
    circuit = ntm(controller={"type": "automaton", "num_states": 129, "hidden_size": 130}, hidden_size=None)
    circuit(torch.randn(2, 1, INPUTS))
    assert circuit.chosen_backend == "eager"
    circuit.backend = "native"
    with pytest.raises(RuntimeError, match="its kernels take num_states up to 128; this circuit has 129"):
        circuit(torch.randn(2, 1, INPUTS))


@pytest.mark.parametrize("shift_range", [0, 1, 2, 9])
@pytest.mark.parametrize("slots", [1, 3, 16, 33])
def test_shift_ranges(slots: int, shift_range: int) -> None:
    torch.manual_seed(0)
    assert_agrees(prepare(ntm((slots, 3, 1, 1, 5), shift_range=shift_range)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_masked_content(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    assert_agrees(prepare(ntm(shape, masked_content=True), dtype))


DNC_OPTIONS: list[dict[str, Any]] = [
    {"usage_gradient": True},
    {"memory_wipe": True},
    {"squash": "tanh"},
    {"masked_content": True},
    {"link_sharpening": True},
    {"usage_gradient": True, "memory_wipe": True, "squash": "tanh", "masked_content": True, "link_sharpening": True},
]


@pytest.mark.parametrize("shape", [*SHAPES, (150, 3, 2, 3, 5)])
@pytest.mark.parametrize("options", DNC_OPTIONS, ids=["-".join(options) for options in DNC_OPTIONS])
def test_dnc_options(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    assert_agrees(prepare(dnc(shape, **options)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("slots", [1, 2, 16, 17, 128, 129, 200])
def test_allocation_under_ties(slots: int, dtype: torch.dtype) -> None:
    """One step from equal usages, in no order; later steps would differ by the rounding that decides near ties."""
    torch.manual_seed(0)
    circuit = prepare(dnc((slots, 3, 2, 1, 5)), dtype)
    inputs = torch.randn(1, BATCH, INPUTS, dtype=dtype)
    state = circuit.initial_state(BATCH)
    usage = torch.randint(0, 5, (BATCH, slots)).to(dtype) / 4
    state = state._replace(accessor=state.accessor._replace(usage=usage))
    made, gradients = results(circuit, "native", inputs, state)
    expected, expected_gradients = results(circuit, "eager", inputs, state)
    tolerance, floor = (1e-9, 1e-12) if dtype == torch.float64 else (1e-4, 1e-4)
    assert_close(made, expected, tolerance, floor=floor)
    assert_close(gradients, expected_gradients, tolerance, floor=floor)


@pytest.fixture(params=library.INSTRUCTION_SETS)
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One after another, those that the processor has."""
    name: str = request.param
    variant = library.load_variant(name)
    if isinstance(variant, str):
        pytest.skip(variant)
    assert library.instructions_of(variant) == name
    monkeypatch.setattr(library, "load", lambda: variant)
    return name


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("improved", [False, True])
@each_circuit
def test_every_instruction_set(
    build: Callable[..., Circuit], improved: bool, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"masked_content": True} if improved and build in ADDRESSED.values() else {}
    if improved and build is dnc:
        options |= {"memory_wipe": True, "link_sharpening": True, "usage_gradient": True, "squash": "tanh"}
    assert_agrees(prepare(build(shape, controller="gru" if improved else "lstm", **options), dtype), batch=13)


@pytest.mark.usefixtures("instructions")
@each_stepped
def test_populations_with_every_instruction_set(build: Callable[..., Circuit]) -> None:
    torch.manual_seed(0)
    circuit = build(SHAPES[2]).double()
    population = population_of(circuit, 3)
    inputs = torch.randn(STEPS, 9, INPUTS, dtype=torch.float64)
    answers = circuit.run_population(population, inputs)
    assert circuit.chosen_backend == "native"
    circuit.backend = "eager"
    torch.testing.assert_close(answers, one_by_one(circuit, population, inputs), rtol=0, atol=1e-10)


@each_circuit
@pytest.mark.parametrize("clip", [None, 0.05, 20.0])
@each_controller
def test_clip_and_its_gradient(build: Callable[..., Circuit], controller: str, clip: float | None) -> None:
    torch.manual_seed(0)
    assert_agrees(prepare(build(**CONTROLLERS[controller], clip=clip)))


@each_circuit
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 13])
def test_any_length(build: Callable[..., Circuit], steps: int) -> None:
    torch.manual_seed(0)
    assert_agrees(prepare(build()), steps=steps)


@each_addressed
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [-100.0, 100.0])
@pytest.mark.parametrize("improved", [False, True])
def test_extreme_strengths_and_gates(
    build: Callable[..., Circuit], improved: bool, size: float, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    options = {"masked_content": True} | ({"link_sharpening": True} if build is dnc else {}) if improved else {}
    circuit = prepare(build((33, 5, 2, 1, 6), **options), dtype)
    with torch.no_grad():
        for name, part in zip(
            circuit.accessor.interface.sizes,
            circuit.accessor.interface.linear.bias.split(list(circuit.accessor.interface.sizes.values())),
            strict=True,
        ):
            if name.endswith(("strengths", "sharpness", "gate", "mask", "powers")):
                part.fill_(size)
    inputs = torch.randn(STEPS, BATCH, INPUTS, dtype=dtype)
    state = random_state(circuit, BATCH)
    made, gradients = results(circuit, "native", inputs, state)
    assert all(torch.isfinite(part).all() for part in [*made, *gradients] if part is not None)
    if dtype == torch.float64:
        expected, expected_gradients = results(circuit, "eager", inputs, state)
        assert_close(made, expected, 1e-9)
        assert_close(gradients, expected_gradients, 1e-7, floor=1e-9)


@st.composite
def any_circuit(draw: st.DrawFn) -> Circuit:
    """Any shape, controller and option."""
    kind = draw(st.sampled_from(["ntm", "dnc"]))
    flags = ["masked_content"] + (["memory_wipe", "link_sharpening", "usage_gradient"] if kind == "dnc" else [])
    options: dict[str, Any] = {name: draw(st.booleans()) for name in flags}
    if kind == "dnc":
        options["squash"] = draw(st.sampled_from(["none", "tanh"]))
    else:
        options["shift_range"] = draw(st.integers(0, 3))
    options["controller"] = draw(st.sampled_from(["lstm", "gru", "feedforward"]))
    options["num_layers"] = draw(st.integers(1, 3))
    options["clip"] = draw(st.sampled_from([None, 0.3, 20.0]))
    shape = tuple(draw(st.integers(1, most)) for most in (40, 9, 5, 3, 20))
    return prepare(BUILDERS[kind](shape, **options))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(circuit=any_circuit(), steps=st.integers(1, 9), batch=st.integers(1, 18))
def test_any_circuit_agrees_with_eager(circuit: Circuit, steps: int, batch: int) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(steps, INPUTS, batch, dtype=torch.float64).transpose(1, 2)
    state = random_state(circuit, batch)
    made, gradients = results(circuit, "native", inputs, state)
    expected, expected_gradients = results(circuit, "eager", inputs, state)
    assert_close(made, expected, 1e-9)
    assert_close(gradients, expected_gradients, 1e-6, floor=1e-9)
    with torch.no_grad():
        circuit.backend = "native"
        alone = circuit(inputs, state)[0]
    torch.testing.assert_close(alone, made[0], rtol=0, atol=0)


@each_stepped
@pytest.mark.parametrize("improved", [False, True])
def test_gradients_agree_with_finite_differences(build: Callable[..., Circuit], improved: bool) -> None:
    torch.manual_seed(0)
    # The DNC's reference stops the gradient of the last write weights by default: finite differences would see it.
    options: dict[str, Any] = {"usage_gradient": True, "link_sharpening": improved} if build is dnc else {}
    options |= {"masked_content": improved} if build in ADDRESSED.values() else {}
    circuit = prepare(build((3, 2, 2, 1, 3), num_layers=2 if improved else 1, **options))
    circuit.backend = "native"
    state = random_state(circuit, 2)
    shapes = map_state(lambda leaf: leaf, state)

    def run(inputs: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        parts = iter(given)
        outputs, last = circuit(inputs, map_state(lambda _: next(parts), shapes))
        return outputs, *leaves(last)

    inputs = torch.randn(3, 2, INPUTS, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (inputs, *(leaf.requires_grad_() for leaf in leaves(state))))


@each_circuit
def test_chunks_agree_with_the_whole(build: Callable[..., Circuit]) -> None:
    torch.manual_seed(0)
    circuit = prepare(build())
    circuit.backend = "native"
    inputs = torch.randn(9, BATCH, INPUTS, dtype=torch.float64)
    weights = torch.randn(9, BATCH, OUTPUTS, dtype=torch.float64)
    whole, last = circuit(inputs)
    expected = torch.autograd.grad((whole * weights).sum(), list(circuit.parameters()))
    state, parts = None, []
    for chunk in inputs.split([4, 1, 4]):
        outputs, state = circuit(chunk, state)
        parts.append(outputs)
    assert_close([torch.cat(parts), *leaves(state)], [whole, *leaves(last)], 1e-12)
    gradients = torch.autograd.grad((torch.cat(parts) * weights).sum(), list(circuit.parameters()))
    assert_close(list(gradients), list(expected), 1e-10)


@each_circuit
def test_detached_state_cuts_the_gradient(build: Callable[..., Circuit]) -> None:
    torch.manual_seed(0)
    circuit = prepare(build())
    inputs = torch.randn(6, BATCH, INPUTS, dtype=torch.float64)
    gradients = []
    for backend in ("native", "eager"):
        circuit.backend = backend
        first = inputs[:3].clone().requires_grad_()
        _, state = circuit(first)
        outputs, _ = circuit(inputs[3:], detach(state))
        gradients.append(torch.autograd.grad(outputs.sum(), [first, *circuit.parameters()], allow_unused=True))
        assert gradients[-1][0] is None
    assert_close(list(gradients[0]), list(gradients[1]), 1e-9)


@each_circuit
@pytest.mark.parametrize("which", range(8))
def test_partial_gradients(build: Callable[..., Circuit], which: int) -> None:
    """From one result alone, output or leaf of the last state."""
    torch.manual_seed(0)
    circuit = prepare(build())
    inputs = torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64)
    state = random_state(circuit, BATCH)
    gradients = []
    for backend in ("native", "eager"):
        circuit.backend = backend
        outputs, last = circuit(inputs, state)
        made = [part for part in (outputs, *leaves(last)) if part.is_floating_point()]
        chosen = made[which % len(made)]
        weight = torch.linspace(-1, 1, chosen.numel(), dtype=torch.float64).view_as(chosen)
        gradients.append(torch.autograd.grad((chosen * weight).sum(), list(circuit.parameters()), allow_unused=True))
    native_gradients, eager_gradients = ([torch.zeros(()) if g is None else g for g in part] for part in gradients)
    for a, e in zip(native_gradients, eager_gradients, strict=True):
        torch.testing.assert_close(a.expand_as(e) if e.dim() else a.sum(), e.to(a.dtype), rtol=1e-9, atol=1e-12)


@each_circuit
def test_gradient_of_some_arguments_only(build: Callable[..., Circuit]) -> None:
    torch.manual_seed(0)
    circuit = prepare(build())
    frozen, free = circuit.accessor.interface.linear.weight, circuit.controller.inputs[0].weight
    frozen.requires_grad_(False)
    gradients = []
    for backend in ("native", "eager"):
        circuit.backend = backend
        outputs, _ = circuit(torch.ones(STEPS, BATCH, INPUTS, dtype=torch.float64))
        gradients.append(torch.autograd.grad(outputs.square().sum(), free)[0])
    assert_close([gradients[0]], [gradients[1]], 1e-9)


@each_circuit
def test_inputs_need_not_be_contiguous(build: Callable[..., Circuit]) -> None:
    torch.manual_seed(0)
    circuit = prepare(build(batch_first=True))
    inputs = torch.randn(INPUTS, STEPS, BATCH, dtype=torch.float64).permute(2, 1, 0)[:, ::2]
    state = map_state(lambda leaf: torch.stack([leaf, leaf], -1)[..., 0], random_state(circuit, BATCH))
    made, gradients = results(circuit, "native", inputs, state)
    expected, expected_gradients = results(circuit, "eager", inputs, state)
    assert_close(made, expected, 1e-9)
    assert_close(gradients, expected_gradients, 1e-9)


@each_circuit
def test_without_gradients(build: Callable[..., Circuit]) -> None:
    torch.manual_seed(0)
    circuit = prepare(build())
    circuit.backend = "native"
    inputs = torch.randn(8, BATCH, INPUTS, dtype=torch.float64)
    outputs, last = circuit(inputs)
    with torch.no_grad():
        again, again_last = circuit(inputs)
    assert not again.requires_grad
    assert torch.equal(outputs, again)
    assert all(torch.equal(a, b) for a, b in zip(leaves(last), leaves(again_last), strict=True))


@each_circuit
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_repeats_bit_for_bit_and_threads_agree(build: Callable[..., Circuit], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    circuit = prepare(build(SHAPES[2]), dtype)
    inputs, state = torch.randn(STEPS, 21, INPUTS, dtype=dtype), random_state(circuit, 21)
    made, gradients = results(circuit, "native", inputs, state)
    again, again_gradients = results(circuit, "native", inputs, state)
    pairs = zip([*made, *gradients], [*again, *again_gradients], strict=True)
    assert all(torch.equal(a, b) for a, b in pairs if a is not None)
    torch.set_num_threads(2)
    shared, shared_gradients = results(circuit, "native", inputs, state)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    assert_close(shared, made, tolerance)
    assert_close(shared_gradients, gradients, tolerance)


def threaded(circuit: Circuit, inputs: Tensor) -> list[Tensor]:
    """Answers and gradients with three threads, from the initial state."""
    torch.set_num_threads(3)
    made, gradients = results(circuit, "native", inputs, circuit.initial_state(inputs.shape[1]))
    return [*made, *(gradient for gradient in gradients if gradient is not None)]


def test_threads_of_a_process_serve_several_callers_and_not_its_fork() -> None:
    """The threads that wait for work live on; one that is forked has none of them, and must not wait for them."""
    torch.manual_seed(0)
    circuit, inputs = prepare(papertape.NTM(INPUTS, OUTPUTS, memory_size=8, word_size=4)), torch.randn(9, 29, INPUTS)
    inputs = inputs.double()
    alone = threaded(circuit, inputs)
    with ThreadPoolExecutor(4) as callers:
        for found in callers.map(lambda _: native.run(circuit, inputs, circuit.initial_state(29))[0], range(40)):
            assert torch.equal(circuit.answer(found), alone[0])
    with multiprocessing.get_context("fork").Pool(1) as forked:
        answers = forked.apply_async(_answers, (circuit, inputs)).get(timeout=60)
    assert torch.equal(answers, alone[0].detach())


def test_fork_of_a_process_whose_threads_are_pytorch_s_alone() -> None:
    """A fork does not wait for PyTorch's threads, though its parent had never called the library with several."""
    program = """
import multiprocessing, unittest.mock
import torch, papertape
from papertape.core.kernels.native import library

def answers():
    torch.set_num_threads(1)
    with unittest.mock.patch("torch.get_num_threads", return_value=3), torch.no_grad():
        return float(circuit(inputs)[0].sum())

library.load()
torch.manual_seed(0)
circuit, inputs = papertape.NTM(3, 2, memory_size=8, word_size=4, backend="native"), torch.randn(5, 29, 3)
torch.set_num_threads(2)
torch.ones(2**20).sum()
with multiprocessing.get_context("fork").Pool(1) as forked:
    print(forked.apply_async(answers).get(timeout=60) == answers())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["True"]


def _answers(circuit: Circuit, inputs: Tensor) -> Tensor:
    torch.set_num_threads(1)  # of torch, which does not survive a fork; the library's own are asked for
    with unittest.mock.patch("torch.get_num_threads", return_value=3), torch.no_grad():
        answered: Tensor = circuit(inputs)[0]
    return answered


@each_circuit
def test_rows_of_a_batch_are_independent(build: Callable[..., Circuit]) -> None:
    torch.manual_seed(0)
    circuit = prepare(build())
    circuit.backend = "native"
    inputs, state = torch.randn(STEPS, 19, INPUTS, dtype=torch.float64), random_state(circuit, 19)
    features, last = native.run(circuit, inputs, state)
    order = torch.randperm(19)[:6]
    some, some_last = native.run(circuit, inputs[:, order], map_state(lambda leaf: leaf[order], state))
    assert torch.equal(some, features[:, order])
    assert all(torch.equal(a, b[order]) for a, b in zip(leaves(some_last), leaves(last), strict=True))


@each_circuit
def test_backward_twice_through_a_kept_graph(build: Callable[..., Circuit]) -> None:
    torch.manual_seed(0)
    circuit = prepare(build())
    circuit.backend = "native"
    outputs, _ = circuit(torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64))
    first = torch.autograd.grad(outputs.sum(), list(circuit.parameters()), retain_graph=True)
    second = torch.autograd.grad(outputs.sum(), list(circuit.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@each_circuit
def test_derivatives_of_derivatives_are_refused(build: Callable[..., Circuit]) -> None:
    circuit = build(backend="native")
    outputs, _ = circuit(torch.ones(STEPS, BATCH, INPUTS))
    weight = circuit.accessor.interface.linear.weight
    (gradient,) = torch.autograd.grad(outputs.sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        gradient.sum().backward(retain_graph=True)
    for other in (weight, circuit.accessor.interface.linear.bias):
        with pytest.raises(RuntimeError, match="second derivatives"):
            torch.autograd.grad(gradient.sum(), other, retain_graph=True)


@each_circuit
def test_nan_is_not_swallowed(build: Callable[..., Circuit]) -> None:
    circuit = build(backend="native")
    inputs = torch.zeros(STEPS, 2, INPUTS)
    inputs[1, 0, 0] = float("nan")
    outputs, _ = circuit(inputs)
    assert torch.isnan(outputs[1:, 0]).all()
    assert torch.isfinite(outputs[:, 1]).all()


@each_circuit
def test_another_number_of_slots_than_at_construction(build: Callable[..., Circuit]) -> None:
    torch.manual_seed(0)
    circuit = prepare(build(**({"memory_init": "constant", "weight_init": "first"} if build is ntm else {})))
    inputs = torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64)
    state = circuit.initial_state(BATCH, memory_size=23)
    made, gradients = results(circuit, "native", inputs, state)
    expected, expected_gradients = results(circuit, "eager", inputs, state)
    assert_close(made, expected, 1e-9)
    assert_close(gradients, expected_gradients, 1e-9)


def refusals() -> dict[str, tuple[Callable[[], Circuit], str]]:
    def hooked() -> Circuit:
        circuit = ntm()
        circuit.controller.register_forward_hook(lambda *_: None)
        return circuit

    def mixed() -> Circuit:
        circuit = ntm()
        circuit.controller.double()
        return circuit

    return {
        "hooks": (hooked, "hooks"),
        "types": (mixed, "float32 or float64 throughout"),
        "half": (lambda: ntm().bfloat16(), "float32 or float64"),
    }


@pytest.mark.parametrize(("build", "message"), refusals().values(), ids=refusals().keys())
def test_refusals_name_the_reason(build: Callable[[], Circuit], message: str) -> None:
    circuit = build()
    inputs = torch.zeros(STEPS, BATCH, INPUTS, dtype=circuit.output.weight.dtype)
    state = circuit.initial_state(BATCH)
    reason = native.unavailable(circuit, inputs, state)
    assert reason is not None and message in reason
    circuit.backend = "native"
    with pytest.raises(RuntimeError, match=r"backend: 'native' cannot run this circuit: .*" + message):
        circuit(inputs)


def test_wrong_shapes_are_left_to_eager() -> None:
    circuit = ntm()
    state = circuit.initial_state(BATCH)
    wrong = state._replace(reads=torch.zeros(BATCH, 1, 9))
    assert "reads has shape" in str(native.unavailable(circuit, torch.zeros(STEPS, BATCH, INPUTS), wrong))


@each_circuit
def test_auto_takes_it_and_steps_aside(build: Callable[..., Circuit]) -> None:
    circuit = build()
    inputs = torch.randn(STEPS, BATCH, INPUTS)
    circuit(inputs)
    assert circuit.chosen_backend == "native"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "autocast" in str(native.unavailable(circuit, inputs, circuit.initial_state(BATCH)))
    parameters = dict(circuit.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(circuit, parameters, (inputs,))[0].square().sum()

    transformed = torch.func.grad(loss)(parameters)
    assert circuit.chosen_backend == "eager"
    plain = torch.autograd.grad(loss(parameters), list(parameters.values()))
    assert circuit.chosen_backend == "native"
    for name, gradient in zip(parameters, plain, strict=True):
        torch.testing.assert_close(gradient, transformed[name], rtol=1e-3, atol=1e-4)


@pytest.fixture
def loaded_anew() -> Iterator[None]:
    def forget() -> None:
        library.load.cache_clear()
        library.load_variant.cache_clear()

    forget()
    yield
    forget()


@pytest.mark.usefixtures("loaded_anew")
def test_built_from_other_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "build_identity", lambda: "other")
    assert "other sources" in str(library.load())


@pytest.mark.usefixtures("loaded_anew")
def test_without_a_library_auto_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "VARIANTS", ("_missing",))
    circuit = ntm()
    circuit(torch.zeros(STEPS, BATCH, INPUTS))
    assert circuit.chosen_backend == "eager"
    assert "not built" in str(library.load())


@pytest.mark.usefixtures("loaded_anew")
@pytest.mark.parametrize("content", ["damaged", "cut short", "another", "older"])
def test_with_a_library_that_is_none_auto_serves(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged file, a part of one, another program's library, and one of which a function is missing."""
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    for variant in library.VARIANTS:
        if content == "damaged":
            (tmp_path / f"{variant}{suffix}").write_text("no library")
        elif content == "cut short":
            if sys.platform != "linux":
                pytest.skip("only ELF files tell where they end")
            whole = Path(library._open(library.VARIANTS[0])._name).read_bytes()  # type: ignore[union-attr]
            (tmp_path / f"{variant}{suffix}").write_bytes(whole[: len(whole) // 3])
        else:
            own = content == "older" and variant == library.VARIANTS[0]
            file = library._open(variant)._name if own else _ctypes.__file__  # type: ignore[union-attr]
            (tmp_path / f"{variant}{suffix}").symlink_to(file)
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    circuit = ntm()
    circuit(torch.zeros(STEPS, BATCH, INPUTS))
    assert circuit.chosen_backend == "eager"
    assert "the native library does not load (" in str(library.load())


@pytest.mark.usefixtures("loaded_anew")
@pytest.mark.parametrize("name", library.INSTRUCTION_SETS)
def test_an_instruction_set_can_be_asked_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    possible = library.load_variant(name)
    monkeypatch.setenv(library.FORCED, name)
    if isinstance(possible, str):
        with pytest.raises(ValueError, match=rf"^PAPERTAPE_NATIVE: got '{name}'; .*"):
            library.load()
    else:
        assert library.instructions_of(library.load()) == name


@pytest.mark.usefixtures("loaded_anew")
@pytest.mark.parametrize("backend", ["native", "auto"])
@pytest.mark.parametrize("name", ["mmx", "AVX2", "_avx2", "avx512 "])
def test_an_unknown_instruction_set_is_refused(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.FORCED, name)
    circuit = ntm(backend=backend)
    with pytest.raises(ValueError, match=rf"^PAPERTAPE_NATIVE: got '{name}'; allowed: baseline, avx2, avx512$"):
        circuit(torch.zeros(STEPS, BATCH, INPUTS))


@pytest.mark.usefixtures("loaded_anew")
@pytest.mark.parametrize("level", [0, 1])
def test_an_instruction_set_of_other_processors_is_refused(level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Processor:
        def processor_level(self) -> int:
            return level

    monkeypatch.setattr(library, "_open", lambda variant: Processor())
    monkeypatch.setenv(library.FORCED, "avx512")
    has = ["baseline", "baseline, avx2"][level]
    with pytest.raises(ValueError, match=rf"^PAPERTAPE_NATIVE: got 'avx512'; this processor allows {has}$"):
        library.load()


@pytest.mark.usefixtures("loaded_anew")
@pytest.mark.parametrize("name", library.INSTRUCTION_SETS)
def test_what_is_not_built_cannot_be_forced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_open", lambda variant: None)
    monkeypatch.setenv(library.FORCED, name)
    with pytest.raises(ValueError, match=rf"^PAPERTAPE_NATIVE: got '{name}'; the native library is not built"):
        library.load()


@pytest.mark.usefixtures("loaded_anew")
def test_an_empty_name_forces_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    best = library.load()
    library.load.cache_clear()
    monkeypatch.setenv(library.FORCED, "")
    assert library.load() is best


@each_addressed
@pytest.mark.parametrize("improved", [False, True])
def test_parts_of_the_interface_vector_lie_where_python_says(build: Callable[..., Circuit], improved: bool) -> None:
    torch.manual_seed(0)
    options = {"masked_content": True} | ({"link_sharpening": True} if build is dnc else {}) if improved else {}
    circuit = prepare(build(SHAPES[3], **options))
    inputs = torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64)
    state = random_state(circuit, BATCH)
    before, _ = results(circuit, "native", inputs, state)
    interface = circuit.accessor.interface
    interface.sizes = dict(sorted(interface.sizes.items(), key=lambda part: part[0][::-1]))
    after, _ = results(circuit, "native", inputs, state)
    assert not torch.allclose(before[0], after[0])
    assert_agrees(circuit)
    interface.sizes = {f"new_{name}": size for name, size in interface.sizes.items()}
    assert "does not know the part 'new_" in str(native.unavailable(circuit, inputs, circuit.initial_state(BATCH)))


@each_addressed
@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (addressing, "NORM_EPSILON", 0.2),
        (addressing, "USAGE_EPSILON", 0.3),
        (addressing, "SHARPEN_EPSILON", 0.1),
        (interface, "MASK_MIN", 0.6),
    ],
)
def test_constants_are_those_of_the_equations(
    build: Callable[..., Circuit], module: Any, name: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    options = {"link_sharpening": True} if build is dnc else {}
    circuit = prepare(build(SHAPES[3], masked_content=True, **options))
    inputs = torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64)
    state = random_state(circuit, BATCH)
    before, _ = results(circuit, "native", inputs, state)
    monkeypatch.setattr(module, name, value)
    after, _ = results(circuit, "native", inputs, state)
    assert torch.allclose(before[0], after[0]) == (build is ntm and name == "USAGE_EPSILON")
    assert_agrees(circuit)


@each_addressed
@pytest.mark.parametrize("slots", [7, 150])
def test_nan_in_the_usage_or_memory_spreads_as_in_eager(build: Callable[..., Circuit], slots: int) -> None:
    torch.manual_seed(0)
    circuit = build((slots, 4, 2, 1, 6))
    inputs = torch.randn(1, BATCH, INPUTS)
    state = random_state(circuit, BATCH)
    for leaf in leaves(state.accessor):
        given = map_state(lambda part, leaf=leaf: part.clone() if part is leaf else part, state)
        next(part for part, old in zip(leaves(given), leaves(state), strict=True) if old is leaf)[1, ..., 0] = torch.nan
        made, expected = (results(circuit, backend, inputs, given)[0] for backend in ("native", "eager"))
        for part, reference in zip(made, expected, strict=True):
            torch.testing.assert_close(part, reference, rtol=1e-4, atol=1e-5, equal_nan=True)


def population_of(circuit: Circuit, members: int, seed: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def spread(parameter: Tensor) -> Tensor:
        noise = torch.randn((members, *parameter.shape), generator=generator, dtype=torch.float64)
        return parameter.detach() + 0.3 * noise.to(parameter)

    return {name: spread(parameter) for name, parameter in circuit.named_parameters()}


def one_by_one(circuit: Circuit, population: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """The answers of a loop over members, ``[T, P, B, O]``."""
    answers = []
    for member in range(len(next(iter(population.values())))):
        parameters = {name: stack[member] for name, stack in population.items()}
        with torch.no_grad():
            answers.append(torch.func.functional_call(circuit, parameters, (inputs,))[0])
    return torch.stack(answers, dim=1)


@each_stepped
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("layers", [1, 2])
@each_controller
def test_population_agrees_with_a_loop_over_members(
    build: Callable[..., Circuit], controller: str, layers: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    memory = {"memory_init": "learned"} if build is ntm else {}
    circuit = build(SHAPES[2], **CONTROLLERS[controller], num_layers=layers, clip=0.7, **memory).to(dtype)
    population = population_of(circuit, 4)
    inputs = torch.randn(STEPS, 19, INPUTS, dtype=dtype)
    answers = circuit.run_population(population, inputs)
    assert circuit.chosen_backend == "native"
    # In float64: single precision alone drifts further from it over the steps than the two loops differ.
    circuit.backend = "eager"
    exact = {name: stack.double() for name, stack in population.items()}
    expected = one_by_one(circuit.double(), exact, inputs.double())
    torch.testing.assert_close(answers.double(), expected, rtol=0, atol=1e-10 if dtype == torch.float64 else 2e-4)


@each_stepped
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_members_do_not_depend_on_each_other(build: Callable[..., Circuit], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    circuit = build(SHAPES[2]).to(dtype)
    population = population_of(circuit, 5)
    inputs = torch.randn(STEPS, 3, INPUTS, dtype=dtype)
    whole = circuit.run_population(population, inputs)
    for part in (slice(0, 1), slice(1, 3), slice(4, 5)):
        some = circuit.run_population({name: stack[part] for name, stack in population.items()}, inputs)
        assert torch.equal(some, whole[:, part])
    torch.set_num_threads(2)
    assert torch.equal(circuit.run_population(population, inputs), whole)


@each_circuit
def test_population_of_strided_genomes(build: Callable[..., Circuit]) -> None:
    torch.manual_seed(0)
    circuit = build()
    layout = Layout.of(circuit)
    genomes = torch.randn(layout.size, 3).T * 0.3
    inputs = torch.randn(STEPS, INPUTS, BATCH).transpose(1, 2)
    answers = circuit.run_population(layout.split(genomes), inputs)
    whole = circuit.run_population(layout.split(genomes.contiguous()), inputs.contiguous())
    assert torch.equal(answers, whole)


@each_stepped
def test_population_asks_for_a_backend(build: Callable[..., Circuit]) -> None:
    torch.manual_seed(0)
    circuit = build().double()
    population, inputs = population_of(circuit, 2), torch.randn(STEPS, BATCH, INPUTS)
    circuit.backend = "native"
    with pytest.raises(RuntimeError, match="'native' cannot run a population of this circuit: .*float32 or float64"):
        circuit.run_population(population, inputs)
    circuit.backend = "eager"
    mapped = circuit.run_population(population, inputs.double())
    assert circuit.chosen_backend == "eager"
    torch.testing.assert_close(mapped, one_by_one(circuit, population, inputs.double()))


@pytest.mark.parametrize("embedding_size", [None, 6])
def test_a_tape_is_told_where_its_input_ends(embedding_size: int | None) -> None:
    """Natively as by eager, before and after the end, which comes at another step in each sequence or never."""
    torch.manual_seed(0)
    circuit = tape((9, 3, 2, 1, 11), embedding_size=embedding_size, end_channels=2).double()
    tokens = torch.tensor([[0, 1, 1, 0, 1, 2, 3, 3, 0], [1, 3, 0, 0, 1, 0, 2, 0, 1], [0, 1, 0, 1, 0, 1, 0, 1, 0]]).T
    inputs = tokens if embedding_size else torch.nn.functional.one_hot(tokens, INPUTS).double()
    found = {}
    for backend in ("native", "eager"):
        circuit.backend = backend
        whole, last = circuit(inputs)
        first, state = circuit(inputs[:4])
        second, state = circuit(inputs[4:], state)
        torch.testing.assert_close(torch.cat([first, second]), whole)
        assert state.accessor.input_length.tolist() == last.accessor.input_length.tolist() == [5, 1, 9]
        assert last.accessor.input_ended.tolist() == [True, True, False]
        known = circuit.initial_state(3, input_length=4)
        found[backend] = [whole, last.accessor.memory, circuit(inputs, known)[0]]
    for native_part, eager_part in zip(found["native"], found["eager"], strict=True):
        torch.testing.assert_close(native_part, eager_part)


def test_a_tape_s_jumps_are_exact_however_long_its_input_was() -> None:
    torch.manual_seed(0)
    circuit = tape((9, 3, 2, 1, 11))
    start = circuit.initial_state(3)
    inputs, memory = torch.rand(9, 3, INPUTS), torch.rand_like(start.accessor.memory)
    outputs = {}
    for backend in ("native", "eager"):
        circuit.backend = backend
        for length in (7, 7 + 9 * 2**24, 2**24 - 3):
            lived = start.accessor._replace(memory=memory, input_length=torch.full((3,), length))
            outputs[backend, length] = circuit(inputs, start._replace(accessor=lived))[0]
    for length in (7, 7 + 9 * 2**24, 2**24 - 3):
        torch.testing.assert_close(outputs["native", length], outputs["eager", length])
    torch.testing.assert_close(outputs["native", 7], outputs["native", 7 + 9 * 2**24], rtol=0, atol=0)


@pytest.mark.parametrize("build", [stack, tape])
def test_stacks_and_tapes_run_natively_after_any_controller(build: Callable[..., Circuit]) -> None:
    """Where no word is fed back."""
    torch.manual_seed(0)
    controller = {"type": "convolution", "hidden_size": 7}
    circuit = build(SHAPES[2], controller=controller, hidden_size=None, read_feedback=False).double()
    inputs, state = torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64), random_state(circuit, BATCH)
    made, gradients = results(circuit, "native", inputs, state)
    expected, expected_gradients = results(circuit, "eager", inputs, state)
    assert_close(made, expected, 1e-9)
    assert_close(gradients, expected_gradients, 1e-9)


def test_one_cell_of_a_tape_is_whatever_was_written_last() -> None:
    torch.manual_seed(0)
    circuit = papertape.TapeRNN(INPUTS, OUTPUTS, memory_size=1, word_size=3, write_layers=[], backend="native")
    inputs = torch.randn(STEPS, BATCH, INPUTS)
    outputs, last = circuit(inputs)
    circuit.backend = "eager"
    torch.testing.assert_close(outputs, circuit(inputs)[0])
    torch.testing.assert_close(last.accessor.memory[:, :, 0], last.reads)


@pytest.mark.parametrize("backend", ["native", "eager"])
def test_a_cell_that_was_replaced_gets_no_gradient_even_from_one_without_bounds(backend: str) -> None:
    circuit = papertape.TapeRNN(INPUTS, OUTPUTS, memory_size=4, word_size=3, backend=backend)
    state = circuit.initial_state(BATCH)
    memory = torch.randn(BATCH, 1, 4, 3).requires_grad_()
    state = state._replace(accessor=state.accessor._replace(memory=memory))
    _, last = circuit(torch.randn(1, BATCH, INPUTS), state)
    last.accessor.memory.backward(torch.full_like(memory, torch.inf))
    assert memory.grad is not None
    assert (memory.grad[:, :, 0] == 0).all()
    assert (memory.grad[:, :, 1:] == torch.inf).all()


def test_layers_that_make_a_tape_s_words_run_as_they_are_written() -> None:
    circuit = papertape.TapeRNN(INPUTS, OUTPUTS, write_layers=[4])
    inputs = torch.randn(STEPS, BATCH, INPUTS)
    reason = native.unavailable(circuit, inputs, circuit.initial_state(BATCH))
    assert reason == "it does not know write_layers=[4] of SoftTapeAccessor"
    circuit(inputs)
    assert circuit.chosen_backend == "eager"


def test_a_population_of_tapes_is_mapped() -> None:
    circuit = tape()
    population, inputs = population_of(circuit, 2), torch.randn(STEPS, BATCH, INPUTS)
    torch.testing.assert_close(circuit.run_population(population, inputs), one_by_one(circuit, population, inputs))
    circuit.backend = "native"
    with pytest.raises(RuntimeError, match="it runs no populations with a SoftTapeAccessor"):
        circuit.run_population(population, inputs)
