"""Watching changes nothing: however a run is logged, drawn, saved, resumed and shared out, its weights are the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from papertape.agents import BackpropAgent, EvolutionAgent
from papertape.main import main
from papertape.utils import checkpoint
from papertape.utils.run import read_metrics

ALL = ["agent.evaluation_sequences=4", "agent.evaluate_every=4", "device=cpu", "threads=1", "seed=3"]
COPY = [*ALL, "ntm-copy", "env.width=3", "env.max_length=6", "env.test_lengths=[8]", "circuit.controller.hidden_size=8"]
COPY += ["circuit.memory_size=8", "circuit.word_size=4", "env.curriculum={type: growing, threshold: 3.0}"]
EVOLUTION = ["agent.generations=24", "agent.shards=2"]
RUNS = {
    "backprop": [*COPY, "agent.steps=24", "agent.batch_size=4", "agent.warmup_steps=0", "agent.retry_every=20"],
    "evolution": [
        *(*COPY, "agent.type=evolution", *EVOLUTION, "agent.batch_size=4", "agent.target_error=0.0"),
        *("agent.strategy={type: deep-ga, population: 10, truncation: 4, elite_candidates: 3, elite_sequences: 4}",),
        *("agent.fitness={type: reward, prediction: sampled}", "agent.retry_every=20"),
    ],
    "world": [
        *("tmaze-single", *ALL, *EVOLUTION, "env.trials=3", "env.test_trials=[4]", "agent.batch_size=2"),
        *("agent.strategy={type: trust, population: 6}", "agent.generations=12"),
    ],
}
WAYS = {
    "closely": ["agent.log_every=1", "agent.save_every=1", "plots=files"],
    "every seventh step": ["agent.log_every=7", "agent.save_every=3", "plots=off"],
    "hardly": ["agent.log_every=1000", "agent.save_every=1000", "plots=off"],
    "as it comes": ["plots=off"],
}


def arguments(kind: str, *more: str) -> list[str]:
    """The command line, the preset first, each key once."""
    given = sorted([*RUNS[kind], *more], key=lambda word: "=" in word)
    return ["train", *{word.partition("=")[0]: word for word in given}.values()]


def found(folder: Path) -> dict[str, Any]:
    """All that a run has come to: its last state, its best weights, and what validation said."""
    (directory,) = (folder / "runs").iterdir()
    names = ("latest", "best")
    states = {name: checkpoint.load(directory / "checkpoints" / f"{name}.pt")["agent"] for name in names}
    rows = [
        {key: row[key] for key in row if not key.startswith("train/")}
        for row in read_metrics(directory / "metrics.jsonl")
    ]
    return {**states, "validation": [row for row in rows if len(row) > 1]}


def same(left: Any, right: Any) -> bool:
    """Bit-for-bit equality of nested states."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(same(*pair) for pair in zip(left, right, strict=True))
    return bool(left == right)


def train(folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> dict[str, Any]:
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert main(words) == 0
    return found(folder)


@pytest.mark.parametrize("kind", list(RUNS))
def test_six_ways_of_watching(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = {way: train(tmp_path / way, monkeypatch, arguments(kind, *more)) for way, more in WAYS.items()}

    # Stopped and taken up twice, the second time watched otherwise.
    agent_class = BackpropAgent if kind == "backprop" else EvolutionAgent
    train_step = agent_class.train_step

    def interrupted(agent: Any) -> dict[str, float]:
        values = train_step(agent)
        if agent.step in (3, 10):
            signal.raise_signal(signal.SIGINT)
        return values

    with monkeypatch.context() as patch:
        patch.setattr(agent_class, "train_step", interrupted)
        (tmp_path / "in parts").mkdir()
        monkeypatch.chdir(tmp_path / "in parts")
        assert main(arguments(kind, "plots=off")) == 0
        assert main(["train", "--resume", "latest"]) == 0
        assert main(["train", "--resume", "latest", "agent.log_every=2", "agent.save_every=1"]) == 0
    results["in parts"] = found(tmp_path / "in parts")

    whole = results.pop("as it comes")
    for way, result in results.items():
        assert same(result, whole), way
    if kind != "world":
        lessons = [
            row["validation/lesson/bits_wrong"] for row in whole["validation"] if "validation/lesson/loss" in row
        ]
        assert 1 <= sum(error < 3.0 for error in lessons) < len(lessons)  # what could have gone otherwise


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["evolution", "world"])
def test_two_processes(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = train(tmp_path / "alone", monkeypatch, arguments(kind, "plots=off"))
    (tmp_path / "shared").mkdir()
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "papertape.main",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = arguments(kind, "plots=off", "agent.log_every=1")
    subprocess.run([*command, *words], cwd=tmp_path / "shared", env=environment, check=True, timeout=240)
    assert same(found(tmp_path / "shared"), alone)
