"""Agents that learn with a circuit whose units belong to tasks: when units come, and how it is resumed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from states import same

import papertape
from papertape.agents import BackpropAgent, EvolutionAgent, NodePerturbationAgent, SelfModifyingAgent
from papertape.agents.structure import STRATEGIES
from papertape.circuits import RoutedCircuit
from papertape.core.distributed import Processes
from papertape.core.structure import Layer
from papertape.envs import StreamEnv
from papertape.main import main

SETTINGS: dict[str, Any] = {"batch_size": 4, "evaluation_sequences": 4, "evaluate_every": 1000, "save_every": 1000}
TRIALS: dict[str, Any] = {
    "check_every": 4,
    "trial_steps": 4,
    "min_age": 0,
    "growth_threshold": -1.0,
    "pruning_threshold": -1.0,
}
ENVS = [
    {"type": "copy", "width": 2, "max_length": 2, "test_lengths": [2]},
    {"type": "associative-recall", "width": 2, "words_per_item": 1, "max_items": 2, "test_items": [2]},
    {"type": "copy", "width": 2, "max_length": 3, "test_lengths": [3]},
]


def make(
    kind: Any = SelfModifyingAgent, *, every: int = 40, recorder: Any = None, tasks: int = 1, **options: Any
) -> Any:
    torch.manual_seed(0)
    env = StreamEnv(envs=ENVS, tag_channels=True, pad=True, every=every, again=False)
    inner = {
        "type": "ntm",
        "controller": {"type": "lstm", "hidden_size": 6},
        "memory_size": 5,
        "word_size": 3,
    }
    circuit = RoutedCircuit(env.input_size, env.output_size, circuit=inner, tag_channels=3, tasks=tasks)
    return kind(env, circuit, recorder=recorder, **{**SETTINGS, **options})


def answers(agent: Any, task: int) -> torch.Tensor:
    batch = list(agent.env.sets("test").values())[2 * task].sample(4, torch.Generator().manual_seed(0))
    agent.circuit.eval()
    with torch.no_grad():
        return agent.circuit(batch.inputs)[0]


@pytest.mark.parametrize("kind", [BackpropAgent, SelfModifyingAgent])
def test_each_task_is_given_units_when_it_comes_and_keeps_its_answers(kind: Any) -> None:
    more = TRIALS if kind is SelfModifyingAgent else {}
    agent = make(kind, steps=30, **more)
    kept: dict[int, torch.Tensor] = {}
    while agent.step < 30:
        agent.train_step()
        if agent.step % 10 == 0:
            task = agent.step // 10 - 1
            assert len(agent.circuit.routes) == task + 1
            for earlier, expected in kept.items():
                assert torch.equal(answers(agent, earlier), expected)
            kept[task] = answers(agent, task)
    if kind is SelfModifyingAgent:
        assert agent.tracker.tried >= 3
        assert [len(born) for born in agent.born] == [agent.circuit.structure()[0].size]


def at_the_second_task(**options: Any) -> Any:
    """An agent amid the second task, with what it would judge units by."""
    agent = make(steps=30, policy="none", min_age=0, max_units=20, **options)
    while agent.step < 19:
        agent.train_step()
    agent._remember(agent.env.sample(40, agent.generator).inputs)
    return agent


def test_strategies_change_the_units_of_the_task_at_hand_alone() -> None:
    """Whatever they do, what earlier tasks answer stays bit for bit."""
    for name, strategy in STRATEGIES.items():
        agent = at_the_second_task()
        subject = agent._subject(agent.circuit)
        before = answers(agent, 0)
        if "layer" in name:
            assert not strategy.possible(subject)  # with two tasks
            continue
        assert subject.task == 1 and strategy.possible(subject)
        own = answers(agent, 1)
        agent.restructured(strategy.apply(subject).change)
        assert torch.equal(answers(agent, 0), before), name
        shares = agent.circuit.structure()[0].shares
        assert shares == {"add-neuron": (6, 12), "remove-neuron": (6, 5)}.get(name, (6, 6))
        if name == "add-neuron":
            torch.testing.assert_close(answers(agent, 1), own, rtol=0, atol=1e-5)
        agent.train_step()


def test_units_are_bounded_for_each_task_from_the_beginning_on() -> None:
    agent = make(steps=30, policy="random", tasks=3, max_units=8)
    assert agent.circuit.structure() == (Layer(18, False, (6, 6, 6)),)
    assert agent.situation(agent.circuit.structure())[5] == 6 / 8, "how wide it is of what it may be"
    agent.train_step()
    STRATEGIES["add-neuron"].apply(agent._subject(agent.circuit))
    assert agent.circuit.structure()[0].shares == (8, 6, 6)
    assert make(steps=30, policy="random", tasks=3).bounds.max_units == 4 * 6
    with pytest.raises(ValueError, match=r"agent\.max_units: got 5; the circuit begins with 6"):
        make(steps=30, policy="random", tasks=3, max_units=5)


def test_units_that_are_lent_stay_and_the_first_task_grows_amid_the_others() -> None:
    agent = at_the_second_task()
    first = agent._subject(agent.circuit)._replace(
        task=0, inputs=next(iter(agent.env.sets("test").values())).sample(9, agent.generator).inputs
    )
    assert not STRATEGIES["remove-neuron"].possible(first)  # all are lent to the second
    own = [answers(agent, task) for task in range(2)]
    agent.restructured(STRATEGIES["add-neuron"].apply(first).change)
    assert agent.circuit.structure() == (Layer(18, False, (12, 6)),)
    for task in range(2):
        torch.testing.assert_close(answers(agent, task), own[task], rtol=0, atol=1e-5)
    agent.circuit.lend(1, 0, torch.arange(12) < 9, lent=False)
    assert not STRATEGIES["remove-neuron"].possible(first)
    agent.circuit.lend(1, 0, torch.arange(12) >= 9, lent=False)
    first = first._replace(ages=[agent.step - born for born in agent.born])
    second = answers(agent, 1)
    agent.restructured(STRATEGIES["remove-neuron"].apply(first).change)
    assert agent.circuit.structure() == (Layer(17, False, (11, 6)),)
    torch.testing.assert_close(answers(agent, 1), second, rtol=0, atol=1e-6)


def test_thresholds_move_what_is_lent_to_a_task() -> None:
    agent = at_the_second_task(rewired=0.5)
    counts = []
    for _ in range(6):
        STRATEGIES["adjust-thresholds"].apply(agent._subject(agent.circuit))
        counts.append(int(agent.circuit.lent(1)[0][:6].sum()))
    assert counts[0] == 3 and set(counts) <= {0, 3, 6} and len(set(counts)) > 1, counts


@pytest.mark.parametrize(
    "options", [{}, {"policy": "none"}, {"verdict": "reward"}], ids=["paired", "no policy", "reward"]
)
def test_it_resumes_bit_for_bit_whatever_has_come(options: dict[str, Any]) -> None:
    whole = make(steps=26, **TRIALS, **options)
    states = {}
    while whole.step < 26:
        whole.train_step()
        states[whole.step] = copy.deepcopy(whole.state_dict())
    for step in (3, 9, 10, 11, 13, 20, 22):
        part = make(steps=26, **TRIALS, **options)
        part.load_state_dict(copy.deepcopy(states[step]))
        assert same(part.state_dict(), states[step])
        while part.step < 26:
            part.train_step()
        assert same(part.state_dict(), states[26])


def test_without_a_policy_it_is_backprop_bit_for_bit() -> None:
    agents = [make(BackpropAgent, steps=25), make(SelfModifyingAgent, steps=25, policy="none")]
    for agent in agents:
        while agent.step < 25:
            agent.train_step()
    assert agents[0].circuit.structure() == agents[1].circuit.structure() == (Layer(18, False, (6, 6, 6)),)
    assert same(agents[0].circuit.state_dict(), agents[1].circuit.state_dict())


def test_a_trial_ends_undecided_when_a_task_comes() -> None:
    agent = make(steps=30, every=24, **TRIALS)
    while agent.step < 6:
        agent.train_step()
    assert agent.trial is not None or agent.tracker.tried
    tried = agent.tracker.tried
    agent.train_step()
    assert len(agent.circuit.routes) == 2 and agent.trial is None and agent.tracker.tried == tried


def test_a_copy_on_trial_knows_the_tasks_as_the_circuit_does() -> None:
    """Else it would forget their keys once it is kept, and give one that comes meanwhile the units of another."""
    torch.manual_seed(0)
    env = StreamEnv(envs=ENVS, tag_channels=True, pad=True, every=24, again=False)
    inner = {"type": "ntm", "controller": {"type": "lstm", "hidden_size": 6}, "memory_size": 5, "word_size": 3}
    circuit = RoutedCircuit(env.input_size, env.output_size, circuit=inner, tasks=2, novelty=0.99)
    agent = SelfModifyingAgent(env, circuit, **SETTINGS, **TRIALS, steps=30, policy="random")
    met = set()
    while agent.step < 12:
        agent.train_step()
        if agent.trial is not None:
            for own, copied in zip(agent.circuit.routes, agent.trial.circuit.routes, strict=True):
                assert torch.equal(own.sum, copied.sum) and torch.equal(own.count, copied.count)
            met.add(sum(int(route.count) > 0 for route in agent.circuit.routes))
    assert met == {1, 2}


def test_what_cannot_learn_with_tasks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"circuit.type: got routed.*EvolutionAgent cannot"):
        make(EvolutionAgent)
    with pytest.raises(ValueError, match=r"circuit.type: got routed.*NodePerturbationAgent cannot"):
        make(NodePerturbationAgent)
    with pytest.raises(ValueError, match=r"agent.retry_every: got 5; tasks of a routed circuit stay"):
        make(BackpropAgent, retry_every=5, target_error=0.0)
    with pytest.raises(ValueError, match=r"agent.plasticity: got some; tasks of a routed circuit keep their weights"):
        make(BackpropAgent, plasticity=["l2-init"])

    with pytest.raises(ValueError, match="circuit.type: got routed in 2 processes; allowed is one"):
        make(BackpropAgent).join(Processes(0, 2))


def test_the_command_line_trains_resumes_and_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "seed=1",
        "threads=1",
        "plots=off",
        "name=one",
        "env.every=64",
        "agent.save_every=4",
        "agent.evaluate_every=8",
    ]
    words += ["circuit.circuit.controller.hidden_size=6", "agent.evaluation_sequences=8"]
    assert main(["train", "memory-sequence", *words, "agent.steps=10"]) == 0
    assert main(["train", "--resume", "runs/one", "agent.steps=12"]) == 0
    assert main(["test", "runs/one"]) == 0
    circuit = papertape.load_circuit("runs/one/checkpoints/latest.pt")
    assert circuit.structure() == (Layer(18, False, (6, 6, 6)),)


def test_torchrun_and_populations_are_refused_by_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "memory-sequence", "plots=off", "agent.type=evolution"]) != 0
    said = capsys.readouterr().err
    assert "circuit.type: got routed" in said and "Traceback" not in said
    assert main(["train", "memory-sequence", "plots=off", "env.pad=false"]) != 0
    said = capsys.readouterr().err
    assert "envs.1: has output_size 5; the first has 4" in said and "Traceback" not in said
