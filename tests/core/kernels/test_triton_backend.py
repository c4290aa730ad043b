"""The Triton backend against the eager one, and what it says where it cannot run."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor

import papertape
from papertape.core.circuit import Circuit
from papertape.core.kernels import triton
from papertape.core.state import map_state

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

STEPS, BATCH, INPUTS, OUTPUTS = 3, 2, 3, 2
TINY = {"memory_size": 5, "word_size": 3, "num_reads": 2, "hidden_size": 4}


def ntm(**options: Any) -> Circuit:
    defaults = {"memory_init": "truncated_normal", "weight_init": "learned"}
    return papertape.NTM(INPUTS, OUTPUTS, **(TINY | defaults | options))


def dnc(**options: Any) -> Circuit:
    return papertape.DNC(INPUTS, OUTPUTS, **(TINY | options))


CIRCUITS: dict[str, Callable[[], Circuit]] = {
    "ntm": ntm,
    "ntm-gru": lambda: ntm(controller="gru", num_layers=2, num_writes=2, shift_range=2, masked_content=True),
    "ntm-one-slot": lambda: ntm(memory_size=1, word_size=1, num_reads=1, controller="feedforward"),
    "dnc": dnc,
    "dnc-steps": lambda: dnc(num_layers=2),
    "dnc-two-writes": lambda: dnc(num_writes=2, memory_wipe=True, link_sharpening=True, squash="tanh"),
    "dnc-options": lambda: dnc(controller="feedforward", masked_content=True, usage_gradient=True, memory_size=1),
    "dnc-two-layers": lambda: dnc(
        num_layers=2, num_writes=2, masked_content=True, memory_wipe=True, usage_gradient=True, memory_size=1
    ),
}


STEP_BY_STEP = {"ntm-gru", "dnc-steps", "dnc-two-writes", "dnc-two-layers"}
"""Circuits that are to run so, though whole sequences of them fit into a kernel."""


@pytest.fixture
def step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no sequence fitted into a kernel."""
    from papertape.core.kernels.triton import sequences

    monkeypatch.setattr(sequences, "unavailable", lambda *_: "this is a test of the steps")


def leaves(state: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_state(lambda leaf: (found.append(leaf), leaf)[1], state)
    return found


def random_state(circuit: Circuit, seed: int = 0) -> Any:
    """The first state, moved a little in every leaf, so that none of it is zero and weightings stay near a sum of 1."""
    generator = torch.Generator().manual_seed(seed)

    def moved(leaf: Tensor) -> Tensor:
        noise = torch.rand(leaf.shape, generator=generator, dtype=leaf.dtype)
        return leaf.detach() + 0.5 * noise.to(leaf.device) / (leaf.shape[-1] + 1)

    return map_state(moved, circuit.initial_state(BATCH))


def results(circuit: Circuit, backend: str, inputs: Tensor, state: Any) -> list[Tensor]:
    """Outputs, every leaf of the last state, and the gradients of a random sum of them in everything."""
    circuit.backend = backend
    inputs = inputs.detach().clone().requires_grad_()
    state = map_state(lambda leaf: leaf.detach().clone().requires_grad_(), state)
    outputs, last = circuit(inputs, state)
    assert circuit.chosen_backend == backend
    made = [outputs, *leaves(last)]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(part.shape, generator=generator, dtype=torch.float64).to(part) for part in made]
    total = sum((part * weight).sum() for part, weight in zip(made, weights, strict=True))
    given = [inputs, *leaves(state), *circuit.parameters()]
    gradients = torch.autograd.grad(total, given, allow_unused=True, materialize_grads=True)
    return [part.detach() for part in (*made, *gradients)]


@needs_triton
@pytest.mark.parametrize("name", CIRCUITS)
@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)])
def test_agrees_with_eager(
    name: str, dtype: torch.dtype, triton_device: torch.device, request: pytest.FixtureRequest
) -> None:
    if name in STEP_BY_STEP:
        request.getfixturevalue("step_by_step")
    torch.manual_seed(0)
    circuit = CIRCUITS[name]().to(triton_device, dtype)
    inputs = torch.randn(STEPS, BATCH, INPUTS, device=triton_device, dtype=dtype)
    state = random_state(circuit)
    made = results(circuit, "triton", inputs, state)
    double = map_state(lambda leaf: leaf.double(), state)
    expected = results(circuit.double(), "eager", inputs.double(), double)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    for result, wanted in zip(made, expected, strict=True):
        assert result.dtype == dtype and result.shape == wanted.shape
        error = (result.double() - wanted).abs().max() / (wanted.abs().max() + 1e-2)
        assert error < tolerance, f"{list(wanted.shape)}: relative error {error:.1e}"


def gradients(circuit: Circuit, inputs: Tensor, loss: Callable[[Tensor, Any], Tensor]) -> list[Tensor]:
    outputs, last = circuit(inputs)
    return list(torch.autograd.grad(loss(outputs, last), [*circuit.parameters()], materialize_grads=True))


@needs_triton
@pytest.mark.usefixtures("step_by_step")
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_links_are_kept_for_few_steps(steps: int, triton_device: torch.device) -> None:
    from papertape.core.kernels.triton import steps as stepwise

    torch.manual_seed(0)
    circuit = dnc(memory_size=11, backend="triton").to(triton_device, torch.float64)
    inputs = torch.randn(steps, BATCH, INPUTS, device=triton_device, dtype=torch.float64)
    kept: set[int] = set()

    def pack(tensor: Tensor) -> Tensor:
        if tensor.numel() == BATCH * 11 * 11:
            kept.add(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs, _ = circuit(inputs)
    every = stepwise.links_kept_every(steps)
    assert len(kept) == -(-steps // every) and every**2 >= steps
    made = torch.autograd.grad(outputs.square().sum(), [*circuit.parameters()])
    circuit.backend = "eager"
    expected = gradients(circuit, inputs, lambda outputs, _: outputs.square().sum())
    torch.testing.assert_close(list(made), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
@needs_triton
@pytest.mark.usefixtures("step_by_step")
def test_links_are_computed_again_wherever_the_backward_pass_begins(triton_device: torch.device) -> None:
    """In the middle of a chunk, twice, and where autograd gives each kept tensor only once."""
    torch.manual_seed(0)
    circuit = dnc(num_reads=1).to(triton_device, torch.float64)
    inputs = torch.randn(6, 1, INPUTS, device=triton_device, dtype=torch.float64)
    # The last usage depends on no links of the last step.
    losses = [lambda _, last: last.accessor.usage.square().sum(), lambda outputs, _: outputs.square().sum()]
    for loss in losses:
        circuit.backend = "triton"
        outputs, last = circuit(inputs)
        total = loss(outputs, last)
        parameters = [*circuit.parameters()]
        made = [
            torch.autograd.grad(total, parameters, retain_graph=again, materialize_grads=True)
            for again in (True, False)
        ]
        checkpointed = torch.utils.checkpoint.checkpoint(
            lambda x, loss=loss: loss(*circuit(x)), inputs, use_reentrant=False
        )
        made.append(torch.autograd.grad(checkpointed, parameters, materialize_grads=True))
        with pytest.raises(RuntimeError, match="second time"):
            total.backward()
        circuit.backend = "eager"
        expected = gradients(circuit, inputs, loss)
        for each in made:
            torch.testing.assert_close(list(each), expected, rtol=1e-8, atol=1e-10)


@needs_triton
@pytest.mark.parametrize("name", ["ntm", "ntm-gru", "dnc"])
def test_activation_checkpointing(name: str, triton_device: torch.device) -> None:
    """Which gives what a kernel saved once, and once only."""
    torch.manual_seed(0)
    circuit = CIRCUITS[name]().to(triton_device, torch.float64)
    inputs = torch.randn(2, BATCH, INPUTS, device=triton_device, dtype=torch.float64)
    circuit.backend = "triton"
    outputs = torch.utils.checkpoint.checkpoint(lambda x: circuit(x)[0], inputs, use_reentrant=False)
    parameters = list(circuit.parameters())
    made = torch.autograd.grad(outputs.square().sum(), parameters, materialize_grads=True)
    circuit.backend = "eager"
    expected = gradients(circuit, inputs, lambda outputs, _: outputs.square().sum())
    torch.testing.assert_close(list(made), expected, rtol=1e-8, atol=1e-10)


@needs_triton
@pytest.mark.parametrize("build", [ntm, dnc])
def test_without_gradients_and_step_by_step(build: Callable[..., Circuit], triton_device: torch.device) -> None:
    torch.manual_seed(0)
    circuit = build(backend="triton").to(triton_device)
    inputs = torch.randn(3, BATCH, INPUTS, device=triton_device)
    with torch.no_grad():
        outputs, last = circuit(inputs)
        first, state = circuit(inputs[:1])
        second, state = circuit(inputs[1:], state)
    torch.testing.assert_close(torch.cat([first, second]), outputs)
    for leaf, whole in zip(leaves(state), leaves(last), strict=True):
        torch.testing.assert_close(leaf, whole)


@needs_triton
@pytest.mark.parametrize(
    ("build", "whole"),
    [
        (ntm, True),
        (lambda: dnc(masked_content=True, memory_wipe=True, link_sharpening=True), True),
        (lambda: ntm(num_layers=2, masked_content=True), True),
        (lambda: dnc(num_writes=2), True),
        (lambda: ntm(controller="direct", hidden_size=None), False),
        (lambda: dnc(memory_size=65), False),
    ],
)
def test_what_no_kernel_runs_whole_runs_step_by_step(
    build: Callable[[], Circuit], whole: bool, monkeypatch: pytest.MonkeyPatch, triton_device: torch.device
) -> None:
    from papertape.core.kernels.triton import sequences, steps

    taken: list[Any] = []

    def spy(module: Any, run: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*given: Any) -> Any:
            taken.append(module)
            return run(*given)

        return noted

    for module in (sequences, steps):
        monkeypatch.setattr(module, "run", spy(module, module.run))
    circuit = build().to(triton_device)
    circuit.backend = "triton"
    with torch.no_grad():
        outputs, _ = circuit(torch.ones(1, 1, INPUTS, device=triton_device))
    assert taken == [sequences if whole else steps]
    assert circuit.chosen_backend == "triton" and outputs.isfinite().all()


@needs_triton
def test_rows_of_a_batch_are_independent(triton_device: torch.device) -> None:
    torch.manual_seed(0)
    circuit = dnc(backend="triton").to(triton_device)
    inputs = torch.randn(2, 3, INPUTS, device=triton_device)
    whole, _ = circuit(inputs)
    alone, _ = circuit(inputs[:, 1:2])
    torch.testing.assert_close(alone, whole[:, 1:2])


def reason(circuit: Circuit, inputs: Tensor | None = None) -> str | None:
    if inputs is None:
        inputs = torch.zeros(STEPS, BATCH, INPUTS, dtype=circuit.output.weight.dtype)
    return triton.unavailable(circuit, inputs, circuit.initial_state(BATCH))


def test_on_the_cpu_it_runs_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "only when asked for" in str(reason(ntm()))
    monkeypatch.delenv("TRITON_INTERPRET")
    circuit = ntm(backend="triton")
    with pytest.raises(RuntimeError, match="backend: 'triton' cannot run this circuit: it runs on GPUs"):
        circuit(torch.zeros(STEPS, BATCH, INPUTS))


def test_missing_triton_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    triton._unavailable_triton.cache_clear()
    assert "not installed" in str(reason(ntm(backend="triton")))
    triton._unavailable_triton.cache_clear()


@needs_triton
@pytest.mark.usefixtures("triton_interpreter")
def test_an_interpreter_that_numpy_is_too_new_for_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "_version", {"triton": (3, 6), "numpy": (2, 4)}.get)
    triton._unavailable_triton.cache_clear()
    assert "pip install 'numpy<2.4'" in str(reason(ntm(backend="triton")))
    triton._unavailable_triton.cache_clear()


def refusals() -> dict[str, tuple[Callable[[], Circuit], str]]:
    def hooked() -> Circuit:
        circuit = ntm(backend="triton")
        circuit.accessor.register_forward_hook(lambda *_: None)
        return circuit

    def mixed() -> Circuit:
        circuit = ntm(backend="triton")
        circuit.controller.double()
        return circuit

    return {
        "hooks": (hooked, "hooks"),
        "types": (mixed, "float32 or float64 throughout"),
        "half": (lambda: ntm(backend="triton").bfloat16(), "float32 or float64"),
        "shifts": (lambda: ntm(backend="triton", shift_range=33), "shift_range up to 32; this circuit has 33"),
        "word": (lambda: dnc(backend="triton", word_size=1025), "word_size up to 1024"),
    }


@pytest.mark.parametrize(("build", "message"), refusals().values(), ids=refusals())
def test_refusals_name_the_reason(build: Callable[[], Circuit], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert message in str(reason(build()))


def test_wrong_shapes_and_autocast_are_left_to_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    circuit = dnc(backend="triton")
    state = circuit.initial_state(BATCH)
    wrong = state._replace(accessor=state.accessor._replace(usage=torch.zeros(BATCH, 6)))
    assert "usage has shape" in str(triton.unavailable(circuit, torch.zeros(STEPS, BATCH, INPUTS), wrong))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "autocast" in str(reason(circuit))
