"""The tape's circuit: populations against single members, its trace, a copier by hand, and no gradient."""

from __future__ import annotations

import inspect

import pytest
import torch

from papertape import map_state
from papertape.agents import BackpropAgent, MixedAgent
from papertape.agents.genome import Layout
from papertape.circuits import Tape
from papertape.core.members import map_members
from papertape.core.options import OptionsError
from papertape.envs.copy import CopyEnv
from papertape.utils import factory, options

CONTROLLERS = ("lstm", "gru", "feedforward", "neat", "direct")


def answers_of_each(circuit: Tape, genomes: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """One member after another, ``[T, P, B, O]``."""
    layout, answers = Layout.of(circuit), []
    for genome in genomes:
        layout.write(genome, circuit)
        answers.append(circuit(inputs)[0])
    return torch.stack(answers, 1)


@pytest.mark.parametrize("memory_size", [3, 40])
@pytest.mark.parametrize(("controller", "tied_bits"), [*((name, False) for name in CONTROLLERS), ("direct", True)])
def test_a_population_answers_as_its_members_do(controller, tied_bits, memory_size):
    torch.manual_seed(0)
    sizes = {} if controller == "direct" else {"hidden_size": 5}
    circuit = Tape(
        4, 2, controller=controller, word_size=3, memory_size=memory_size, tied_bits=tied_bits, **sizes
    ).double()
    layout = Layout.of(circuit)
    genomes, inputs = 2 * torch.randn(6, layout.size).double(), torch.randn(7, 3, 4).double()
    stacks = layout.split(genomes)
    together = circuit.run_population(stacks, inputs)
    torch.testing.assert_close(together, map_members(circuit, stacks, inputs))
    torch.testing.assert_close(together, answers_of_each(circuit, genomes, inputs))
    assert together.std() > 0.1


def test_members_of_a_population_begin_in_their_own_states():
    """What the controller of a continuous thought machine begins with is learned."""
    torch.manual_seed(0)
    circuit = Tape(4, 2, controller={"type": "ctm", "neurons": 6, "hidden_size": 5}, word_size=3).double()
    genomes, inputs = torch.randn(4, Layout.of(circuit).size).double(), torch.randn(3, 2, 4).double()
    together = circuit.run_population(Layout.of(circuit).split(genomes), inputs)
    torch.testing.assert_close(together, answers_of_each(circuit, genomes, inputs))


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
    assert trace.add.shape == trace.reads.shape == (8, 3, 1, 3)
    torch.testing.assert_close(trace.read_weights @ trace.memory, trace.reads)


def by_hand(width: int, tied_bits: bool) -> Tape:
    """A tape that copies, with weights that one can read: units switch on inputs and on an element that marks cells."""
    circuit = Tape(width + 2, width, word_size=width + 2, memory_size=64, tied_bits=tied_bits)
    interface, output = circuit.accessor.interface.linear, circuit.output
    for parameter in circuit.parameters():
        parameter.data.zero_()

    def connect(layer, target, source, value):
        layer.weight.data[layer.index[target, source] if tied_bits else (target, source)] = value

    def bias(layer, target, value):
        layer.bias.data[layer.bias_index[target] if tied_bits else target] = value

    start, end, marked, now = width, width + 1, 2 * width + 2, 2 * width + 4
    mark, special, interpolation, jump, shift = width, width + 1, width + 2, width + 3, width + 4
    for bit in range(width):
        connect(interface, bit, bit, 6.0)
        bias(interface, bit, -3.0)
        connect(output, bit, now + bit, 6.0)
        bias(output, bit, -3.0)
    bias(interface, mark, 20.0)
    # The beginning of the tape is a word of its own, written at the start flag and looked for at the end flag.
    bias(interface, special, -20.0)
    connect(interface, special, start, 40.0)
    connect(interface, special, end, 40.0)
    # What has been written stays, and so does everything at the end flag.
    bias(interface, interpolation, 10.0)
    connect(interface, interpolation, marked, -20.0)
    connect(interface, interpolation, end, -30.0)
    bias(interface, jump, -10.0)
    connect(interface, jump, end, 20.0)
    # On by one, except at the end flag, after which the cell of the start flag is under the head.
    bias(interface, shift + 2, 1.0)
    connect(interface, shift + 1, end, 2.0)
    return circuit


@pytest.mark.parametrize("tied_bits", [False, True])
@pytest.mark.parametrize("width", [1, 3, 8])
def test_a_linear_controller_can_copy_any_length(width, tied_bits):
    env, circuit = CopyEnv(width=width, max_length=60, lengths="sequence"), by_hand(width, tied_bits)
    batch = env.sample(30, torch.Generator().manual_seed(0))
    outputs, _ = circuit(batch.inputs)
    assert env.metrics(outputs, batch)["bits_wrong"] == 0
    assert env.metrics(circuit(torch.zeros_like(batch.inputs))[0], batch)["bits_wrong"] > 1


def test_a_tied_tape_is_the_same_for_words_of_any_length():
    for part in ("accessor.interface.linear", "output"):
        few, many = by_hand(3, True).get_submodule(part), by_hand(8, True).get_submodule(part)
        torch.testing.assert_close(few.state_dict(), many.state_dict())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"controller": "lstm"}, "tied_bits: got True; allowed with a lstm controller: False"),
        ({"word_size": 1}, r"word_size: got 1; allowed with tied_bits is at least output_size \(2\)"),
        ({"input_size": 1}, r"input_size: got 1; allowed with tied_bits is at least output_size \(2\)"),
    ],
)
def test_what_cannot_be_tied_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Tape(**{"input_size": 4, "output_size": 2, "tied_bits": True, **wrong})


def test_nothing_has_a_gradient():
    outputs, _ = Tape(4, 2)(torch.randn(3, 2, 4))
    assert not outputs.requires_grad


@pytest.mark.parametrize("agent", [BackpropAgent, MixedAgent])
def test_agents_that_need_a_gradient_refuse_it(agent):
    env = CopyEnv(width=2)
    with pytest.raises(ValueError, match=r"circuit: got a Tape, which has no gradient; .*needs one"):
        agent(env, Tape(4, 2))


@pytest.mark.parametrize("agent", ["backprop", "mixed"])
def test_options_refuse_it_before_the_start(agent):
    values = options.load_file("ntm-copy")
    values["agent"], values["circuit"] = {"type": agent}, {"type": "tape"}
    with pytest.raises(OptionsError, match=f"agent.type: got '{agent}'; circuit.type 'tape' has no gradient, allowed:"):
        factory.build(factory.parse(values))


def test_options_agree_with_the_constructor():
    chosen, arguments = Tape.Options(), inspect.signature(Tape).parameters
    assert chosen.controller.type == arguments["controller"].default == "direct"
    for name in ("memory_size", "word_size", "tied_bits", "clip"):
        assert getattr(chosen, name) == arguments[name].default
    assert set(type(chosen).model_fields) - {"type"} <= set(arguments)
    with pytest.raises(ValueError, match="tied_bits: got True; allowed with a lstm controller: False"):
        Tape.Options.model_validate({"tied_bits": True, "controller": {"type": "lstm"}})


@pytest.mark.slow
def test_evolution_finds_how_to_copy():
    """The preset on words of four bits: right on every length up to 100 after some tens of generations."""
    values = options.load_file("tape-copy")
    options.override(
        values,
        [
            "env.width=4",
            "circuit.word_size=6",
            "agent.generations=200",
            "seed=2",
            "plots=off",
            "threads=1",
            "device=cpu",
        ],
    )
    agent = factory.build(factory.parse(values)).agent
    agent.fit()
    assert agent.target_reached
    assert agent.test()["test/length 100/bits_wrong"] == 0


@pytest.mark.parametrize("controller", ["direct", {"type": "lstm", "hidden_size": 6}])
@pytest.mark.parametrize("read_feedback", [True, False])
@pytest.mark.parametrize("tied_bits", [True, False])
def test_a_population_answers_as_its_members_do_with_and_without_feedback(controller, read_feedback, tied_bits):
    if tied_bits and controller != "direct":
        return
    torch.manual_seed(0)
    options = {"controller": controller, "read_feedback": read_feedback, "tied_bits": tied_bits}
    circuit = Tape(6, 4, memory_size=8, word_size=5, **options)
    inputs = torch.rand(7, 3, 6)
    stacks = {name: torch.randn(4, *part.shape) for name, part in circuit.named_parameters()}
    found = circuit.run_population(stacks, inputs)
    for member in range(4):
        own = {name: stack[member] for name, stack in stacks.items()}
        torch.testing.assert_close(found[:, member], torch.func.functional_call(circuit, own, (inputs,))[0])
