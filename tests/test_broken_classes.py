"""Classes from outside that break the contract of their kind: one line at the start, by options and in Python."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import papertape
from papertape.agents import BackpropAgent
from papertape.core import registry
from papertape.core.options import ContractError
from papertape.envs import CopyEnv
from papertape.main import main

ROOT = Path(__file__).parents[1]
RUN: dict[str, Any] = {
    "imports": ["own_memory", "mine"],
    "device": "cpu",
    "plots": "off",
    "threads": 1,
    "env": {"type": "copy", "width": 2, "max_length": 2, "test_lengths": [3]},
    "circuit": {
        "type": "memory",
        "controller": {"type": "gru", "hidden_size": 4},
        "accessor": {"type": "fast-weights"},
    },
    "agent": {"type": "backprop", "steps": 2, "batch_size": 2, "evaluate_every": 2, "evaluation_sequences": 2},
}
EVOLUTION = {"type": "evolution", "generations": 2, "batch_size": 2, "evaluation_sequences": 2}
CHANGES: dict[str, dict[str, Any]] = {
    "accessor": {"circuit": {**RUN["circuit"], "accessor": {"type": "broken"}}},
    "controller": {"circuit": {**RUN["circuit"], "controller": {"type": "broken"}}},
    "circuit": {"circuit": {"type": "broken"}},
    "env": {"env": {"type": "broken"}},
    "world": {
        "env": {"type": "broken"},
        "circuit": {"type": "ntm", "memory_size": 4},
        "agent": {**EVOLUTION, "strategy": {"type": "openai-es", "population": 4}},
    },
    "strategy": {"agent": {**EVOLUTION, "strategy": {"type": "broken"}}},
    "fitness": {
        "agent": {**EVOLUTION, "strategy": {"type": "openai-es", "population": 4}, "fitness": {"type": "broken"}}
    },
    "curriculum": {"env": {**RUN["env"], "curriculum": {"type": "broken"}}},
    "optimiser": {"agent": {**RUN["agent"], "optimiser": {"type": "broken"}}},
    "plasticity": {"agent": {**RUN["agent"], "plasticity": "broken"}},
    "sink": {"plots": "broken"},
    "agent": {"agent": {"type": "broken"}},
}
"""What a run names for each kind."""
HEAD = """
from typing import NamedTuple

import own_memory
import papertape
import torch
from papertape.agents.optimisers import Optimiser
from papertape.agents.plasticity import PlasticityMethod
from papertape.core.agent import Agent
from papertape.core.world import Step
from papertape.envs.curriculum import Curriculum
from pydantic import Field
from torch import Tensor, nn
"""
CASES = yaml.safe_load((Path(__file__).parent / "broken_classes.yaml").read_text(encoding="utf-8"))
BROKEN = [(kind, what) for kind, cases in CASES["broken"].items() for what in cases]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outsiders: None) -> Path:
    """A folder in which modules of one's own lie."""
    shutil.copy(ROOT / "examples" / "own_memory.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, kind: str, code: str) -> None:
    (folder / "mine.py").write_text(f"{HEAD}{code}", encoding="utf-8")
    (folder / "run.yaml").write_text(yaml.safe_dump({**RUN, **CHANGES[kind]}), encoding="utf-8")


@pytest.mark.parametrize("kind", CASES["right"])
def test_a_class_that_keeps_its_contract_runs(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, kind, CASES["right"][kind])
    assert main(["train", "run.yaml"]) == 0, capsys.readouterr()


@pytest.mark.parametrize(("kind", "what"), BROKEN)
def test_one_line_says_what_is_wrong_before_a_file_is_written(
    kind: str, what: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case, right = CASES["broken"][kind][what], CASES["right"][kind]
    assert case["instead of"] in right
    write(folder, kind, right.replace(case["instead of"], case["is"]))
    before = sorted(folder.iterdir())
    assert main(["train", "run.yaml"]) == 2
    (line,) = "".join(capsys.readouterr()).splitlines()
    assert line.startswith(f"papertape: {case['says']}"), line
    assert sorted(folder.iterdir()) == before


def imported(folder: Path, kind: str, what: str) -> Any:
    case = CASES["broken"][kind][what]
    write(folder, kind, CASES["right"][kind].replace(case["instead of"], case["is"]))
    registry.import_modules(["own_memory", "mine"])
    return registry.lookup("env" if kind == "world" else kind, "broken")


def test_whoever_builds_parts_in_python_hears_the_same(folder: Path) -> None:
    cls = imported(folder, "accessor", "no gradient where promised")
    with pytest.raises(ContractError, match="^Broken.forward: words read: without a gradient; expected a gradient"):
        papertape.MemoryCircuit(2, 2, accessor=cls(4), controller={"type": "gru", "hidden_size": 4})
    with pytest.raises(ContractError, match="^Broken.forward: words read: without a gradient"):
        papertape.MemoryCircuit(2, 2, accessor="broken")
    with pytest.raises(ContractError, match="^Broken.forward: words read: without a gradient"):
        cls(4).check()


@pytest.mark.parametrize(
    ("kind", "what", "message"),
    [
        ("env", "batch first", "env: Broken.sample: inputs of "),
        ("circuit", "no grad", "circuit: Broken.step: outputs: without a gradient"),
        ("optimiser", "none", "optimiser: Broken.make: returns a int"),
    ],
)
def test_an_agent_tries_out_what_comes_from_outside(kind: str, what: str, message: str, folder: Path) -> None:
    cls = imported(folder, kind, what)
    env = cls() if kind == "env" else CopyEnv(width=1)
    circuit: Any = papertape.FeedForwardCircuit(env.input_size, env.output_size)
    if kind == "circuit":
        circuit = cls(env.input_size, env.output_size)
    with pytest.raises(ContractError, match=f"^{message}"):
        BackpropAgent(env, circuit, optimiser=cls() if kind == "optimiser" else "adam")


def test_trying_out_changes_nothing(folder: Path) -> None:
    write(folder, "accessor", CASES["right"]["accessor"])
    registry.import_modules(["own_memory", "mine"])
    torch.manual_seed(0)
    circuit = papertape.MemoryCircuit(
        2, 2, accessor="broken", controller={"type": "lstm", "dropout": 0.5, "num_layers": 2}
    )
    drawn, before = torch.rand(3), {name: weight.clone() for name, weight in circuit.state_dict().items()}
    torch.manual_seed(0)
    again = papertape.MemoryCircuit(
        2, 2, accessor="broken", controller={"type": "lstm", "dropout": 0.5, "num_layers": 2}
    )
    assert torch.equal(torch.rand(3), drawn) and circuit.training and circuit.accessor.training
    for part in (again, again.accessor, again.controller):
        part.check()
    assert all(torch.equal(weight, before[name]) for name, weight in again.state_dict().items())
    assert all(parameter.grad is None for parameter in again.parameters())
