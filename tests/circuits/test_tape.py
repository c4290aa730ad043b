"""The tape's circuit: populations against single members, its trace, a copier by hand, and no gradient."""

from __future__ import annotations

import inspect

import pytest
import torch

from tapehead import map_state
from tapehead.agents import BackpropAgent, MixedAgent
from tapehead.circuits import Tape
from tapehead.core.controllers import CONTROLLERS
from tapehead.core.stacked import Layout, map_members
from tapehead.envs.copy import CopyEnv, CopyOptions
from tapehead.utils import factory, options
from tapehead.utils.options import OptionsError


def answers_of_each(circuit: Tape, genomes: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """One member after another, ``[T, P, B, O]``."""
    layout, answers = Layout.of(circuit), []
    for genome in genomes:
        layout.write(genome, circuit)
        answers.append(circuit(inputs)[0])
    return torch.stack(answers, 1)


@pytest.mark.parametrize("memory_size", [3, 40])
@pytest.mark.parametrize("controller", CONTROLLERS)
def test_a_population_answers_as_its_members_do(controller, memory_size):
    torch.manual_seed(0)
    circuit = Tape(4, 2, controller=controller, hidden_size=5, word_size=3, memory_size=memory_size).double()
    layout = Layout.of(circuit)
    genomes, inputs = 2 * torch.randn(6, layout.size).double(), torch.randn(7, 3, 4).double()
    stacks = layout.split(genomes)
    together = circuit.run_population(stacks, inputs)
    torch.testing.assert_close(together, map_members(circuit, stacks, inputs))
    torch.testing.assert_close(together, answers_of_each(circuit, genomes, inputs))
    assert together.std() > 0.1


def test_a_sequence_may_be_cut_and_traced():
    torch.manual_seed(0)
    circuit, inputs = Tape(4, 2, word_size=3, memory_size=6).double(), torch.randn(8, 3, 4).double()
    whole, last = circuit(inputs)
    first, state = circuit(inputs[:3])
    second, end = circuit(inputs[3:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    map_state(torch.testing.assert_close, end, last)
    traced, traced_last, trace = circuit(inputs, trace=True)
    torch.testing.assert_close(traced, whole)
    map_state(torch.testing.assert_close, traced_last, last)
    assert trace.memory.shape == (8, 3, 6, 3)
    assert trace.read_weights.shape == trace.write_weights.shape == (8, 3, 1, 6)
    torch.testing.assert_close(trace.read_weights @ trace.memory, trace.reads)


def by_hand(width: int) -> Tape:
    """A tape that copies, with weights that one can read: units switch on inputs and on an element that marks cells."""
    circuit = Tape(width + 2, width, word_size=width + 2, memory_size=64, head_init="through")
    start, end, marked = width, width + 1, 2 * width + 2
    weight, bias = circuit.accessor.interface.linear.weight.data, circuit.accessor.interface.linear.bias.data
    mark, special, interpolation, jump, shift = width, width + 1, width + 2, width + 3, width + 4
    bias[mark] = 20.0
    # The beginning of the tape is a word of its own, written at the start flag and looked for at the end flag.
    bias[special], weight[special, start], weight[special, end] = -20.0, 40.0, 40.0
    bias[interpolation], weight[interpolation, marked], weight[interpolation, end] = 10.0, -20.0, -30.0
    bias[jump], weight[jump, end] = -10.0, 20.0
    # On by one, except at the end flag, after which the cell of the start flag is under the head.
    bias[shift + 2], weight[shift + 1, end] = 1.0, 2.0
    return circuit


@pytest.mark.parametrize("width", [1, 3, 8])
def test_a_linear_controller_can_copy_any_length(width):
    env, circuit = CopyEnv(CopyOptions(width=width, max_length=60, lengths="sequence")), by_hand(width)
    batch = env.sample(30, torch.Generator().manual_seed(0))
    outputs, _ = circuit(batch.inputs)
    assert env.metrics(outputs, batch)["bits_wrong"] == 0
    assert env.metrics(by_hand(width).eval()(torch.zeros_like(batch.inputs))[0], batch)["bits_wrong"] > 1


def test_through_leads_bits_in_and_out():
    circuit = Tape(4, 2, word_size=3, head_init="through")
    assert circuit.accessor.interface.linear.weight.nonzero().tolist() == [[0, 0], [1, 1]]
    assert circuit.output.weight.nonzero().tolist() == [[0, 7], [1, 8]]
    state = circuit.initial_state(1)
    _, state = circuit.step(torch.tensor([[1.0, 0.0, 1.0, 0.0]]), state)
    assert (state.accessor.memory[0, 0, :2] > 0.02).tolist() == [True, True]
    assert state.accessor.memory[0, 0, 0] > 10 * state.accessor.memory[0, 0, 1]
    with pytest.raises(ValueError, match="head_init: got 'through'; allowed with a LSTMController: uniform"):
        Tape(4, 2, controller="lstm", head_init="through")
    with pytest.raises(ValueError, match="head_init: got 'open'; allowed: uniform, through"):
        Tape(4, 2, head_init="open")


def test_nothing_has_a_gradient():
    outputs, _ = Tape(4, 2)(torch.randn(3, 2, 4))
    assert not outputs.requires_grad


@pytest.mark.parametrize("agent", [BackpropAgent, MixedAgent])
def test_agents_that_need_a_gradient_refuse_it(agent):
    env = CopyEnv(CopyOptions(width=2))
    with pytest.raises(ValueError, match=r"circuit: got a Tape, which has no gradient; .*needs one"):
        agent(env, Tape(4, 2))


@pytest.mark.parametrize("agent", ["backprop", "mixed"])
def test_options_refuse_it_before_the_start(agent):
    values = options.load_file("ntm-copy")
    values["agent"], values["circuit"] = {"type": agent}, {"type": "tape"}
    with pytest.raises(OptionsError, match=f"agent.type: got '{agent}'; circuit.type 'tape' has no gradient, allowed:"):
        factory.parse(values)


def test_options_agree_with_the_constructor():
    chosen, arguments = Tape.Options(), inspect.signature(Tape).parameters
    assert chosen.controller.type == arguments["controller"].default
    for name in ("memory_size", "word_size", "head_init", "clip"):
        assert getattr(chosen, name) == arguments[name].default
    assert set(type(chosen).model_fields) - {"type"} <= set(arguments)
    with pytest.raises(ValueError, match="head_init: got 'through'; allowed with controller.type 'lstm': uniform"):
        Tape.Options.model_validate({"head_init": "through", "controller": {"type": "lstm"}})


@pytest.mark.slow
def test_evolution_finds_how_to_copy():
    """The preset on words of two bits: right on every length up to 100 after some tens of generations."""
    values = options.load_file("tape-copy")
    options.override(values, ["env.width=2", "agent.generations=200", "seed=2", "plots=off", "threads=1", "device=cpu"])
    agent = factory.build(factory.parse(values)).agent
    errors = agent.fit()
    assert agent.target_reached
    assert errors["held_out/length 100/bits_wrong"] == 0
