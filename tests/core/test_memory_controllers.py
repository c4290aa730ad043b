"""Controllers that are a memory themselves: against plain loops, their gradients, states, traces and populations."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import controller_loops as loops
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import papertape
from papertape.circuits import RecurrentCircuit
from papertape.core.accessors import StaticAccessor
from papertape.core.controllers import (
    AutomatonController,
    Controller,
    CTMController,
    HyperLSTMController,
    LeakyController,
    PlasticController,
    RelationalController,
    ReservoirController,
)
from papertape.core.controllers.reservoir import read_connectome
from papertape.core.members import map_members
from papertape.core.state import leaves, map_state
from papertape.core.trace import TraceField, check_fields
from papertape.utils.plots import plot_trace

INPUTS, STEPS, BATCH = 3, 5, 2
DISCRETE = "automaton discrete"
RELATIONAL = {"memory_size": 3, "num_heads": 2, "head_size": 2}
CASES: dict[str, tuple[type[Controller], dict[str, Any]]] = {
    "automaton": (AutomatonController, {"hidden_size": 5, "num_states": 3}),
    "automaton sharpened": (
        AutomatonController,
        {"hidden_size": 5, "num_states": 3, "sharpening": 1.5, "temperature": 0.5},
    ),
    DISCRETE: (AutomatonController, {"hidden_size": 6, "num_states": 4, "discrete": True}),
    **{
        f"plastic {rule}": (PlasticController, {"hidden_size": 4, "rule": rule})
        for rule in ("decay", "oja", "clip", "modulated", "retroactive")
    },
    "hyper-lstm": (HyperLSTMController, {"hidden_size": 4, "hyper_size": 3, "embedding_size": 2}),
    "hyper-lstm two layers": (
        HyperLSTMController,
        {"hidden_size": 3, "hyper_size": 2, "embedding_size": 2, "num_layers": 2, "layer_norm": False},
    ),
    "relational": (RelationalController, RELATIONAL),
    "relational memory gates": (
        RelationalController,
        {**RELATIONAL, "gating": "memory", "key_size": 3, "num_blocks": 2, "mlp_layers": 1, "forget_bias": 0.5},
    ),
    "relational ungated": (RelationalController, {**RELATIONAL, "gating": "none", "memory_size": 5, "mlp_layers": 3}),
    "reservoir": (ReservoirController, {"hidden_size": 6, "density": 0.4, "leak": 0.7}),
    "leaky": (LeakyController, {"hidden_size": 4, "max_timescale": 3.0}),
    "leaky two layers": (
        LeakyController,
        {"hidden_size": 3, "num_layers": 2, "timescales": "layer", "activation": "tanh", "leak_inside": False},
    ),
    "leaky fixed": (
        LeakyController,
        {"hidden_size": 3, "timescales": "fixed", "min_timescale": 2.5, "max_timescale": 2.5},
    ),
    "ctm": (CTMController, {"neurons": 5, "hidden_size": 4, "ticks": 3, "history": 4, "model_size": 2}),
}
LOOPS = {
    AutomatonController: loops.automaton,
    PlasticController: loops.plastic,
    HyperLSTMController: loops.hyper_lstm,
    RelationalController: loops.relational,
    ReservoirController: loops.reservoir,
    LeakyController: loops.leaky,
    CTMController: loops.ctm,
}
each = pytest.mark.parametrize("name", CASES)


def made(name: str, seed: int = 0, **more: Any) -> Controller:
    """A small controller in float64, with weights that all matter."""
    cls, options = CASES[name]
    torch.manual_seed(seed)
    controller = cls(INPUTS, **{**options, **more}).double()
    with torch.no_grad():
        for parameter in controller.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return controller


def sequence(seed: int = 1) -> Tensor:
    return torch.randn(STEPS, BATCH, INPUTS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def alone(name: str) -> papertape.RecurrentCircuit:
    """The controller with an output layer."""
    torch.manual_seed(0)
    return papertape.RecurrentCircuit(INPUTS, 2, controller=CASES[name][0](INPUTS, **CASES[name][1])).double()


def circuit(name: str) -> papertape.MemoryCircuit:
    """The controller with a small memory beside it."""
    torch.manual_seed(0)
    controller = CASES[name][0](INPUTS + 2, **CASES[name][1])
    accessor = StaticAccessor(controller.hidden_size, memory_size=3, word_size=2)
    return papertape.MemoryCircuit(INPUTS, 2, controller=controller, accessor=accessor).double()


@each
def test_against_plain_loops(name: str) -> None:
    controller, inputs = made(name), sequence()
    hidden, _ = controller.run(inputs, controller.initial_state(BATCH))
    weights = {key: part.detach().double().numpy() for key, part in controller.state_dict().items()}
    for row in range(BATCH):
        expected = LOOPS[type(controller)](inputs[:, row].numpy(), weights, controller)
        torch.testing.assert_close(hidden[:, row], torch.tensor(expected, dtype=torch.float64))


@each
def test_it_keeps_its_contract_and_two_halves_are_the_whole(name: str) -> None:
    controller, inputs = made(name), sequence()
    controller.check()
    whole, last = controller.run(inputs, controller.initial_state(BATCH))
    first, state = controller.run(inputs[:2], controller.initial_state(BATCH))
    second, state = controller.run(inputs[2:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    for one, other in zip(leaves(state), leaves(last), strict=True):
        torch.testing.assert_close(one, other)
    assert whole[-1].std() > 0 and (whole[0] - whole[-1]).abs().max() > 1e-3


@each
def test_gradients(name: str) -> None:
    controller, inputs = made(name), sequence()[:3].requires_grad_()
    parameters = dict(controller.named_parameters())

    def run(inputs: Tensor, *values: Tensor) -> Tensor:
        chosen = dict(zip(parameters, values, strict=True))
        state = torch.func.functional_call(_Start(controller), {f"own.{key}": part for key, part in chosen.items()}, ())
        outputs = []
        for x in inputs:
            hidden, state = torch.func.functional_call(controller, chosen, (x, state))
            outputs.append(hidden)
        return torch.stack(outputs)

    if name != DISCRETE:  # whose outputs jump
        assert torch.autograd.gradcheck(run, (inputs, *parameters.values()), fast_mode=True, atol=1e-5)
    if parameters:  # a reservoir has none
        controller.run(sequence(), controller.initial_state(BATCH))[0].square().sum().backward()
    for key, parameter in parameters.items():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key


class _Start(torch.nn.Module):
    """The initial state, which may be learned."""

    def __init__(self, own: Controller) -> None:
        super().__init__()
        self.own = own

    def forward(self) -> Any:
        return self.own.initial_state(BATCH)


@each
def test_members_of_a_population_answer_as_each_alone(name: str) -> None:
    whole = circuit(name)
    generator = torch.Generator().manual_seed(0)
    stacks = {
        key: part + 0.3 * torch.randn(3, *part.shape, generator=generator, dtype=part.dtype)
        for key, part in whole.named_parameters()
    }
    inputs = sequence()
    answers = map_members(whole, stacks, inputs)
    assert whole.__dict__["_mapping"] is torch.func.vmap, "all at once, not one by one"
    for member in range(3):
        weights = {key: stack[member] for key, stack in stacks.items()}
        torch.testing.assert_close(answers[:, member], torch.func.functional_call(whole, weights, (inputs,))[0])


@each
def test_traces_show_the_state(name: str, tmp_path: Path) -> None:
    whole, inputs = circuit(name), sequence()
    check_fields(name, whole.trace_fields)
    outputs, state, trace = whole(inputs, trace=True)
    torch.testing.assert_close(outputs, whole(inputs)[0])
    shown = whole.controller.trace_fields
    assert shown and set(trace) == set(whole.trace_fields) > set(shown)
    outputs, last, own = alone(name)(inputs, trace=True)
    torch.testing.assert_close(outputs, alone(name)(inputs)[0])
    assert set(own) == set(shown)
    for key, part in last._asdict().items():
        if key in shown:
            torch.testing.assert_close(own[key][-1], part)
    for key, part in state.controller._asdict().items():
        if key in shown:
            torch.testing.assert_close(trace[key][-1], part)
    if name == "relational":  # it has all that others have, and a memory
        plot_trace(trace, tmp_path / "trace.png", inputs=inputs, outputs=outputs)
        assert (tmp_path / "trace.png").stat().st_size > 10_000


@each
def test_under_autocast_the_state_stays_in_its_own_type(name: str) -> None:
    whole = circuit(name).float()
    inputs = sequence().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, state = whole(inputs)
        whole(inputs, state)
        _, last = alone(name).float()(inputs)
    assert {leaf.dtype for leaf in [*leaves(state), *leaves(last)]} == {torch.float32}
    torch.testing.assert_close(outputs, whole(inputs)[0], atol=0.2, rtol=0.2)


@each
def test_the_given_state_is_left_as_it_was_and_clip_bounds_the_hidden_vector(name: str) -> None:
    controller = made(name, clip=0.05)
    state = map_state(lambda leaf: leaf + 0.5, controller.initial_state(BATCH))
    before = map_state(torch.clone, state)
    hidden, _ = controller(100 * sequence()[0], state)
    assert all(torch.equal(one, other) for one, other in zip(leaves(state), leaves(before), strict=True))
    if isinstance(controller, AutomatonController):  # likelihoods stay what they are
        hidden = hidden[:, : controller.units]
    assert hidden.abs().max() <= 0.05


def test_a_trace_shows_nothing_twice() -> None:
    twice = LeakyController(3 + 20, hidden_size=4)
    twice.trace_fields = {"memory": TraceField("L U", "words")}
    with pytest.raises(ValueError, match="controller: its trace shows memory, as that of the accessor does"):
        papertape.MemoryCircuit(3, 2, controller=twice)


# ---- automaton -------------------------------------------------------------------------------------------------------


def counter() -> AutomatonController:
    """It counts the ones of its input, round 3."""
    controller = AutomatonController(1, hidden_size=4, num_states=3, discrete=True).double()
    stays, goes_on = torch.eye(3), torch.eye(3).roll(1, 0)
    with torch.no_grad():
        controller.inputs[0].weight[1:, 0] = 20 * (goes_on - stays).flatten()
        controller.inputs[0].bias[1:] = 10 * stays.flatten()
    return controller


def test_an_automaton_counts_for_as_long_as_one_likes() -> None:
    bits = torch.randint(2, (5000, 4, 1), generator=torch.Generator().manual_seed(0)).double()
    controller = counter()
    hidden, _ = controller.run(bits, controller.initial_state(4))
    assert torch.equal(hidden[..., 1:].argmax(-1), bits[..., 0].cumsum(0).long() % 3)
    assert torch.equal(hidden[..., 1:].sum(-1), torch.ones(5000, 4, dtype=torch.float64)), "in one state"


def test_gradients_pass_a_discrete_automaton_as_if_it_were_not() -> None:
    controller, x = made(DISCRETE), sequence()[0]
    state = controller.initial_state(BATCH)
    weight = torch.randn(BATCH, controller.num_states, dtype=torch.float64)
    gradients = []
    for discrete in (True, False):
        controller.discrete = discrete
        hidden, _ = controller(x, state)
        (hidden[:, controller.units :] * weight).sum().backward()
        gradients.append(controller.inputs[0].weight.grad)
        controller.zero_grad()
    torch.testing.assert_close(*gradients)
    assert gradients[0][controller.units :].abs().max() > 0


def test_what_an_automaton_refuses() -> None:
    with pytest.raises(ValueError, match=r"num_states: got 8; allowed is less than hidden_size \(8\)"):
        AutomatonController(3, hidden_size=8, num_states=8)
    with pytest.raises(ValueError, match=r"sharpening: got 2.0; allowed with discrete: 1"):
        AutomatonController(3, discrete=True, sharpening=2.0)


# ---- plastic ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "fields"),
    [
        ("decay", {"hidden", "hebbian"}),
        ("modulated", {"hidden", "hebbian", "modulation"}),
        ("retroactive", {"hidden", "hebbian", "modulation", "eligibility"}),
    ],
)
def test_a_plastic_trace_shows_what_its_rule_has(rule: str, fields: set[str]) -> None:
    assert set(PlasticController(3, rule=rule).trace_fields) == fields
    assert set(PlasticController.trace_fields) > {"hidden", "hebbian"}, "of the class, all"


def test_without_plasticity_it_is_a_plain_network() -> None:
    controller, inputs = made("plastic oja"), sequence()
    torch.nn.init.zeros_(controller.plasticity)
    plain = torch.nn.RNN(INPUTS, 4).double()
    with torch.no_grad():
        plain.weight_ih_l0.copy_(controller.input.weight)
        plain.bias_ih_l0.copy_(controller.input.bias)
        plain.weight_hh_l0.copy_(controller.recurrent.weight)
        plain.bias_hh_l0.zero_()
    torch.testing.assert_close(controller.run(inputs, controller.initial_state(BATCH))[0], plain(inputs)[0])


# ---- hyper-lstm ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bits", [False, True])
def test_a_hyper_lstm_has_usable_gradients_for_inputs_of_zeros(num_layers: int, bits: bool) -> None:
    torch.manual_seed(0)
    circuit = RecurrentCircuit(1, 8, controller={"type": "hyper-lstm", "hidden_size": 20, "num_layers": num_layers})
    inputs = torch.randint(2, (40, 16, 1)).float() * bits
    circuit(inputs)[0].square().mean().backward()
    assert all(float(parameter.grad.abs().max()) < 1e3 for parameter in circuit.parameters())


@pytest.mark.parametrize("name", ["leaky", "convolution", "lstm", "rnn", "hyper-lstm"])
def test_layers_that_are_pruned_learn(name: str) -> None:
    torch.manual_seed(0)
    circuit = RecurrentCircuit(3, 2, controller={"type": name, "hidden_size": 5})
    layers = [layer for layer in circuit.controller.modules() if isinstance(layer, nn.Linear | nn.Conv1d)]
    for layer in layers:
        prune.random_unstructured(layer, "weight", amount=0.3)
    optimiser, inputs = torch.optim.SGD(circuit.parameters(), 0.1), torch.randn(4, 2, 3)
    for _ in range(2):
        optimiser.zero_grad()
        circuit(inputs)[0].square().sum().backward()
        optimiser.step()
    expected = circuit(inputs)[0]
    for layer in layers:
        prune.remove(layer, "weight")
    torch.testing.assert_close(circuit(inputs)[0], expected)


def test_a_convolution_is_called() -> None:
    circuit = RecurrentCircuit(3, 2, controller={"type": "convolution", "hidden_size": 5})
    inputs = torch.randn(4, 2, 3)
    before = circuit(inputs)[0]
    circuit.controller.convolution.register_forward_hook(lambda module, given, made: made + 1)
    assert not torch.allclose(circuit(inputs)[0], before)


def test_a_hyper_lstm_begins_with_the_same_scale_everywhere() -> None:
    controller = HyperLSTMController(INPUTS, hidden_size=6, embedding_size=4)
    scales = controller.layers[0].scales(torch.randn(2, controller.hyper_size))
    torch.testing.assert_close(scales[0], torch.full((2, 4, 6), 0.1))
    torch.testing.assert_close(scales[1], torch.full((2, 4, 6), 0.1))
    torch.testing.assert_close(scales[2], controller.layers[0].bias.expand(2, -1, -1))


@pytest.mark.parametrize("cls", [HyperLSTMController, LeakyController])
def test_dropout_is_between_layers_in_training(cls: type[Controller]) -> None:
    controller = cls(INPUTS, hidden_size=8, num_layers=2, dropout=0.5)
    x, state = torch.randn(BATCH, INPUTS), controller.initial_state(BATCH)
    (_, first), (_, second) = controller(x, state), controller(x, state)
    assert torch.equal(first.hidden[:, 0], second.hidden[:, 0])
    assert not torch.equal(first.hidden[:, 1], second.hidden[:, 1])
    controller.eval()
    assert torch.equal(controller(x, state)[0], controller(x, state)[0])
    with pytest.raises(ValueError, match="dropout: got 0.5; it is between layers"):
        cls(INPUTS, dropout=0.5)


# ---- relational ------------------------------------------------------------------------------------------------------


def test_slots_begin_unlike_each_other_and_attention_is_shared_out() -> None:
    whole = circuit("relational memory gates")
    start = whole.controller.initial_state(2).slots
    assert torch.equal(start[0], torch.eye(3, 4, dtype=torch.float64)) and torch.equal(start[0], start[1])
    _, _, trace = whole(sequence(), trace=True)
    assert trace.attention.shape == (STEPS, BATCH, 2, 3, 4)
    torch.testing.assert_close(trace.attention.sum(-1), torch.ones(STEPS, BATCH, 2, 3, dtype=torch.float64))
    assert trace.input_gate.shape == (STEPS, BATCH, 3, 1), "a gate for each slot"
    assert circuit("relational")(sequence(), trace=True)[2].input_gate.shape == (STEPS, BATCH, 3, 4)


# ---- leaky -----------------------------------------------------------------------------------------------------------


def test_a_unit_forgets_within_its_timescale() -> None:
    controller = LeakyController(1, hidden_size=2, timescales="fixed", max_timescale=1.0).double()
    controller.timescale.copy_(torch.tensor([[1.0, 10.0]]))
    for parameter in controller.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.ones_(controller.inputs[0].weight)
    pulse = torch.zeros(11, 1, 1, dtype=torch.float64)
    pulse[0] = 1
    hidden, _ = controller.run(pulse, controller.initial_state(1))
    assert not hidden[1:, 0, 0].any(), "a timescale of one step keeps nothing"
    assert (hidden[10, 0, 1] / hidden[0, 0, 1]).item() == pytest.approx(0.9**10)


def test_timescales_are_learned_where_asked_for() -> None:
    sizes = {"unit": 6, "layer": 1, "fixed": None}
    for kind, size in sizes.items():
        parameters = dict(LeakyController(3, hidden_size=6, timescales=kind).named_parameters())
        assert ("timescale" in parameters) == (size is not None)
        assert size is None or parameters["timescale"].shape == (1, size)
    with pytest.raises(ValueError, match=r"min_timescale: got 3.0; allowed is at most max_timescale \(2.0\)"):
        LeakyController(3, min_timescale=3.0)
    with pytest.raises(ValueError, match="max_timescale: got 0.5"):
        LeakyController(3, max_timescale=0.5)


# ---- reservoir -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.01, 0.2, 1.0])
def test_a_reservoir_has_its_radius_and_density(density: float) -> None:
    controller = ReservoirController(3, hidden_size=20, spectral_radius=0.8, density=density, input_scale=0.5)
    radius = torch.linalg.eigvals(controller.recurrent.double()).abs().max()
    assert radius.item() == pytest.approx(0.8, rel=1e-4)
    assert ((controller.recurrent != 0).sum(1) == max(1, round(20 * density))).all()
    assert 0.3 < controller.input.abs().max() <= 0.5
    assert not list(controller.parameters()) and {*controller.state_dict()} == {"recurrent", "input", "bias"}


def test_no_weight_of_a_reservoir_is_far_above_its_radius() -> None:
    """A few units, each fed by one other, may be one cycle that a weak connection breaks."""
    for size, seed in itertools.product((2, 3, 5, 10, 14), range(40)):
        torch.manual_seed(seed)
        assert ReservoirController(3, hidden_size=size, spectral_radius=0.5).recurrent.abs().max() < 5


def test_a_reservoir_below_1_forgets_how_it_began() -> None:
    torch.manual_seed(0)
    controller = ReservoirController(3, hidden_size=20, spectral_radius=0.5).double()
    inputs = torch.randn(60, 1, 3, dtype=torch.float64)
    ends = [
        controller.run(inputs, type(controller.initial_state(1))(start.double()))[1] for start in torch.randn(2, 1, 20)
    ]
    torch.testing.assert_close(*ends, atol=1e-8, rtol=0)


EDGES = """# from to weight
a\tb\t2
b\tc\t1.5
c\ta\t-1
c\ta\t-2
a\td\t4
"""


@pytest.mark.parametrize("text", [EDGES, EDGES.replace("\t", ","), EDGES.replace("\t", " "), f"source\tto\tn\n{EDGES}"])
def test_a_connectome_says_what_is_connected_how_strongly(tmp_path: Path, text: str) -> None:
    path = tmp_path / "edges.tsv"
    path.write_text(text)
    controller = ReservoirController(3, connectome=str(path), spectral_radius=1.0)
    assert controller.hidden_size == 4
    expected = torch.zeros(4, 4)  # to a, b, c, d
    expected[1, 0], expected[2, 1], expected[0, 2], expected[3, 0] = 2, 1.5, -3, 4
    radius = (2 * 1.5 * 3) ** (1 / 3)  # of a cycle of three
    torch.testing.assert_close(controller.recurrent, expected / radius)
    before = controller.input.clone()
    controller.reset_parameters()
    torch.testing.assert_close(controller.recurrent, expected / radius)
    assert not torch.equal(controller.input, before)


@pytest.mark.parametrize("weight", ["1e300", "1e-300"])
def test_weights_of_a_connectome_may_have_any_unit(tmp_path: Path, weight: str) -> None:
    path = tmp_path / "connectome"
    path.write_text(f"a b {weight}\nb a {weight}\n")
    recurrent = ReservoirController(3, connectome=str(path), spectral_radius=0.5).recurrent
    torch.testing.assert_close(recurrent, torch.tensor([[0.0, 0.5], [0.5, 0.0]]))


@pytest.mark.parametrize("path", ["~no-such-user/x", "nowhere", "nul\0"])
def test_a_connectome_that_cannot_be_read_is_named(path: str) -> None:
    with pytest.raises(ValueError, match=f"connectome: got {re.escape(repr(path))}; it cannot be read: "):
        read_connectome(path)


def test_weights_that_a_connectome_does_not_tell_are_drawn(tmp_path: Path) -> None:
    path = tmp_path / "edges.csv"
    path.write_text('"x","y"\n"y","x"\n"y","z"\n')
    assert read_connectome(str(path)).isnan().sum() == 3
    torch.manual_seed(0)
    drawn = [ReservoirController(3, connectome=str(path)).recurrent for _ in range(2)]
    assert (drawn[0] != 0).tolist() == [[False, True, False], [True, False, False], [False, True, False]]
    assert not torch.equal(*drawn)
    with torch.device("meta"):
        assert ReservoirController(3, connectome=str(path)).recurrent.shape == (3, 3)


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        (None, {}, "connectome: got .*it cannot be read"),
        ("# nothing\n", {}, "there is no connection in it"),
        ("a b\nb\n", {}, "line 2 of .* is b; expected source and target"),
        ("a b 1\nb a nan\n", {}, "line 2 of .* is b, a, nan; expected source, target and weight"),
        ("a b 1 2\n", {}, "line 1 of .* is a, b, 1, 2"),
        ("a b\nb c\n", {}, "it has no cycle, without which nothing echoes"),
        ("a a 1\nb a 1\na b -1\nb b -1\n", {}, "no eigenvalue reaches 1e-06 of its largest weight"),
        ("a b 1e308\na b 1e308\nb a 1\n", {}, "line 2 of .*: the weights from a to b overflow"),
        ("a b\nb a\n", {"hidden_size": 5}, "hidden_size: got 5; the connectome has 2 units"),
        ("a b\nb a\n", {"density": 0.5}, "density: got 0.5; a connectome has its own"),
    ],
)
def test_a_connectome_that_is_none_is_refused(
    tmp_path: Path, text: str | None, more: dict[str, Any], message: str
) -> None:
    path = tmp_path / "edges.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        ReservoirController(3, connectome=str(path), **more)


# ---- ctm -------------------------------------------------------------------------------------------------------------


def test_pairs_of_neurons_that_never_decay_and_dropout_of_synapses() -> None:
    controller = CTMController(3, neurons=6, hidden_size=5, ticks=2, history=3, dropout=0.5)
    torch.nn.init.constant_(controller.decay, -60)
    x, state = torch.randn(BATCH, 3), controller.initial_state(BATCH)
    _, after = controller(x, state)
    torch.testing.assert_close(after.weight, torch.full((BATCH, 5), 3.0))
    assert not torch.equal(controller(x, state)[0], controller(x, state)[0])
    controller.eval()
    assert torch.equal(controller(x, state)[0], controller(x, state)[0])
    torch.testing.assert_close(controller.synchronisation(*after[2:]), after.products / math.sqrt(3))
