"""The benchmark of plasticity, on made-up images."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from papertape.envs import images

FILE = Path(__file__).parents[2] / "benchmarks" / "plasticity.py"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("plasticity_benchmark", FILE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    labels = torch.arange(60) % 10
    drawn = torch.zeros(60, 28, 28, dtype=torch.uint8)
    for index, label in enumerate(labels.tolist()):
        drawn[index, 2 * label : 2 * label + 2] = 255
    monkeypatch.setattr(images, "load", lambda name: ((drawn, labels), (drawn, labels)))
    monkeypatch.setattr(module, "IMAGES", 320)
    return module


def test_tasks_are_learned_and_counted_before_they_are(benchmark: ModuleType) -> None:
    run = benchmark.permuted("l2-init+{type: redo, every: 9}", seed=1, tasks=3)
    assert (run["methods"], run["seed"], len(run["accuracy"])) == ("l2-init+{type: redo, every: 9}", 1, 3)
    assert all(20 < accuracy < 95 for accuracy in run["accuracy"]), "at first guessed, then known"
    assert 0 <= run["dead"] <= 100


def test_what_was_run_is_in_the_table_and_not_run_again(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = []

    def permuted(words: str, seed: int) -> dict[str, object]:
        runs.append((words, seed))
        accuracy = [50.0] * 90 + [80.0 + seed] * 10
        return {"methods": words, "seed": seed, "accuracy": accuracy, "dead": 12.5, "seconds": 1}

    monkeypatch.setattr(benchmark, "permuted", permuted)
    file = str(tmp_path / "runs.jsonl")
    for seeds in (["1"], ["1", "3"]):
        monkeypatch.setattr(
            sys, "argv", ["plasticity.py", "--methods", "none", "redo", "--to", file, "--seeds", *seeds]
        )
        assert benchmark.main() == 0
    assert runs == [("none", 1), ("redo", 1), ("none", 3), ("redo", 3)]
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["plasticity.py", "--table", file])
    assert benchmark.main() == 0
    assert "| redo | 2 | 50.00 | 50.00 | 82.00 ± 1.41 | 81.00 | 12.5 % |" in capsys.readouterr().out
