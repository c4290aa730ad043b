"""Recorded steps against steps that run. No graph is recorded where there is no GPU: a stand-in computes again."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

import papertape
from papertape.core.accessors.base import Accessor
from papertape.core.accessors.static import StaticAccessor
from papertape.core.circuit import Circuit
from papertape.core.kernels import dispatch, graphs
from papertape.core.state import leaves, map_state

STEPS, BATCH, INPUTS, OUTPUTS = 4, 2, 3, 2
"""Four steps are one piece."""
TINY = {"memory_size": 5, "word_size": 3, "num_reads": 2, "hidden_size": 4}


def ntm(**options: Any) -> Circuit:
    defaults = {"memory_init": "truncated_normal", "weight_init": "learned"}
    return papertape.NTM(INPUTS, OUTPUTS, **(TINY | defaults | options))


def dnc(**options: Any) -> Circuit:
    return papertape.DNC(INPUTS, OUTPUTS, **(TINY | options))


CIRCUITS: dict[str, Callable[[], Circuit]] = {
    "ntm": ntm,
    "ntm-direct": lambda: ntm(controller="direct", hidden_size=None),
    "ntm-gru": lambda: ntm(controller="gru", num_layers=2, num_writes=2, masked_content=True),
    "dnc": dnc,
    "dnc-options": lambda: dnc(num_writes=2, memory_wipe=True, link_sharpening=True, squash="tanh"),
    "sam": lambda: papertape.SAM(INPUTS, OUTPUTS, hidden_size=4, memory_size=12, word_size=3),
    "sdnc": lambda: papertape.SDNC(INPUTS, OUTPUTS, hidden_size=4, memory_size=12, word_size=3),
    "tape": lambda: papertape.Tape(INPUTS, OUTPUTS),
    "stack": lambda: papertape.StackRNN(INPUTS, OUTPUTS, hidden_size=4, memory_size=5, word_size=3),
    "soft tape": lambda: papertape.TapeRNN(INPUTS, OUTPUTS, memory_size=5, word_size=3, hidden_size=4),
    "srwm": lambda: papertape.MemoryCircuit(INPUTS, OUTPUTS, hidden_size=4, accessor={"type": "srwm", "word_size": 3}),
    "whole delta": lambda: papertape.MemoryCircuit(
        INPUTS,
        OUTPUTS,
        controller={"type": "convolution", "hidden_size": 4},
        accessor={"type": "delta", "key_size": 4, "value_size": 3, "decay": True, "chunk_size": 2},
        read_feedback=False,
    ),
}
for controller in (
    {"type": "plastic", "hidden_size": 4, "rule": "retroactive"},
    {"type": "hyper-lstm", "hidden_size": 4, "hyper_size": 3},
    {"type": "relational", "memory_size": 2, "num_heads": 2, "head_size": 2},
    {"type": "reservoir", "hidden_size": 4},
    {"type": "leaky", "hidden_size": 4},
    {"type": "automaton", "hidden_size": 4, "num_states": 2},
    {"type": "ctm", "hidden_size": 4, "neurons": 4, "ticks": 2, "history": 3},
):
    CIRCUITS[f"ntm-{controller['type']}"] = partial(ntm, controller=controller, hidden_size=None)


class StandIn(graphs.Recorder):
    """A replay computes again, into the tensors of the recording, as CUDA would. Lists what happened."""

    device = "cpu"

    def __init__(self) -> None:
        self.events: list[str] = []
        self.current = 0

    def capture(self, function: Callable[[], list[Any]], pool: Any) -> tuple[list[Any], Callable[[], None], Any]:
        self.events.append(f"capture {function.__name__}")
        training = torch.is_grad_enabled()
        made = function()
        places = [None if t is None else t.detach() for t in made]

        def replay() -> None:
            self.events.append(f"replay {function.__name__}")
            with torch.enable_grad() if training else torch.no_grad():
                again = function()
            for place, value in zip(places, again, strict=True):
                if place is not None:
                    place.copy_(value.detach())

        return made, replay, None

    def side_stream(self) -> Any:
        return contextlib.nullcontext()

    def without_waiting(self) -> Any:
        return contextlib.nullcontext()

    def on(self, device: torch.device) -> Any:
        return contextlib.nullcontext()

    def recording(self) -> bool:
        return False

    def stream(self) -> int:
        return self.current


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the stand-in does; a recording is tried out by a replay, which is not listed."""
    stand_in, check = StandIn(), graphs.Recording.check

    def unlisted(*arguments: Any) -> None:
        before = list(stand_in.events)
        try:
            check(*arguments)
        finally:
            stand_in.events[:] = before

    monkeypatch.setattr(graphs, "recorder", stand_in)
    monkeypatch.setattr(dispatch, "_AUTO_ORDER", ("graphs", "eager"))
    monkeypatch.setattr(graphs.Recording, "check", unlisted)
    return stand_in.events


def random_state(circuit: Circuit, seed: int = 0) -> Any:
    """The first state, moved a little in every leaf of numbers, so that weightings stay near a sum of 1."""
    generator = torch.Generator().manual_seed(seed)

    def moved(leaf: Tensor) -> Tensor:
        noise = torch.rand(leaf.shape, generator=generator, dtype=torch.float64)
        moves = leaf.is_floating_point()
        return leaf.detach() + 0.5 * noise.to(leaf) / (leaf.shape[-1] + 1) if moves else leaf.clone()

    return map_state(moved, circuit.initial_state(BATCH))


def results(circuit: Circuit, backend: str, inputs: Tensor, state: Any) -> list[Tensor]:
    """Outputs, every leaf of the last state, and the gradients of a random sum of them in everything."""
    circuit.backend = backend
    inputs = inputs.detach().clone().requires_grad_(circuit.differentiable)
    state = map_state(
        lambda leaf: leaf.detach().clone().requires_grad_(circuit.differentiable and leaf.is_floating_point()), state
    )
    outputs, last = circuit(inputs, state)
    assert circuit.chosen_backend == backend
    made = [outputs, *leaves(last)]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(part.shape, generator=generator, dtype=torch.float64).to(part) for part in made]
    total = sum((p * w).sum() for p, w in zip(made, weights, strict=True) if p.requires_grad)
    given = [t for t in (inputs, *leaves(state), *circuit.parameters()) if t.requires_grad]
    made += (
        torch.autograd.grad(total, given, allow_unused=True, materialize_grads=True) if circuit.differentiable else ()
    )
    return [part.detach() for part in made]


@pytest.mark.parametrize("name", CIRCUITS)
def test_replays_are_the_steps(name: str, recorded: list[str]) -> None:
    torch.manual_seed(0)
    circuit = CIRCUITS[name]().double()
    for seed in range(5):
        with torch.no_grad():
            for parameter in circuit.parameters():
                parameter.mul_(1.1)
        inputs = torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64)
        state = random_state(circuit, seed)
        made, expected = results(circuit, "graphs", inputs, state), results(circuit, "eager", inputs, state)
        for result, wanted in zip(made, expected, strict=True):
            torch.testing.assert_close(result, wanted, rtol=1e-12, atol=1e-12)
    passes = ("forward", "backward") if circuit.differentiable else ("forward",)
    assert recorded == [f"capture {each}" for each in passes] + [f"replay {each}" for each in passes] * 3


@pytest.mark.parametrize("name", CIRCUITS)
def test_a_pass_under_way_outlives_a_recording(name: str, recorded: list[str]) -> None:
    torch.manual_seed(0)
    circuit = CIRCUITS[name]().double()
    inputs = torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64)
    gradients: dict[str, list[Tensor]] = {}
    for backend in ("eager", "graphs"):
        circuit.backend = backend
        for _ in range(4):
            circuit.zero_grad()
            outputs, _ = circuit(inputs)  # the first state has a pass of its own, before the recording is made
            if circuit.differentiable:
                outputs.square().sum().backward()
        gradients[backend] = [p.grad.clone() for p in circuit.parameters() if p.grad is not None]
    assert ("capture backward" in recorded) == circuit.differentiable
    for found, expected in zip(*gradients.values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_sequence_is_cut_into_few_lengths() -> None:
    assert graphs.pieces(1) == [1] and graphs.pieces(42) == [32, 8, 2] and graphs.pieces(256) == [256]
    for steps in range(1, 1100):
        cut = graphs.pieces(steps)
        assert sum(cut) == steps and cut == sorted(cut, reverse=True)
        short = [piece for piece in cut if piece < graphs.LONGEST]
        assert len(set(short)) == len(short) and all(piece & (piece - 1) == 0 for piece in cut)


def test_sequences_of_all_lengths_share_recordings(recorded: list[str]) -> None:
    torch.manual_seed(0)
    circuit = dnc().double()
    for steps in [*range(1, 8)] * 3:
        inputs, state = torch.randn(steps, BATCH, INPUTS, dtype=torch.float64), random_state(circuit)
        made, expected = results(circuit, "graphs", inputs, state), results(circuit, "eager", inputs, state)
        for result, wanted in zip(made, expected, strict=True):
            torch.testing.assert_close(result, wanted, rtol=1e-12, atol=1e-12)
    # Pieces of 1, 2 and 4 steps. Of those that come first, the state has its gradient from the caller alone.
    assert recorded.count("capture forward") <= 3 and recorded.count("replay forward") > 20


@pytest.mark.parametrize("build", [ntm, lambda **options: CIRCUITS["sam"](), CIRCUITS["ntm-direct"]])
def test_populations_are_replayed(build: Callable[..., Circuit], recorded: list[str]) -> None:
    torch.manual_seed(0)
    circuit = build()
    answers = {}
    for _ in range(5):
        stacks = {name: torch.randn(3, *part.shape) for name, part in circuit.named_parameters()}
        inputs = torch.randn(STEPS, BATCH, INPUTS)
        for circuit.backend in ("graphs", "eager"):
            answers[circuit.backend] = circuit.run_population(stacks, inputs)
        torch.testing.assert_close(answers["graphs"], answers["eager"])
    assert recorded == ["capture forward"] + 3 * ["replay forward"]


# ---- circuits of others ----------------------------------------------------------------------------------------------


@papertape.register_state
class OneState(NamedTuple):
    memory: Tensor
    age: Tensor


@papertape.register_state
class Heads(NamedTuple):
    key: Tensor


class Own(Accessor):
    """A memory of one word, in a layout of its own; what it does beside that is left to subclasses."""

    word_size: int = 3
    num_reads: int = 1
    trace_fields = {}

    def setup(self) -> None:
        self.layer = nn.Linear(self.hidden_size, self.word_size)
        self.rate = 0.5
        self.register_buffer("seen", torch.zeros(()))

    def initial_state(self, batch_size: int, *_: Any, **sizes: Any) -> OneState:
        weight = self.layer.weight
        return OneState(weight.new_zeros(batch_size, self.word_size), torch.zeros(batch_size, dtype=torch.long))

    def more(self, key: Tensor, state: OneState) -> Tensor:
        return key

    def forward(self, hidden: Tensor, state: OneState) -> tuple[Tensor, OneState, Heads]:
        key = self.more(self.layer(hidden), state)
        memory = state.memory + self.rate * torch.tanh(key)
        return memory.unsqueeze(1), OneState(memory, state.age + 1), Heads(key)


def own(kind: type[Accessor], **options: Any) -> Circuit:
    torch.manual_seed(0)
    return papertape.MemoryCircuit(
        INPUTS, OUTPUTS, controller={"type": "gru", "hidden_size": 4}, accessor=kind(4), **options
    )


def same(circuit: Circuit, calls: int = 6) -> None:
    """That training steps on both backends give the same."""
    for seed in range(calls):
        torch.manual_seed(seed)
        state = random_state(circuit, seed)
        inputs = torch.randn(STEPS, BATCH, INPUTS).to(leaves(state)[0].device)
        made = results(circuit, "graphs", inputs, state)
        for result, wanted in zip(made, results(circuit, "eager", inputs, state), strict=True):
            torch.testing.assert_close(result, wanted)


def test_a_memory_of_others_is_recorded(recorded: list[str]) -> None:
    same(own(Own))
    assert recorded.count("replay backward") == 4


class Sums(Circuit):
    """No memory, and nothing of the package's in a step."""

    def setup(self) -> None:
        self.layer = nn.Linear(self.input_size + self.output_size, self.output_size)

    def initial_state(self, batch_size: int) -> Heads:
        return Heads(self.layer.weight.new_zeros(batch_size, self.output_size))

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Heads]:
        state = self.initial_state(len(x)) if state is None else state
        key = torch.tanh(self.layer(torch.cat([x, state.key], dim=-1)))
        return key, Heads(state.key + key)


def test_a_whole_circuit_of_others_is_recorded(recorded: list[str]) -> None:
    torch.manual_seed(0)
    circuit = Sums(INPUTS, OUTPUTS)
    circuit.chosen_backend = None
    found: dict[str, list[Tensor]] = {}
    for seed in range(5):
        inputs, state = torch.randn(STEPS, BATCH, INPUTS), random_state(circuit, seed)
        for backend in ("graphs", "eager", "auto"):
            circuit.backend = circuit.chosen_backend = backend
            found[backend] = results(circuit, backend, inputs, state)
        torch.testing.assert_close(found["graphs"], found["eager"])
        torch.testing.assert_close(found["auto"], found["eager"])
    assert recorded.count("capture forward") == 2 and recorded.count("replay backward") == 6


def test_a_whole_circuit_of_others_says_why_it_is_not_recorded() -> None:
    with pytest.raises(dispatch.BackendError, match="backend: 'graphs' cannot run this circuit: it records on GPUs"):
        Sums(INPUTS, OUTPUTS, backend="graphs")(torch.ones(STEPS, BATCH, INPUTS))


def test_what_draws_in_python_is_refused(recorded: list[str], caplog: pytest.LogCaptureFixture) -> None:
    class Draws(Own):
        def more(self, key: Tensor, state: OneState) -> Tensor:
            return key + random.random()

    circuit = own(Draws, backend="graphs")
    for _ in range(6):
        circuit(torch.ones(STEPS, BATCH, INPUTS))[0].sum().backward()
    assert recorded == ["capture forward", "capture backward"]
    (message,) = caplog.messages
    assert "this MemoryCircuit runs without CUDA graphs, slower: a replay differs from the steps" in message


def test_attributes_that_change_are_seen(recorded: list[str]) -> None:
    """Numbers, parts, layers, methods and formulas: what Python sees is in the recording for good."""
    circuit = own(Own)
    same(circuit)
    circuit.accessor.rate = 0.1
    same(circuit)
    circuit.accessor.layer = nn.Linear(4, 3)
    same(circuit)
    circuit.accessor.layer.weight = nn.Parameter(torch.randn(3, 4))
    same(circuit)
    circuit.accessor.more = lambda key, state: key.square()
    same(circuit)
    del circuit.accessor.more
    same(circuit)
    circuit.train(False)
    same(circuit)
    assert recorded.count("capture forward") == 6


def test_attributes_of_every_kind_can_be_told_apart(recorded: list[str]) -> None:
    """Sparse tensors, which lie nowhere, those of inference mode, containers, and what cannot be compared."""
    circuit = own(Own)
    with torch.inference_mode():
        inference = torch.ones(2)
    for value in (torch.eye(2).to_sparse(), inference, {"a": [1, {2}]}, torch.Generator(), float("inf"), None):
        circuit.accessor.extra = value
        same(circuit, 4)
        assert recorded.count("replay backward") == 2
        recorded.clear()


@pytest.mark.parametrize("make", [SimpleNamespace, lambda: partial(abs)], ids=["namespace", "partial"])
def test_what_lies_where_something_else_lay_is_another_thing(make: Callable[[], Any]) -> None:
    """The id of an object that is gone is soon that of another."""
    for _ in range(100):
        gone = make()
        seen = graphs._frozen(gone)
        assert graphs._frozen(gone) == seen
        del gone
        other = make()
        assert graphs._frozen(other) != seen


def test_numbers_of_a_class_are_seen(recorded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    circuit = own(Own)
    for scale in (1.0, 1.5, 2.0):
        monkeypatch.setattr(Own, "scale", scale, raising=False)
        same(circuit)
    assert recorded.count("capture forward") == 3


def test_methods_of_classes_that_change_are_seen(recorded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    circuit = own(Own)
    same(circuit)
    monkeypatch.setattr(Own, "more", lambda self, key, state: key.square())
    same(circuit)
    assert recorded.count("capture forward") == 2
    recorded.clear()
    circuit = ntm()
    same(circuit)
    written = StaticAccessor.heads
    monkeypatch.setattr(StaticAccessor, "heads", lambda self, hidden: written(self, 0.5 * hidden))
    circuit.backend = "auto"
    circuit(torch.ones(STEPS, BATCH, INPUTS))
    assert circuit.chosen_backend == "eager"
    circuit.backend = "graphs"
    with pytest.raises(dispatch.BackendError, match="'graphs' cannot run this circuit: a replay would skip a formula"):
        circuit(torch.ones(STEPS, BATCH, INPUTS))


def test_buffers_and_random_states_are_as_after_steps(recorded: list[str]) -> None:
    class Counts(Own):
        def more(self, key: Tensor, state: OneState) -> Tensor:
            self.seen += 1
            return key * self.seen.clone()

    found = {}
    for backend in ("graphs", "eager"):
        circuit = own(Counts, backend=backend)
        outputs = []
        for _ in range(6):
            made, _ = circuit(torch.ones(STEPS, BATCH, INPUTS))
            outputs += [made.detach(), torch.rand(2)]
            made.sum().backward()
        found[backend] = [*outputs, circuit.accessor.seen, circuit.accessor.layer.weight.grad]
    for result, wanted in zip(*found.values(), strict=True):
        torch.testing.assert_close(result, wanted)
    assert recorded.count("replay forward") == 4


def test_what_is_handed_on_is_no_buffer_of_a_recording(recorded: list[str]) -> None:
    circuit = own(Own, backend="graphs")
    with torch.no_grad():
        kept = [circuit(torch.full((STEPS, BATCH, INPUTS), float(k))) for k in range(6)]
        circuit.backend = "eager"
        for k, (outputs, state) in enumerate(kept):
            expected, last = circuit(torch.full((STEPS, BATCH, INPUTS), float(k)))
            torch.testing.assert_close([outputs, *leaves(state)], [expected, *leaves(last)])
    assert recorded.count("replay forward") == 4


def test_parameters_that_change_before_the_backward_pass_are_noticed(recorded: list[str]) -> None:
    circuit = ntm(backend="graphs")
    for _ in range(4):
        outputs, _ = circuit(torch.ones(STEPS, BATCH, INPUTS))
        outputs.sum().backward()
    outputs, _ = circuit(torch.ones(STEPS, BATCH, INPUTS))
    with torch.no_grad():
        circuit.controller.inputs[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.sum().backward()


def test_auto_takes_the_next_where_recording_was_refused(
    recorded: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(StandIn, "capture", fail)
    circuit = own(Own)
    chosen = []
    for _ in range(5):
        circuit(torch.ones(STEPS, BATCH, INPUTS))
        chosen.append(circuit.chosen_backend)
    assert chosen == ["graphs", "graphs", "graphs", "eager", "eager"]
    circuit.backend = "graphs"
    same(circuit)
    assert len(caplog.messages) == 1


def test_on_the_cpu_it_says_that_it_records_on_gpus() -> None:
    circuit = ntm(backend="graphs")
    with pytest.raises(dispatch.BackendError, match="it records on GPUs that torch calls cuda; inputs are on cpu"):
        circuit(torch.ones(STEPS, BATCH, INPUTS))
    stacks = {name: parameter.detach()[None] for name, parameter in circuit.named_parameters()}
    with pytest.raises(dispatch.BackendError, match="'graphs' cannot run a population of this circuit: it records on"):
        circuit.run_population(stacks, torch.ones(STEPS, BATCH, INPUTS))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", CIRCUITS)
def test_a_gpu_replays_the_steps(name: str) -> None:
    torch.manual_seed(0)
    circuit = CIRCUITS[name]().double().cuda()
    for seed, steps in enumerate([4, 7, 4, 7, 4, 7, 6]):
        inputs = torch.randn(steps, BATCH, INPUTS, dtype=torch.float64, device="cuda")
        state = random_state(circuit, seed)
        made, expected = results(circuit, "graphs", inputs, state), results(circuit, "eager", inputs, state)
        for result, wanted in zip(made, expected, strict=True):
            torch.testing.assert_close(result, wanted, rtol=1e-9, atol=1e-9)
    assert graphs._recordings[circuit].refused is None and graphs._recordings[circuit].kept


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_refuses_what_looks_at_values(caplog: pytest.LogCaptureFixture) -> None:
    class Looks(Own):
        def more(self, key: Tensor, state: OneState) -> Tensor:
            return key if key.sum().item() > 0 else -key

    same(own(Looks).cuda())
    assert "runs without CUDA graphs" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_is_left_as_it_was_where_a_recording_fails() -> None:
    stream, ones = torch.cuda.current_stream(), torch.ones(3, device="cuda")

    def waits() -> list[Tensor]:
        torch.rand(3, device="cuda")
        return [ones * ones.sum().item()]

    torch.cuda.manual_seed(0)
    expected = torch.rand(3, device="cuda")
    torch.cuda.manual_seed(0)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            graphs.Recorder().capture(waits, None)
    assert torch.cuda.current_stream() == stream
    torch.testing.assert_close(torch.rand(3, device="cuda"), expected, rtol=0, atol=0)
    (made,), replay, _ = graphs.Recorder().capture(lambda: [2 * ones], None)
    ones.fill_(3)
    replay()
    torch.testing.assert_close(made, 2 * ones)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("backend", ["graphs", "triton"])
def test_a_gpu_records_steps_of_which_an_older_pass_is_kept(backend: str) -> None:
    circuit = ntm(backend=backend, controller="rnn").cuda()
    inputs, kept = torch.randn(STEPS, BATCH, INPUTS, device="cuda"), []
    for _ in range(4):
        kept.append(circuit(inputs)[0])
        kept[-1].sum().backward()
    assert graphs._recordings[circuit].refused is None and graphs._recordings[circuit].kept


# ---- passes that cannot share a recording ----------------------------------------------------------------------------


def test_a_replay_gives_its_gradients_to_the_weights_of_this_call(recorded: list[str]) -> None:
    torch.manual_seed(0)
    circuit = ntm()
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
    circuit = ntm(backend="graphs").double()
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


def test_threads_may_share_a_circuit(recorded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    circuit = ntm(backend="graphs")
    sequences = torch.randn(2, STEPS, BATCH, INPUTS)
    with torch.no_grad():
        expected = [circuit(inputs)[0] for inputs in sequences]
        for _ in range(3):
            circuit(sequences[0])
    copy_in, found = graphs.Recording.copy_in, {}

    def slowly(self: Any, arguments: Any) -> None:
        copy_in(self, arguments)
        time.sleep(0.2)  # for another thread to put its own values there

    def answer(number: int) -> None:
        with torch.no_grad():
            found[number] = circuit(sequences[number])[0]

    monkeypatch.setattr(graphs.Recording, "copy_in", slowly)
    threads = [threading.Thread(target=answer, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2):
        torch.testing.assert_close(found[number], expected[number])


def test_streams_have_recordings_of_their_own(recorded: list[str]) -> None:
    circuit, inputs = ntm(backend="graphs"), torch.randn(STEPS, BATCH, INPUTS)
    for graphs.recorder.current in (0, 1):  # type: ignore[attr-defined]
        for _ in range(4):
            circuit(inputs)
    assert recorded.count("capture forward") == 2


def test_a_pass_without_backward_frees_its_graph(recorded: list[str]) -> None:
    circuit = ntm(backend="graphs")
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
    circuit = ntm(backend="graphs").double()
    weight = circuit.accessor.interface.linear.weight
    inputs = torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64)
    (expected,) = torch.autograd.grad(circuit(inputs)[0].square().sum(), weight)
    for _ in range(5):
        outputs = torch.utils.checkpoint.checkpoint(lambda x: circuit(x)[0], inputs, use_reentrant=False)
        torch.testing.assert_close(torch.autograd.grad(outputs.square().sum(), weight)[0], expected)
    assert recorded == []


def test_graphs_are_kept_for_few_shapes(recorded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "KEPT", 2)
    circuit = ntm(backend="graphs")
    with torch.no_grad():
        for steps in (1, 2, 4):
            for _ in range(3):
                circuit(torch.ones(steps, BATCH, INPUTS))
        assert recorded.count("capture forward") == 3
        circuit(torch.ones(1, BATCH, INPUTS))
    assert len(graphs._recordings[circuit].kept) == 2
    assert recorded.count("capture forward") == 3


def test_many_shapes_in_turn_are_not_recorded_all_the_time(
    recorded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "KEPT", 2)
    circuit = ntm(backend="graphs")
    with torch.no_grad():
        for _ in range(24):
            for steps in (1, 2, 4, 8):
                circuit(torch.ones(steps, BATCH, INPUTS))
    # Two after three calls each; then one each after 3, 6, 12 and 24.
    assert recorded.count("capture forward") <= 6
    assert recorded.count("replay forward") > 24


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_run_at_every_call(kind: str, recorded: list[str]) -> None:
    circuit = ntm()
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
    circuit = ntm(backend="graphs")
    monkeypatch.setattr(StandIn, "recording", lambda self: True)
    for _ in range(4):
        circuit(torch.ones(STEPS, BATCH, INPUTS))
    assert recorded == []


def test_inference_mode_has_recordings_of_its_own(recorded: list[str]) -> None:
    circuit = ntm(backend="graphs")
    inputs = torch.ones(STEPS, BATCH, INPUTS)
    with torch.inference_mode():
        for _ in range(4):
            expected = circuit(inputs)[0].clone()
    with torch.no_grad():
        for _ in range(4):
            torch.testing.assert_close(circuit(inputs)[0], expected)
    assert recorded == ["capture forward", "replay forward", "replay forward"] * 2
