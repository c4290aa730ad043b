"""Half precision for the controller, and for nothing that is carried over many steps; float64 throughout."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from papertape import DNC, NTM, SAM, SDNC, Circuit, Controller, TraceField, map_state, register_state
from papertape.agents import BackpropAgent
from papertape.circuits import (
    FeedForwardCircuit,
    MemoryCircuit,
    ModuleCircuit,
    NeatCircuit,
    NormalisedCircuit,
    RecurrentCircuit,
    RoutedCircuit,
)
from papertape.core.state import compare
from papertape.utils import factory, options

STEPS, BATCH, INPUTS, OUTPUTS = 5, 3, 4, 2
CIRCUITS: dict[str, tuple[type[MemoryCircuit], dict[str, Any]]] = {
    "ntm": (NTM, {}),
    "ntm gru 2-layer": (NTM, {"controller": "gru", "num_layers": 2}),
    "ntm feedforward": (NTM, {"controller": "feedforward"}),
    "dnc": (DNC, {"num_reads": 2}),
    "sam": (SAM, {"num_reads": 2}),
    "sdnc": (SDNC, {"num_reads": 2}),
}
each_circuit = pytest.mark.parametrize("name", CIRCUITS)


def make(name: str, **more: Any) -> MemoryCircuit:
    torch.manual_seed(0)
    cls, arguments = CIRCUITS[name]
    return cls(INPUTS, OUTPUTS, **{"hidden_size": 6, "memory_size": 8, "word_size": 3, **arguments, **more})


def sequence() -> Tensor:
    return torch.randn(STEPS, BATCH, INPUTS, generator=torch.Generator().manual_seed(1))


@each_circuit
@pytest.mark.parametrize("by", ["caller", "circuit"])
def test_bfloat16_is_for_the_controller_and_the_outputs_alone(name, by):
    circuit, seen = make(name), {}
    for part, module in (("controller", circuit.controller.inputs[0]), ("interface", circuit.accessor.interface.linear),
                         ("output", circuit.output)):  # fmt: skip
        module.register_forward_hook(
            lambda _module, _arguments, result, part=part: seen.setdefault(part, set()).add(result.dtype)
        )
    parts: list[Tensor] = []
    circuit.accessor.register_forward_hook(lambda _module, _arguments, result: parts.extend([result[0], *result[2]]))
    if by == "circuit":
        circuit.autocast = torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=by == "caller"):
        outputs, state = circuit(sequence())
        y, _ = circuit.step(sequence()[0], state)
    assert seen["controller"] == seen["output"] == {torch.bfloat16}
    assert seen["interface"] == {torch.float32}
    assert outputs.dtype == y.dtype == torch.float32
    assert {part.dtype for part in parts if isinstance(part, Tensor)} == {torch.float32}
    map_state(lambda leaf: pytest.fail(str(leaf.dtype)) if leaf.dtype == torch.bfloat16 else leaf, state)


@each_circuit
def test_bfloat16_stays_near_float32_forward_and_backward(name):
    gradients, answers = [], []
    for autocast in (None, torch.bfloat16):
        circuit = make(name)
        circuit.autocast = autocast
        outputs, _ = circuit(sequence())
        outputs.square().sum().backward()
        answers.append(outputs)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in circuit.parameters()]))
        assert {parameter.grad.dtype for parameter in circuit.parameters()} == {torch.float32}
    assert not torch.equal(*answers)
    torch.testing.assert_close(*answers, rtol=0.05, atol=0.02)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


@each_circuit
def test_trace_under_autocast_equals_the_run(name):
    circuit = make(name)
    circuit.autocast = torch.bfloat16
    outputs, _ = circuit(sequence())
    traced, _, trace = circuit(sequence(), trace=True)
    torch.testing.assert_close(traced, outputs)
    assert trace.memory.dtype == torch.float32


@pytest.mark.parametrize("name", ["feedforward", "neat", "normalised", "normalised feedforward", "routed", "module"])
@pytest.mark.parametrize("by", ["caller", "circuit"])
def test_a_step_under_autocast_equals_the_first_of_a_sequence(name: str, by: str) -> None:
    torch.manual_seed(0)
    inner = {"normalised": "lstm", "normalised feedforward": "feedforward"}
    circuit: Circuit
    if name == "module":
        circuit = ModuleCircuit(INPUTS, OUTPUTS, module=nn.Linear(INPUTS, OUTPUTS))
    elif name == "routed":
        circuit = RoutedCircuit(INPUTS, OUTPUTS, circuit="ntm")
    elif name in inner:
        circuit = NormalisedCircuit(INPUTS, OUTPUTS, circuit=inner[name])
    else:
        circuit = {"feedforward": FeedForwardCircuit, "neat": NeatCircuit}[name](INPUTS, OUTPUTS)
    exact, _ = circuit(sequence())
    if by == "circuit":
        circuit.autocast = torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=by == "caller"):
        outputs, _ = circuit(sequence())
        y, _ = circuit.step(sequence()[0])
    assert outputs.dtype == torch.float32 and not torch.equal(outputs, exact)
    torch.testing.assert_close(y.float(), outputs[0], rtol=1e-6, atol=1e-6)
    assert y.dtype == torch.float32


def test_a_module_that_takes_whole_numbers_gives_numbers() -> None:
    circuit, tokens = ModuleCircuit(module=nn.Embedding(5, OUTPUTS)), torch.tensor([[1, 2, 4]])
    outputs, _ = circuit.step(tokens[0])
    assert torch.equal(outputs, circuit.module(tokens)[0])


def test_kernels_say_that_they_have_no_autocast_and_auto_goes_on():
    circuit = make("ntm")
    circuit.autocast = torch.bfloat16
    circuit(sequence())
    assert circuit.chosen_backend == "eager"
    for backend in ("native", "triton"):
        asked = make("ntm", backend=backend)
        asked.autocast = torch.bfloat16
        with pytest.raises(RuntimeError, match=f"'{backend}' cannot run this circuit: it has no autocast"):
            asked(sequence())


@each_circuit
def test_float64_circuits_take_float32_inputs_on_any_backend(name):
    circuit = make(name).double()
    outputs, state = circuit(sequence())
    assert outputs.dtype == state.accessor.memory.dtype == torch.float64
    again, _ = circuit(sequence().double())
    assert torch.equal(outputs, again)


SMALL = ["agent.steps=2", "agent.batch_size=2", "agent.evaluation_sequences=2", "circuit.memory_size=8", "plots=off",
         "env.max_length=3"]  # fmt: skip


def parts_of(*assignments: str, preset: str = "ntm-copy") -> factory.Parts:
    values = options.load_file(preset)
    options.override(values, [*SMALL, *assignments])
    return factory.build(factory.parse(values))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
def test_a_run_learns_in_each_precision(precision):
    parts = parts_of(f"precision={precision}")
    agent = parts.agent
    assert isinstance(agent, BackpropAgent)
    before = [parameter.clone() for parameter in parts.circuit.parameters()]
    agent.fit()
    kind = torch.float64 if precision == "float64" else torch.float32
    after = list(parts.circuit.parameters())
    assert all(parameter.dtype == kind and parameter.isfinite().all() for parameter in after)
    assert any(not torch.equal(one, other) for one, other in zip(after, before, strict=True))
    plain = make("ntm")
    plain(sequence())
    assert parts.circuit.chosen_backend == ("eager" if precision == "bfloat16" else plain.chosen_backend)


@pytest.mark.parametrize("agent", ["evolution", "mixed"])
def test_a_population_evolves_in_float64(agent):
    values = options.load_file("mixed-copy")
    options.override(values, [*SMALL[1:], f"agent.type={agent}", "agent.generations=2", "precision=float64"])
    parts = factory.build(factory.parse(values))
    parts.agent.fit()
    assert all(parameter.dtype == torch.float64 for parameter in parts.circuit.parameters())
    assert parts.agent.strategy.genomes.dtype == torch.float64


def test_precisions_that_do_not_exist_or_fit_are_named():
    with pytest.raises(options.OptionsError, match="precision: got 'half'"):
        parts_of("precision=half")
    values = options.load_file("mnist-es")
    options.override(values, ["precision=bfloat16"])
    with pytest.raises(
        options.OptionsError, match="precision: got 'bfloat16'; allowed with agent.type 'evolution': fl"
    ):
        factory.parse(values)


@register_state
class OwnState(NamedTuple):
    hidden: Tensor


class OwnController(Controller):
    hidden_size: int = Field(6, ge=1, description="units")

    def setup(self) -> None:
        self.layer = nn.Linear(self.input_size + self.hidden_size, self.hidden_size)

    def initial_state(self, batch_size: int) -> OwnState:
        return OwnState(self.layer.weight.new_zeros(batch_size, self.hidden_size))

    def forward(self, x: Tensor, state: OwnState) -> tuple[Tensor, OwnState]:
        hidden = torch.tanh(self.layer(torch.cat([x, state.hidden], -1)))
        return hidden, OwnState(hidden)


class OwnCircuit(Circuit):
    """Says nothing of types: its hidden vector has the type of a matrix product."""

    trace_fields = {"hidden": TraceField("H", "words", "units")}

    def setup(self) -> None:
        self.layer = nn.Linear(self.input_size + self.output_size, self.output_size)

    def initial_state(self, batch_size: int) -> OwnState:
        return OwnState(self.layer.weight.new_zeros(batch_size, self.output_size))

    def step(self, x: Tensor, state: OwnState | None = None) -> tuple[Tensor, OwnState]:
        x = self.check_inputs(x, "[B, {}]")
        hidden = torch.tanh(self.layer(torch.cat([x, self.check_state(state, x).hidden], -1)))
        return hidden, OwnState(hidden)

    def run_traced(self, inputs: Tensor, state: OwnState) -> tuple[Tensor, OwnState, dict[str, Tensor]]:
        seen = []
        for x in inputs:
            _, state = self.step(x, state)
            seen.append(state.hidden)
        return torch.stack(seen), state, {"hidden": torch.stack(seen)}


@pytest.mark.parametrize(
    "build",
    [
        lambda: OwnCircuit(INPUTS, OUTPUTS),
        lambda: RecurrentCircuit(INPUTS, OUTPUTS, controller=OwnController(INPUTS)),
        lambda: NTM(INPUTS, OUTPUTS, controller=OwnController(INPUTS + 3), memory_size=4, word_size=3),
        lambda: NTM(INPUTS, OUTPUTS, controller=OwnController(INPUTS), word_size=3, read_feedback=False),
        lambda: NTM(INPUTS, OUTPUTS, controller=OwnController(INPUTS + 3), word_size=3, recompute_every=2),
    ],
    ids=["circuit", "recurrent", "memory", "memory without read_feedback", "memory with recompute_every"],
)
def test_states_of_classes_of_ones_own_keep_the_type_of_the_weights_in_bfloat16(build):
    circuit, x = build(), sequence()
    circuit.autocast = torch.bfloat16
    circuit.check()
    for arguments in ({}, {"lengths": [5, 2, 3]}, {"trace": True}):
        outputs, state, *_ = circuit(x, **arguments)
        compare("state", state, circuit.initial_state(1))
        again, state, *_ = circuit(x, state, **arguments)
        compare("state", state, circuit.initial_state(1))
        assert outputs.dtype == again.dtype == torch.float32
    (outputs.sum() + again.sum()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in circuit.parameters() if parameter.grad is not None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        circuit.step(x[0], circuit.step(x[0], state)[1])
    low = map_state(lambda leaf: leaf.bfloat16(), state)
    with pytest.raises(ValueError, match="bfloat16; this circuit has torch.float32"):
        build()(x, low)
