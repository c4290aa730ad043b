"""Whole sequences in one Triton kernel against eager, forward and backward."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import papertape
from papertape.core.circuit import Circuit
from papertape.core.kernels import dispatch, eager
from papertape.core.members import map_members
from papertape.core.state import map_state

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from papertape.core.kernels.triton import recurrence, sequences

INPUTS, OUTPUTS = 3, 2
IMPROVED = {"masked_content": True, "memory_wipe": True, "link_sharpening": True}


def ntm(slots: int = 6, word: int = 3, reads: int = 1, writes: int = 1, hidden: int = 4, **options: Any) -> Circuit:
    sizes = {"memory_size": slots, "word_size": word, "num_reads": reads, "num_writes": writes, "hidden_size": hidden}
    defaults = {"memory_init": "truncated_normal", "weight_init": "learned"}
    return prepared(papertape.NTM(INPUTS, OUTPUTS, **(sizes | defaults | options)))


def dnc(slots: int = 6, word: int = 3, reads: int = 2, hidden: int = 4, **options: Any) -> Circuit:
    sizes = {"memory_size": slots, "word_size": word, "num_reads": reads, "hidden_size": hidden}
    return prepared(papertape.DNC(INPUTS, OUTPUTS, **(sizes | options)))


def prepared(circuit: Circuit) -> Circuit:
    """In float64, with weights so large that the gates are far from one half."""
    circuit = circuit.double()
    with torch.no_grad():
        for parameter in circuit.parameters():
            parameter.mul_(2)
    return circuit


each_circuit = pytest.mark.parametrize("build", [ntm, dnc])


def leaves(state: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_state(lambda leaf: (found.append(leaf), leaf)[1], state)
    return found


def results(run: Callable[..., Any], circuit: Circuit, inputs: Tensor, state: Any) -> list[Tensor]:
    """Features, every leaf of the last state, and the gradients of a random sum of them in everything."""
    inputs = inputs.detach().clone().requires_grad_()
    state = map_state(lambda leaf: leaf.detach().clone().requires_grad_(), state)
    features, last = run(circuit, inputs, state)
    made = [features, *leaves(last)]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(part.shape, generator=generator, dtype=torch.float64).to(part) for part in made]
    total = sum((part * weight).sum() for part, weight in zip(made, weights, strict=True))
    given = [inputs, *leaves(state), *circuit.controller.parameters(), *circuit.accessor.parameters()]
    gradients = torch.autograd.grad(total, given, allow_unused=True, materialize_grads=True)
    return [part.detach() for part in (*made, *gradients)]


def assert_agrees(circuit: Circuit, device: torch.device, steps: int = 3, batch: int = 2) -> None:
    torch.manual_seed(1)
    circuit = circuit.to(device)
    inputs = torch.randn(steps, batch, INPUTS, dtype=torch.float64, device=device)
    state = map_state(
        lambda leaf: leaf.detach() + 0.5 * torch.rand_like(leaf) / (leaf.shape[-1] + 1), circuit.initial_state(batch)
    )
    assert sequences.unavailable(circuit, state) is None
    made, expected = results(sequences.run, circuit, inputs, state), results(eager.run, circuit, inputs, state)
    for result, wanted in zip(made, expected, strict=True):
        error = (result - wanted).abs().max() / (wanted.abs().max() + 1e-3)
        assert error < 1e-9, f"{list(wanted.shape)}: relative error {error:.1e}"


@pytest.mark.parametrize(
    "build",
    [
        lambda: ntm(7, 5, 2, 3, 5),
        lambda: ntm(16, 4, 1, 1, 17, controller="gru"),
        lambda: ntm(1, 1, 1, 1, 1, controller="feedforward"),
        pytest.param(lambda: ntm(1, 1, 1, 1, 1), marks=pytest.mark.slow),
        pytest.param(lambda: ntm(7, 5, 2, 3, 5, controller="gru"), marks=pytest.mark.slow),
        pytest.param(lambda: ntm(7, 5, 2, 3, 5, controller="feedforward"), marks=pytest.mark.slow),
        lambda: ntm(5, 3, 1, 2, 4, masked_content=True, num_layers=2),
        pytest.param(lambda: ntm(5, 3, 1, 1, 4, masked_content=True), marks=pytest.mark.slow),
        pytest.param(lambda: ntm(5, 3, 1, 1, 4, controller="gru", num_layers=3), marks=pytest.mark.slow),
        pytest.param(lambda: ntm(5, 3, 1, 1, 4, controller="feedforward", num_layers=3), marks=pytest.mark.slow),
        lambda: dnc(7, 5, 2, 5),
        lambda: dnc(8, 4, 1, 17, controller="gru", squash="tanh", usage_gradient=True, memory_wipe=True),
        lambda: dnc(5, 3, 2, 4, **IMPROVED),
        lambda: dnc(5, 3, 2, 4, num_writes=3, **IMPROVED),
        lambda: dnc(4, 3, 1, 3, num_writes=2, num_layers=2, controller="gru", usage_gradient=True),
        pytest.param(lambda: dnc(4, 3, 1, 3, num_writes=2), marks=pytest.mark.slow),
        pytest.param(lambda: dnc(4, 3, 1, 3, num_layers=3, squash="tanh"), marks=pytest.mark.slow),
        lambda: dnc(1, 1, 1, 1, controller="feedforward"),
        pytest.param(lambda: dnc(5, 3, 2, 4, link_sharpening=True), marks=pytest.mark.slow),
        pytest.param(lambda: dnc(5, 3, 2, 4, masked_content=True), marks=pytest.mark.slow),
        pytest.param(lambda: dnc(1, 1, 1, 1, usage_gradient=True), marks=pytest.mark.slow),
        pytest.param(lambda: dnc(19, 3, 5, 4, squash="tanh"), marks=pytest.mark.slow),
    ],
)
def test_agrees_with_eager(build: Callable[[], Circuit], triton_device: torch.device) -> None:
    torch.manual_seed(0)
    assert_agrees(build(), triton_device, steps=2)


@pytest.mark.parametrize("shift_range", [0, 3])
def test_shifts_further_than_the_memory(shift_range: int, triton_device: torch.device) -> None:
    torch.manual_seed(0)
    assert_agrees(ntm(slots=2, shift_range=shift_range), triton_device, steps=2)


@pytest.mark.parametrize("clip", [0.1, None])
@pytest.mark.parametrize("controller", ["lstm", "gru", "feedforward"])
def test_clip(clip: float | None, controller: str, triton_device: torch.device) -> None:
    torch.manual_seed(0)
    assert_agrees(ntm(clip=clip, controller=controller), triton_device, steps=2)


@pytest.mark.parametrize("build", [lambda: ntm(num_layers=2), dnc, lambda: dnc(memory_wipe=True, num_writes=2)])
@pytest.mark.parametrize("steps", [4, 5])
def test_memory_is_computed_again_from_checkpoints(
    build: Callable[[], Circuit], steps: int, monkeypatch: pytest.MonkeyPatch, triton_device: torch.device
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(recurrence, "KEEP_EVERY", 2)
    assert_agrees(build(), triton_device, steps=steps, batch=1)


@pytest.mark.parametrize(
    "build",
    [
        lambda: ntm(memory_init="constant", weight_init="first", masked_content=True),
        dnc,
        lambda: dnc(num_writes=2, **IMPROVED),
    ],
)
def test_extremes_stay_finite(build: Callable[[], Circuit], triton_device: torch.device) -> None:
    torch.manual_seed(0)
    circuit = build().float().to(triton_device)
    with torch.no_grad():
        circuit.accessor.interface.linear.weight.mul_(30)
        circuit.accessor.interface.linear.bias.mul_(30)
    inputs = 50 * torch.randn(4, 2, INPUTS, device=triton_device)
    features, _ = sequences.run(circuit, inputs, circuit.initial_state(2))
    features.sum().backward()
    assert torch.isfinite(features).all()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in circuit.parameters())


@each_circuit
def test_parameters_whose_data_is_replaced_before_the_backward_pass(
    build: Callable[[], Circuit], triton_device: torch.device
) -> None:
    torch.manual_seed(0)
    circuit = build().to(triton_device)
    inputs = torch.randn(2, 2, INPUTS, dtype=torch.float64, device=triton_device, requires_grad=True)
    first = circuit.initial_state(2)
    features = [sequences.run(circuit, inputs, first)[0].square().sum() for _ in range(2)]
    (expected,) = torch.autograd.grad(features[0], inputs)
    for parameter in circuit.parameters():
        parameter.data = 3 * parameter.data
    torch.testing.assert_close(torch.autograd.grad(features[1], inputs)[0], expected)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, in the interpreter
@each_circuit
def test_nan_is_not_swallowed(build: Callable[[], Circuit], triton_device: torch.device) -> None:
    circuit = build().to(triton_device)
    inputs = torch.zeros(3, 2, INPUTS, dtype=torch.float64, device=triton_device)
    inputs[1, 0, 0] = float("nan")
    features, _ = sequences.run(circuit, inputs, circuit.initial_state(2))
    assert torch.isnan(features[1:, 0]).all()
    assert torch.isfinite(features[:, 1]).all()


@pytest.mark.parametrize(
    "build",
    [
        lambda: ntm(reads=2),
        lambda: ntm(controller="gru", num_layers=3),
        lambda: ntm(controller="feedforward"),
        lambda: dnc(slots=4, num_writes=2),
    ],
)
def test_members_of_a_population(build: Callable[[], Circuit], triton_device: torch.device) -> None:
    torch.manual_seed(0)
    circuit = build().to(triton_device)
    circuit.backend = "triton"
    stacks = {
        name: parameter + 0.3 * torch.randn(2, *parameter.shape, dtype=torch.float64, device=triton_device)
        for name, parameter in circuit.named_parameters()
    }
    inputs = torch.randn(2, 3, INPUTS, dtype=torch.float64, device=triton_device)
    with torch.no_grad():
        answers = dispatch.run_population(circuit, stacks, inputs)
        assert circuit.chosen_backend == "triton"
        torch.testing.assert_close(answers, map_members(circuit, stacks, inputs), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("circuit", "reason"),
    [
        (lambda: ntm(controller="direct", hidden_size=None), "it has no DirectController"),
        (lambda: ntm(slots=400, word=40), "a memory of 400 x 40 fills more"),
        (lambda: ntm(hidden=400), "a vector of 1600 elements"),
        (lambda: dnc(slots=64, num_writes=2), "the links of 2 write heads"),
        (lambda: papertape.DNC(INPUTS, OUTPUTS, memory_size=65, word_size=3), "a memory of 65 x 3 and its links"),
    ],
)
def test_what_does_not_fit_says_why(circuit: Callable[[], Circuit], reason: str) -> None:
    built = circuit()
    assert reason in str(sequences.unavailable(built, built.initial_state(1)))
