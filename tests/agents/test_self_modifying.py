"""The self-modifying agent: what it leaves alone, what it restores, and what it learns about its own changes."""

from __future__ import annotations

import copy
import io
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from states import flat, saved
from torch import Tensor

import papertape
from papertape.agents import BackpropAgent, SelfModifyingAgent
from papertape.agents.structure import STRATEGIES, Limits, PairedTrial, Subject, Tracker, Verdict, graded, policy
from papertape.agents.structure.grades import GRADES
from papertape.agents.structure.policy import EpsilonGreedyPolicy, RandomPolicy, ThompsonPolicy
from papertape.agents.structure.strategies import utilities
from papertape.agents.structure.tracker import TRAJECTORY, Record, thinned
from papertape.agents.structure.trial import BLOCKS, TOLERANCE, RewardTrial, gain_of, harm_of
from papertape.circuits import FeedForwardCircuit
from papertape.core.circuit import Circuit
from papertape.core.distributed import Processes
from papertape.core.recorder import Areas, Recorder
from papertape.core.structure import Layer, plain, widened
from papertape.envs import CopyEnv
from papertape.main import main
from papertape.utils import factory
from papertape.utils.plots import chart_figure
from papertape.utils.run import load_agent_state

SMALL = {"batch_size": 4, "log_every": 2, "evaluate_every": 50, "save_every": 50, "evaluation_sequences": 4, "lr": 0.01}
OFTEN = {"check_every": 4, "trial_steps": 3, "min_age": 1, "growth_threshold": -1.0, "pruning_threshold": -1.0}


class Keep(Recorder):
    wants_episodes = True

    def __init__(self) -> None:
        self.said: list[str] = []
        self.charts: dict[str, Any] = {}

    def message(self, text: str) -> None:
        self.said.append(text)

    def chart(self, step: int, name: str, chart: Any) -> None:
        self.charts[name] = chart


def make(kind: Any = SelfModifyingAgent, *, layers: int = 2, recorder: Recorder | None = None, **options: Any) -> Any:
    env = CopyEnv(width=2, max_length=1, test_lengths=[2])
    torch.manual_seed(1)
    sizes = {"hidden_size": 4, "num_layers": layers, "dropout": 0.2 if layers > 1 else 0.0}
    circuit = papertape.NTM(env.input_size, env.output_size, memory_size=4, word_size=3, backend="eager", **sizes)
    if kind is SelfModifyingAgent:
        options = {"steps": 20, **OFTEN, **options}
    return kind(env, circuit.double(), **{**SMALL, **options}, seed=3, recorder=recorder)


# ---------------------------------------------------------------------------------------------------- the agent


def test_without_a_policy_it_is_backprop_bit_for_bit() -> None:
    plain, modifying = make(BackpropAgent, steps=9), make(policy="none", steps=9)
    plain.fit()
    modifying.fit()
    left, right = flat(plain.state_dict()), flat(modifying.state_dict())
    assert left.items() <= right.items()


def test_a_change_that_is_taken_back_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PairedTrial, "see", refuse)
    plain, modifying = make(BackpropAgent, steps=17), make(policy="random", steps=17)
    plain.fit()
    modifying.fit()
    assert modifying.tracker.tried == 3
    assert modifying.tracker.kept == 0
    assert modifying.updates == 17 + 3 * 3 + 1  # the last trial has just begun
    left, right = flat(plain.state_dict()), flat(modifying.state_dict())
    assert left.items() <= right.items()


def refuse(trial: PairedTrial | RewardTrial, *seen: float) -> Verdict | None:
    """In place of ``see``: takes everything back, at the end."""
    (trial.without if isinstance(trial, PairedTrial) else trial.rewards).append(seen[0])
    trial.changed.append(seen[1])
    return Verdict(False, 0.0) if len(trial.changed) == trial.steps else None


@pytest.mark.parametrize(
    "options",
    [
        {"policy": "random"},
        {"policy": "random", "verdict": "reward"},
        {"policy": "thompson", "optimiser": "graves-rmsprop"},
        {"policy": "epsilon-greedy", "epsilon": 0.5},
    ],
)
def test_it_resumes_bit_for_bit_before_during_and_after_a_trial(options: dict[str, Any]) -> None:
    whole, states = make(**options), []
    for _ in range(16):
        states.append(saved(whole))
        whole.train_step()
    assert whole.tracker.tried >= 2
    assert any(state["trial"] for state in states)
    expected = flat(saved(whole))
    for at in (3, 5, 8, 10, 13):
        again = make(**options)
        again.load_state_dict(states[at])
        for _ in range(16 - at):
            again.train_step()
        assert flat(saved(again)) == expected, at


def test_a_run_that_starts_with_a_grown_circuit_goes_on_within_the_same_limits() -> None:
    """It is resumed with a circuit that is built anew, which is smaller."""
    from_grown, options = make(BackpropAgent), {**SMALL, **OFTEN, "steps": 20, "policy": "random", "seed": 3}
    circuit = from_grown.circuit
    circuit.edit(widened(circuit.structure(), {0: [0] * 8, 1: [0] * 8}))
    whole = SelfModifyingAgent(from_grown.env, circuit, **options)
    assert whole.bounds.max_units == 4 * 12
    for _ in range(5):
        whole.train_step()
    again = make(policy="random")
    again.load_state_dict(saved(whole))
    assert again.bounds == whole.bounds
    for agent in (whole, again):
        for _ in range(15):
            agent.train_step()
    assert flat(saved(again)) == flat(saved(whole))
    former = saved(whole)
    del former["largest"]  # as runs of before had it
    again.load_state_dict(former)


def test_what_the_rule_of_the_reward_takes_back_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RewardTrial, "see", refuse)
    agent = make(policy="random", verdict="reward")
    while agent.trial is None:
        agent.train_step()
    snapshot = flat(copy.deepcopy(agent.trial.saved))
    changed = flat(agent.circuit.state_dict())
    while agent.trial is not None:
        agent.train_step()
    now = flat({"circuit": agent.circuit.state_dict(), "moments": agent.torch_optimiser.state_dict()["state"]})
    assert now.items() <= snapshot.items()
    assert changed != flat(agent.circuit.state_dict())
    assert agent.step == 7


@pytest.mark.parametrize("verdict", ["paired", "reward"])
def test_a_change_that_breaks_the_circuit_is_taken_back(verdict: str) -> None:
    def breaks(subject: Any) -> Any:
        change = strategy.apply(subject)
        with torch.no_grad():
            next(subject.circuit.parameters()).fill_(math.nan)
        return change

    agent = make(policy="random", verdict=verdict, check_every=1000, trial_steps=50, max_bad_steps=3, steps=None)
    strategy = STRATEGIES["add-neuron"]
    agent.train_step()
    agent.try_out(strategy, breaks)
    for _ in range(8):
        agent.train_step()
    assert agent.trial is None and not agent.tracker.records[-1].kept
    assert all(parameter.isfinite().all() for parameter in agent.circuit.parameters())
    assert agent.bad_steps == (verdict == "reward")


def test_the_circuit_serves_until_the_verdict_and_is_the_same_object_after_it() -> None:
    agent = make(policy="random", steps=None)
    circuit, sizes = agent.circuit, set()
    for _ in range(40):
        structure = agent.circuit.structure()
        before = agent.trial
        agent.train_step()
        if agent.circuit.structure() != structure:
            assert before is not None
            assert agent.trial is None or agent.trial is not before
            assert agent.circuit.structure() == before.proposal.after
        sizes.add(agent.circuit.structure())
        assert [len(born) for born in agent.born] == [layer.size for layer in agent.circuit.structure()]
        parameters = agent.torch_optimiser.param_groups[0]["params"]
        assert [id(part) for part in parameters] == [id(part) for part in circuit.parameters()]
    assert agent.circuit is circuit
    assert len(sizes) > 1


def test_followers_are_told_of_what_is_kept() -> None:
    class Anchors:
        def __init__(self, circuit: Circuit) -> None:
            self.tensors = {name: part.detach().clone() for name, part in circuit.named_parameters()}

        def follow(self, change: Any) -> None:
            self.tensors = papertape.core.structure.follow(change, self.tensors, "parameter")

    agent = make(policy="random", steps=None)
    anchors = Anchors(agent.circuit)
    agent.followers.append(anchors)
    for _ in range(40):
        agent.train_step()
    assert agent.tracker.kept > 1
    shapes = {name: part.shape for name, part in agent.circuit.named_parameters()}
    assert {name: part.shape for name, part in anchors.tensors.items()} == shapes


def test_followers_are_told_of_what_the_rule_of_the_reward_takes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Anchors:
        def __init__(self, agent: Any) -> None:
            self.tensors = {name: part.detach().clone() for name, part in agent.circuit.named_parameters()}
            self.ages = [torch.arange(1.0, layer.size + 1) for layer in agent.circuit.structure()]

        def follow(self, change: Any) -> None:
            self.tensors = papertape.core.structure.follow(change, self.tensors)
            self.ages = papertape.core.structure.follow_units(change, self.ages)

    monkeypatch.setattr(RewardTrial, "see", refuse)
    agent = make(policy="random", verdict="reward", steps=None)
    anchors = Anchors(agent)
    agent.followers.append(anchors)
    first = Anchors(agent)
    tried: set[str] = set()
    while len(tried) < 6:
        agent.train_step()
        shapes = {name: part.shape for name, part in agent.circuit.named_parameters()}
        assert {name: part.shape for name, part in anchors.tensors.items()} == shapes
        if agent.trial is not None:
            tried.add(agent.trial.proposal.strategy)
            continue
        for now, then in zip(anchors.ages, first.ages, strict=True):
            assert bool(((now == then) | (now == 0)).all())  # what went is unknown when it is back
        for name, part in anchors.tensors.items():
            assert bool(((part == first.tensors[name]) | (part == 0)).all())


def test_it_goes_on_until_it_is_stopped_in_bounded_memory() -> None:
    class Stop(Keep):
        def progress(self, step: int, total: int | None, values: Any) -> None:
            assert total is None
            agent.stop_requested = step == 90

    kept = Stop()
    agent = make(policy="random", steps=None, kept_changes=5, recorder=kept, max_units=6, evaluate_every=45)
    agent.fit()
    assert agent.step == 90
    assert agent.stop_requested
    assert agent.tracker.tried > 10
    assert len(agent.tracker.records) == 5
    assert len(agent.tracker.history) <= 5
    assert sum(part.shape[0] * part.shape[1] for part in agent._recent[1:]) < 256
    assert kept.said[-1].count("\n") == 7
    assert set(kept.charts) == {"structure", "changes tried"}
    for name, chart in kept.charts.items():
        assert isinstance(chart, Areas)
        assert chart_figure(name, chart).axes


@pytest.mark.slow
@pytest.mark.long
def test_a_million_steps_take_no_more_memory_than_a_thousand() -> None:
    env = CopyEnv(width=1, max_length=1, test_lengths=[1])
    circuit = FeedForwardCircuit(env.input_size, env.output_size, hidden_sizes=[2])
    options = {**SMALL, "log_every": 10**6, "evaluate_every": 10**6, "batch_size": 1}
    agent = SelfModifyingAgent(env, circuit, **options, policy="random", check_every=100, trial_steps=50, max_units=4)
    sizes = []
    for step in range(1, 10**6 + 1):
        agent.train_step()
        if step in (50_000, 10**6):
            file = io.BytesIO()
            torch.save(agent.state_dict(), file)
            sizes.append(file.tell())
    assert sizes[1] < 1.5 * sizes[0]


def test_what_replaces_units_at_the_cap_has_to_add_something() -> None:
    agent = make(policy="random", steps=None, max_units=5)
    grows = {}
    for _ in range(300):
        agent.train_step()
        if agent.trial is not None and agent.trial.proposal.strategy == "add-neuron":
            proposal = agent.trial.proposal
            before, after = (sum(layer.size for layer in part) for part in (proposal.before, proposal.after))
            grows[after > before] = proposal.grows
    assert grows == {True: True, False: False}


def test_a_change_of_ones_own_is_tried_out_and_told() -> None:
    agent = make(policy="random", check_every=1000)
    strategy = STRATEGIES["remove-neuron"]
    with pytest.raises(RuntimeError, match="nothing was learned from yet"):
        agent.try_out(strategy, strategy.apply)
    agent.train_step()
    served = {name: part.clone() for name, part in agent.circuit.state_dict().items()}
    agent.try_out(strategy, strategy.apply)
    assert all(torch.equal(part, served[name]) for name, part in agent.circuit.state_dict().items())
    with pytest.raises(RuntimeError, match="a change is on trial already"):
        agent.try_out(strategy, strategy.apply)
    while agent.trial is not None:
        agent.train_step()
    assert (agent.tracker.tried, agent.tracker.records[-1].strategy) == (1, "remove-neuron")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"growth_threshold": 0.5, "pruning_threshold": 0.2},
            r"growth_threshold: got 0\.5; allowed is at most pruning_t",
        ),
        ({"check_every": 4, "trial_steps": 5}, r"trial_steps: got 5; allowed is at most check_every \(4\)"),
        ({"max_units": 3}, "max_units: got 3; the circuit begins with 4"),
        ({"max_layers": 1}, "max_layers: got 1; the circuit begins with 2"),
        ({"target_error": 0.0, "retry_every": 9}, "retry_every: got 9; what modifies itself"),
        ({"grades": [[0.1, 1.0], [0.1, 0.0]]}, r"grades: got \[0\.1, 0\.0\] after \[0\.1, 1\.0\]"),
        ({"steps": None, "schedule": "cosine"}, "steps: got None; a cosine schedule"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_circuits_and_processes_that_cannot_are_refused() -> None:
    env = CopyEnv(width=2, max_length=2, test_lengths=[3])
    circuit = papertape.NTM(env.input_size, env.output_size, controller="direct", memory_size=4)
    with pytest.raises(ValueError, match="circuit: its structure is fixed: a DirectController"):
        SelfModifyingAgent(env, circuit)
    SelfModifyingAgent(env, circuit, policy="none")
    two = Processes()
    two.size = 2
    with pytest.raises(ValueError, match=r"agent\.type: got 'self-modifying' in 2 processes; allowed is one"):
        make().join(two)


def test_a_grown_run_is_resumed_tested_loaded_and_begun_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    env = {"type": "copy", "width": 2, "max_length": 2, "test_lengths": [3]}
    circuit = {"type": "ntm", "controller": {"type": "gru", "hidden_size": 4}, "memory_size": 4, "word_size": 3}
    agent = {"type": "self-modifying", "policy": "random", "steps": 30, **SMALL, **OFTEN}
    run = {"env": env, "circuit": circuit, "agent": agent, "plots": "off", "device": "cpu", "threads": 1}
    Path("run.yaml").write_text(yaml.safe_dump(run))
    assert main(["train", "run.yaml", "name=one"]) == 0
    file = Path("runs/one/checkpoints/latest.pt")
    state = load_agent_state(Path("runs/one"))
    grown = factory.load_circuit(file)
    assert plain(grown.structure()) == state["structure"]["now"]
    assert state["structure"]["now"] != [[4, False]]
    assert main(["train", "--resume", "one", "agent.steps=33"]) == 0
    assert main(["test", "one"]) == 0
    assert main(["test", str(file)]) == 0
    begun = ["agent.type=backprop", "agent.steps=2", f"start={file}"]
    assert main(["train", "run.yaml", *begun, "name=two"]) == 0
    weights = factory.load_circuit("runs/two/checkpoints/latest.pt")
    assert weights.structure() == factory.load_circuit("runs/one/checkpoints/latest.pt").structure()
    other = ["circuit.controller.hidden_size=5", f"start={file}", "name=three"]
    assert main(["train", "run.yaml", *begun[:2], *other]) != 0


# ---------------------------------------------------------------------------------------------------- strategies


def subject(case: str = "feedforward", *, ages: int = 1000, **limits: Any) -> Subject:
    torch.manual_seed(2)
    if case == "feedforward":
        circuit: Circuit = FeedForwardCircuit(3, 2, hidden_sizes=[6, 4]).double()
    else:
        sizes = {"hidden_size": 6, "num_layers": 2, "memory_size": 5, "word_size": 3}
        circuit = papertape.DNC(3, 2, controller=case, **sizes).double()
    bounds = Limits(
        **{"max_layers": 3, "max_units": 16, "growth": 1.0, "pruning": 0.3, "rewired": 0.2, "min_age": 100} | limits
    )
    old = [torch.full((layer.size,), ages) for layer in circuit.structure()]
    inputs = torch.randn(9, 20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Subject(circuit, inputs, old, bounds, torch.Generator().manual_seed(5))


each_case = pytest.mark.parametrize("case", ["feedforward", "lstm", "gru"])


@each_case
@pytest.mark.parametrize("name", ["add-neuron", "add-layer"])
def test_what_grows_keeps_the_answers(case: str, name: str) -> None:
    given = subject(case)
    expected, _ = given.circuit(given.inputs)
    before = given.structure
    assert STRATEGIES[name].possible(given)
    STRATEGIES[name].apply(given)
    assert sum(layer.size for layer in given.structure) > sum(layer.size for layer in before)
    torch.testing.assert_close(given.circuit(given.inputs)[0], expected, rtol=0, atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(list(STRATEGIES)), min_size=3, max_size=10), st.sampled_from(["feedforward", "lstm"]))
def test_any_order_of_strategies_keeps_to_the_limits(names: list[str], case: str) -> None:
    given_subject = subject(case, max_units=8, max_layers=3)
    for name in names:
        structure = given_subject.structure
        aged = given_subject._replace(ages=[torch.full((layer.size,), 1000) for layer in structure])
        if not STRATEGIES[name].possible(aged):
            continue
        STRATEGIES[name].apply(aged)
        now = given_subject.structure
        change = sum(layer.size for layer in now) - sum(layer.size for layer in structure)
        grows = STRATEGIES[name].grows
        assert change * grows >= 0
        assert change == 0 if grows == 0 else change != 0 or all(layer.size == 8 for layer in structure)
        assert max(layer.size for layer in now) <= 8
        assert 1 <= len(now) <= 3
        assert bool(given_subject.circuit(given_subject.inputs)[0].isfinite().all())


def test_utility_is_magnitude_times_the_weights_that_read_it() -> None:
    given = subject()
    first, second, third = given.circuit.layers  # type: ignore[attr-defined]
    hidden = torch.tanh(first(given.inputs))
    last = torch.tanh(second(hidden))
    expected = [
        hidden.abs().flatten(0, 1).mean(0) * second.weight.abs().sum(0),
        last.abs().flatten(0, 1).mean(0) * third.weight.abs().sum(0),
    ]
    for found, wanted in zip(utilities(given.circuit, given.inputs), expected, strict=True):
        torch.testing.assert_close(found, wanted.detach())


def test_the_least_useful_unit_goes_and_the_most_useful_one_has_an_heir() -> None:
    given = subject(pruning=0.01, growth=0.01, max_units=7)
    circuit: Any = given.circuit
    with torch.no_grad():
        circuit.layers[1].weight[:, 2] *= 1e-6
        circuit.layers[1].weight[:, 3] *= 50
        circuit.layers[2].weight[:, 1] *= 1e-6
    kept = circuit.layers[0].weight.detach().clone()
    done = STRATEGIES["remove-neuron"].apply(given)
    (narrower,) = [
        edit
        for edit, before in zip(done.change.layers, done.change.before, strict=True)
        if len(edit.units) < before.size
    ]
    assert set(range(done.change.before[narrower.source].size)) - set(narrower.units) == {
        2 if narrower.source == 0 else 1
    }
    given = subject(growth=0.01, max_units=7)
    with torch.no_grad():
        given.circuit.layers[1].weight[:, 3] *= 50  # type: ignore[attr-defined]
        for _ in range(8):
            done = STRATEGIES["add-neuron"].apply(given)
            if done.change.layers[0].parents:
                break
    assert done.change.layers[0].parents[-1] == 3
    heir = given.circuit.layers[0].weight[-1]  # type: ignore[attr-defined]
    assert int(torch.cosine_similarity(heir, kept).argmax()) == 3


def test_young_units_stay_and_at_the_cap_they_are_replaced() -> None:
    young = subject("lstm", ages=5)
    assert not STRATEGIES["remove-neuron"].possible(young)
    full = subject("lstm", max_units=6)
    done = STRATEGIES["add-neuron"].apply(full)
    assert [layer.size for layer in full.structure] == [6, 6]
    assert [edit.units.count(-1) for edit in done.change.layers] == [2, 2]
    assert not STRATEGIES["add-neuron"].possible(subject("lstm", ages=5, max_units=6))


def test_the_weakest_connections_give_way() -> None:
    given = subject("gru")
    before = {name: part.detach().clone() for name, part in given.circuit.named_parameters()}
    done = STRATEGIES["rewire-connections"].apply(given)
    for name, gone in done.reset.items():
        now = given.circuit.get_parameter(name)
        assert int(gone.sum()) == round(0.2 * gone.numel())
        assert before[name][gone].abs().max() <= before[name][~gone].abs().min()
        assert torch.equal(now[~gone], before[name][~gone])
        assert not torch.equal(now[gone], before[name][gone])
    untouched = set(before) - set(done.reset)
    assert all(torch.equal(given.circuit.get_parameter(name), before[name]) for name in untouched)
    assert set(done.reset) == {name for name in before if "controller" in name and "weight" in name}


def test_weights_of_zero_are_no_connections() -> None:
    """What masks them would undo the change, and what changed nothing would be on trial."""
    given = subject("lstm", rewired=0.5)
    names = [f"controller.{name}.weight" for name in ("inputs.0", "recurrents.0")]
    with torch.no_grad():
        sparse, empty = map(given.circuit.get_parameter, names)
        sparse.mul_(torch.rand(sparse.shape, generator=torch.Generator().manual_seed(0)) < 0.2)
        empty.zero_()
    STRATEGIES["rewire-connections"].apply(given)
    now, still_empty = map(given.circuit.get_parameter, names)
    assert torch.equal(now != 0, sparse != 0)
    assert int((now != sparse).sum()) == round(0.5 * int((sparse != 0).sum()))
    assert not still_empty.any()


@each_case
def test_the_thresholds_that_are_furthest_off_are_centred(case: str) -> None:
    given = subject(case)
    name = "layers.0" if case == "feedforward" else "controller.inputs.0"
    row = 3 if case == "feedforward" else 2 * 6 + 3
    with torch.no_grad():
        given.circuit.get_submodule(name).bias[row] = 40.0  # type: ignore[index]
    done = STRATEGIES["adjust-thresholds"].apply(given)
    assert bool(done.reset[f"{name}.bias"][row])
    linear: Any = given.circuit.get_submodule(name)
    if case == "feedforward":
        assert abs(float(linear(given.inputs).detach()[..., row].mean())) < 1e-9
    else:
        assert abs(float(linear.bias.detach()[row])) < 5


# ---------------------------------------------------------------------------------------------------- trials, grades


@given(st.integers(20, 60), st.integers(0, 1000))
def test_harm_is_student_of_blocks(steps: int, seed: int) -> None:
    without, changed = (0.1 + 9 * torch.rand(2, steps, generator=torch.Generator().manual_seed(seed))).tolist()
    longer, length = steps % BLOCKS, steps // BLOCKS
    ratios, start = [], 0
    for block in range(BLOCKS):
        end = start + length + (block < longer)
        ratios.append(math.log(sum(changed[start:end]) / sum(without[start:end]) / TOLERANCE))
        start = end
    expected = statistics.mean(ratios) / (statistics.stdev(ratios) / math.sqrt(BLOCKS))
    assert harm_of(without, changed) == pytest.approx(expected, rel=1e-6)


def test_harm_of_series_that_are_short_equal_or_not_finite() -> None:
    assert harm_of([1.0], [9.0]) == 0
    assert harm_of([1.0, 2.0], [1.0, 2.0]) < 0
    assert harm_of([0.0] * 50, [0.0] * 50) == -math.inf
    assert harm_of([1.0, 1.0], [1.0, math.inf]) == math.inf


def test_copies_that_wander_apart_do_no_harm() -> None:
    generator, found, paired = torch.Generator().manual_seed(0), 0, 0
    for _ in range(400):
        apart, differences = 0.0, []
        for _ in range(50):  # the next batch tells much the same as the last
            apart = 0.9 * apart + 0.01 * float(torch.randn((), generator=generator))
            differences.append(apart)
        found += harm_of([1.0] * 50, [1 + each for each in differences]) > 3
        paired += statistics.mean(differences) / statistics.stdev(differences) * math.sqrt(50) > 3
    assert found / 400 <= 0.05 < paired / 400


def test_verdicts() -> None:
    def verdict(changed: Any, grows: bool = True, steps: int = 100) -> tuple[Verdict, int]:
        generator = torch.Generator().manual_seed(0)
        proposal: Any = type("P", (), {"grows": grows})()
        trial = PairedTrial(proposal, None, None, None, steps=steps, harm=3.0)  # type: ignore[arg-type]
        for step in range(1, steps + 1):
            loss = 1 + 0.3 * float(torch.randn((), generator=generator))
            found = trial.see(loss, changed(loss, 0.02 * float(torch.randn((), generator=generator))))
            if found:
                return found, step
        raise AssertionError("no verdict")

    assert verdict(lambda loss, noise: loss + noise)[0].kept
    assert verdict(lambda loss, noise: loss + noise + 0.01)[0].kept  # as copies that begin alike differ
    assert verdict(lambda loss, noise: loss + noise + 0.05) == (Verdict(False, pytest.approx(-0.05, abs=0.02)), 50)
    better, at = verdict(lambda loss, noise: 0.5 * loss)
    assert better == Verdict(True, pytest.approx(math.log(2)))
    assert at == 100
    assert verdict(lambda loss, noise: loss + 40 * noise + 0.03)[0].kept  # not proven
    assert not verdict(lambda loss, noise: loss + 40 * noise + 0.2, grows=False)[0].kept  # adds nothing
    assert verdict(lambda loss, noise: math.nan) == (Verdict(False, -1.0), 1)
    assert gain_of([1.0], [math.inf]) == -1
    assert gain_of([1.0], [1e-30]) == 1


def test_the_rule_of_the_reward() -> None:
    for after, kept in ((0.45, True), (0.2, False), (math.nan, False)):
        trial = RewardTrial(None, {}, 0.8, 1.0, steps=3)  # type: ignore[arg-type]
        found = [trial.see(after, 2.0) for _ in range(3)]
        assert found[:2] == [None, None]
        assert found[2] == Verdict(kept, pytest.approx(-math.log(2)))


@given(st.lists(st.floats(0, 2), min_size=1, max_size=8))
def test_grades_are_linear_between_their_pairs(errors: list[float]) -> None:
    at, worth = zip(*GRADES, strict=True)
    found = graded(torch.tensor(errors, dtype=torch.float64), GRADES)
    np.testing.assert_allclose(found.numpy(), np.interp(errors, at, worth), atol=1e-12)


# ---------------------------------------------------------------------------------------------------- policies


def situation(generator: torch.Generator) -> Tensor:
    drawn = torch.rand(policy.FEATURES, generator=generator, dtype=torch.float64) * 2 - 1
    drawn[-1] = 1
    return drawn


def outcome(where: Tensor, arm: str) -> float:
    """Adding pays where the reward is low, removing where it is high, the rest nowhere."""
    gains = {"add-neuron": -0.5 * float(where[0]), "remove-neuron": 0.5 * float(where[0])}
    return gains.get(arm, -0.3)


@pytest.mark.parametrize("kind", [lambda g: ThompsonPolicy(0.99), lambda g: EpsilonGreedyPolicy(0.2, g)])
def test_policies_learn_where_which_change_pays(kind: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    chooser, arms = kind(generator), list(STRATEGIES)
    for _ in range(250):
        where = situation(generator)
        arm = chooser.choose(where, arms, generator)
        if arm is not None:
            chooser.learn(where, arm, outcome(where, arm))
    if isinstance(chooser, EpsilonGreedyPolicy):
        chooser.epsilon = 0.0
    gains, at_random = [], []
    for _ in range(200):
        where = situation(generator)
        arm = chooser.choose(where, arms, generator)
        gains.append(outcome(where, arm) if arm else 0.0)
        at_random.append(outcome(where, str(RandomPolicy().choose(where, arms, generator))))
    best = statistics.mean(abs(0.5 * float(situation(generator)[0])) for _ in range(500))
    assert statistics.mean(gains) > 0.6 * best
    assert statistics.mean(at_random) < 0


def test_thompson_is_bayesian_regression() -> None:
    generator = torch.Generator().manual_seed(0)
    chooser = ThompsonPolicy(1.0)
    rows = [situation(generator) for _ in range(30)]
    for where in rows:
        chooser.learn(where, "add-layer", float(where[2]) + 0.1)
    inputs, targets = torch.stack(rows).numpy(), np.array([float(where[2]) + 0.1 for where in rows])
    precision = np.eye(policy.FEATURES) + inputs.T @ inputs
    mean, covariance = np.linalg.solve(precision, inputs.T @ targets), policy.NOISE**2 * np.linalg.inv(precision)
    where = situation(generator)
    drawn = [chooser.sampled(where, "add-layer", generator) for _ in range(4000)]
    assert statistics.mean(drawn) == pytest.approx(float(where.numpy() @ mean), abs=0.02)
    assert statistics.stdev(drawn) == pytest.approx(math.sqrt(where.numpy() @ covariance @ where.numpy()), rel=0.1)


def test_what_is_known_of_an_arm_is_forgotten_with_its_own_outcomes() -> None:
    chooser, where = ThompsonPolicy(0.5), torch.ones(policy.FEATURES, dtype=torch.float64)
    chooser.learn(where, "add-layer", 1.0)
    first = chooser.precision["add-layer"].clone()
    for _ in range(60):
        chooser.learn(where, "remove-layer", -1.0)
    assert torch.equal(chooser.precision["add-layer"], first)
    torch.testing.assert_close(chooser.precision["remove-layer"], 2 * first - torch.eye(policy.FEATURES).double())
    torch.testing.assert_close(chooser.moment["remove-layer"], -2 * where)


@pytest.mark.parametrize("name", ["thompson", "epsilon-greedy"])
def test_policies_are_saved_whole(name: Any) -> None:
    def fresh() -> Any:
        return policy.make_policy(name, forgetting=0.9, epsilon=0.1, generator=torch.Generator().manual_seed(1))

    generator, chooser, again = torch.Generator().manual_seed(0), fresh(), fresh()
    for arm in STRATEGIES:
        chooser.learn(situation(generator), arm, 0.3)
    again.load_state_dict(copy.deepcopy(chooser.state_dict()))
    for each in (chooser, again):
        each.learn(torch.ones(policy.FEATURES, dtype=torch.float64), "add-layer", 1.0)
    assert flat(chooser.state_dict()) == flat(again.state_dict())
    assert chooser.choose(situation(generator), [], generator) is None


# ---------------------------------------------------------------------------------------------------- the tracker


def record(step: int, kept: bool = True, name: str = "add-neuron") -> Record:
    return Record(step, name, (Layer(2),), (Layer(3),), kept, 0.5, torch.ones(3), torch.ones(3))


def test_the_tracker_counts_all_and_keeps_the_latest() -> None:
    tracker = Tracker((Layer(2),), 10)
    for step in range(1000):
        tracker.add(record(step, kept=step % 4 == 0, name=list(STRATEGIES)[step % 2]))
        tracker.note(step, (Layer(2 + step % 7), Layer(3)))
    assert (tracker.tried, tracker.kept) == (1000, 250)
    assert [one.step for one in tracker.records] == list(range(990, 1000))
    assert len(tracker.history) <= 10
    assert tracker.history[0] == (0, (Layer(2),))
    assert tracker.history[-1][0] == 999
    assert "add-neuron              500    250     +0.500" in tracker.table()
    again = Tracker((Layer(9),), 10)
    again.load_state_dict(copy.deepcopy(tracker.state_dict()))
    assert flat(again.state_dict()) == flat(tracker.state_dict())
    assert again.charts(1000) == tracker.charts(1000)
    structure = tracker.charts(1000)["structure"]
    assert isinstance(structure, Areas)
    assert [mark.good for mark in structure.marks].count(True) == 2
    assert all(len(line) == len(structure.steps) for line in structure.parts.values())


def test_long_trials_are_thinned() -> None:
    assert thinned([1.0, 2.0]).tolist() == [1, 2]
    long = thinned([float(value) for value in range(1001)])
    assert len(long) == TRAJECTORY
    assert (float(long[0]), float(long[-1])) == (0, 1000)
