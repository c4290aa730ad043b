"""The Triton backend against the eager one, and what it says where it cannot run."""

from __future__ import annotations

import contextlib
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


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for CUDA's graphs: a replay computes again, into the tensors of the recording. Lists what happened."""
    pytest.importorskip("triton")
    from papertape.core.kernels.triton import graphs, steps

    events: list[str] = []

    def capture(function: Callable[[], list[Any]], pool: Any) -> tuple[list[Any], Callable[[], None], Any]:
        events.append(f"capture {function.__name__}")
        training = torch.is_grad_enabled()
        made = function()
        places = [None if t is None else t.detach() for t in made]

        def replay() -> None:
            events.append(f"replay {function.__name__}")
            with torch.enable_grad() if training else torch.no_grad():
                again = function()
            for place, value in zip(places, again, strict=True):
                if place is not None:
                    place.copy_(value.detach())

        return made, replay, None

    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr(graphs, "side_stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    # The logic is the same for any kernels, and eager ones are faster than interpreted ones.
    from papertape.core.kernels import eager

    monkeypatch.setattr(steps, "run", eager.run)
    monkeypatch.setattr(triton, "run", lambda *arguments: graphs.run(eager.run, *arguments))
    monkeypatch.setattr(triton, "unavailable", lambda *arguments: None)
    return events


@pytest.mark.parametrize("build", [ntm, dnc])
def test_replayed_graphs_give_the_same(build: Callable[..., Circuit], recorded: list[str]) -> None:
    torch.manual_seed(0)
    circuit = build().double()
    for seed in range(5):
        with torch.no_grad():
            for parameter in circuit.parameters():
                parameter.mul_(1.1)
        inputs = torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64)
        state = random_state(circuit, seed)
        made, expected = results(circuit, "triton", inputs, state), results(circuit, "eager", inputs, state)
        for result, wanted in zip(made, expected, strict=True):
            torch.testing.assert_close(result, wanted, rtol=1e-12, atol=1e-12)
    assert recorded.count("capture forward") == recorded.count("capture backward") == 1
    assert recorded.count("replay forward") == recorded.count("replay backward") == 3


def test_a_replay_gives_its_gradients_to_the_weights_of_this_call(recorded: list[str]) -> None:
    from papertape.core.kernels.triton import graphs

    torch.manual_seed(0)
    circuit = ntm(backend="triton")
    inputs = torch.randn(STEPS, BATCH, INPUTS)
    for _ in range(4):
        circuit(inputs)[0].square().sum().backward()
        expected = {name: parameter.grad for name, parameter in circuit.named_parameters()}
        circuit.zero_grad()
    (recording,) = graphs._recordings[circuit].kept.values()
    # The stand-in would look the weights up again; what CUDA computes again from the same memory is the same.
    recording.replay_forward = lambda: recorded.append("replay forward")
    recording.replay_backward = lambda: recorded.append("replay backward")
    recorded.clear()
    aliases = {name: parameter.detach().requires_grad_() for name, parameter in circuit.named_parameters()}
    torch.func.functional_call(circuit, aliases, (inputs,))[0].square().sum().backward()
    assert recorded == ["replay forward", "replay backward"]
    for name, alias in aliases.items():
        torch.testing.assert_close(alias.grad, expected[name])
    computed = {name: parameter * 1 for name, parameter in circuit.named_parameters()}
    torch.func.functional_call(circuit, computed, (inputs,))[0].square().sum().backward()
    circuit.accessor.interface.linear.bias.register_hook(lambda gradient: 10 * gradient)
    circuit(inputs)[0].square().sum().backward()
    assert recorded == ["replay forward", "replay backward"]
    for name, parameter in circuit.named_parameters():
        factor = 11 if name == "accessor.interface.linear.bias" else 2
        torch.testing.assert_close(parameter.grad, factor * expected[name])


def test_two_sequences_in_one_loss_do_not_share_a_graph(recorded: list[str]) -> None:
    torch.manual_seed(0)
    circuit = ntm(backend="triton").double()
    weight = circuit.accessor.interface.linear.weight

    def gradient(sequences: list[Tensor]) -> Tensor:
        total = sum(circuit(inputs)[0].square().sum() for inputs in sequences)
        return torch.autograd.grad(total, weight)[0]

    first, second = torch.randn(2, STEPS, BATCH, INPUTS, dtype=torch.float64)
    expected = gradient([first]) + gradient([second])
    gradient([first])
    recorded.clear()
    torch.testing.assert_close(gradient([first, second]), expected, rtol=1e-12, atol=1e-12)
    assert recorded == ["replay forward", "replay backward"]
    torch.testing.assert_close(gradient([second]) + gradient([first]), expected, rtol=1e-12, atol=1e-12)
    assert recorded[2:] == ["replay forward", "replay backward"] * 2


def test_a_pass_without_backward_frees_its_graph(recorded: list[str]) -> None:
    circuit = ntm(backend="triton")
    inputs = torch.ones(STEPS, BATCH, INPUTS)
    for _ in range(3):
        circuit(inputs)
    kept = circuit(inputs)
    recorded.clear()
    circuit(inputs)
    assert recorded == []
    del kept
    circuit(inputs)
    assert recorded == ["replay forward"]


def test_checkpointed_passes_are_not_replayed(recorded: list[str]) -> None:
    torch.manual_seed(0)
    circuit = ntm(backend="triton").double()
    weight = circuit.accessor.interface.linear.weight
    inputs = torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64)
    (expected,) = torch.autograd.grad(circuit(inputs)[0].square().sum(), weight)
    for _ in range(5):
        outputs = torch.utils.checkpoint.checkpoint(lambda x: circuit(x)[0], inputs, use_reentrant=False)
        torch.testing.assert_close(torch.autograd.grad(outputs.square().sum(), weight)[0], expected)
    assert recorded == []


def test_graphs_are_kept_for_few_shapes(recorded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from papertape.core.kernels.triton import graphs

    monkeypatch.setattr(graphs, "KEPT", 2)
    circuit = ntm(backend="triton")
    with torch.no_grad():
        for steps in (1, 2, 3):
            for _ in range(3):
                circuit(torch.ones(steps, BATCH, INPUTS))
        assert recorded.count("capture forward") == 3
        circuit(torch.ones(1, BATCH, INPUTS))
    assert len(graphs._recordings[circuit].kept) == 2
    assert recorded.count("capture forward") == 3


def test_many_shapes_in_turn_are_not_recorded_all_the_time(
    recorded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from papertape.core.kernels.triton import graphs

    monkeypatch.setattr(graphs, "KEPT", 2)
    circuit = ntm(backend="triton")
    with torch.no_grad():
        for _ in range(24):
            for steps in (1, 2, 3, 4):
                circuit(torch.ones(steps, BATCH, INPUTS))
    # Two after three calls each; then one each after 3, 6, 12 and 24.
    assert recorded.count("capture forward") <= 6
    assert recorded.count("replay forward") > 24


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_run_at_every_call(kind: str, recorded: list[str]) -> None:
    circuit = ntm(backend="triton")
    inputs = torch.ones(STEPS, BATCH, INPUTS)
    for _ in range(4):
        circuit(inputs)[0].sum().backward()
    recorded.clear()
    calls: list[int] = []
    register = getattr(circuit.accessor.interface.linear, f"register_{kind}_hook")
    handle = register(lambda *_: calls.append(1))
    circuit(inputs)[0].sum().backward()
    assert len(calls) == STEPS and recorded == []
    handle.remove()
    circuit(inputs)[0].sum().backward()
    assert len(calls) == STEPS and recorded == ["replay forward", "replay backward"]


def test_the_caller_may_record_a_graph(recorded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    circuit = ntm(backend="triton")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    for _ in range(4):
        circuit(torch.ones(STEPS, BATCH, INPUTS))
    assert recorded == []


def test_inference_mode_has_recordings_of_its_own(recorded: list[str]) -> None:
    circuit = ntm(backend="triton")
    inputs = torch.ones(STEPS, BATCH, INPUTS)
    with torch.inference_mode():
        for _ in range(4):
            expected = circuit(inputs)[0].clone()
    with torch.no_grad():
        for _ in range(4):
            torch.testing.assert_close(circuit(inputs)[0], expected)
    assert recorded == ["capture forward", "replay forward", "replay forward"] * 2


def test_what_cannot_be_recorded_runs_without(
    recorded: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from papertape.core.kernels.triton import graphs

    def fail(*_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "capture", fail)
    circuit = ntm(backend="triton")
    for _ in range(5):
        circuit(torch.ones(STEPS, BATCH, INPUTS))
    assert [record.getMessage() for record in caplog.records if "without them" in record.getMessage()] == [
        "CUDA graphs: this circuit runs without them: operation not permitted when stream is capturing"
    ]
