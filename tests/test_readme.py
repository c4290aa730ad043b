"""The README's code does what it says; that all code of the documentation runs is tests/test_docs.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import papertape
from papertape.core.registry import import_modules, lookup
from papertape.main import main

README = (Path(papertape.__file__).parent / "README.md").read_text(encoding="utf-8")
LIBRARY, TRAINING, SEARCH, MEMORY, TASK = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(code: str, names: dict[str, object]) -> None:
    exec(compile(code, "README.md", "exec", dont_inherit=True), names)


def test_the_library_is_used_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    run(LIBRARY.split("trained = ")[0], names)
    trace = names["trace"]
    assert isinstance(trace, papertape.Trace)
    assert trace.read_weights.shape == (50, 16, 2, 64)
    assert trace.memory.shape == (50, 16, 64, 32)
    assert (tmp_path / "trace.png").stat().st_size > 10_000


def test_a_circuit_is_trained_as_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    run(TRAINING.replace("steps=2000", "steps=2"), {})
    assert "bits_wrong" in capsys.readouterr().out


def test_a_function_is_minimised_as_it_says() -> None:
    names: dict[str, Any] = {}
    run(SEARCH, names)
    found = names["found"]
    # How many exactly depends on how the processor rounds.
    assert found.value <= 1e-8 and 3800 < found.evaluations < 4800 and "below 1e-8, some 4,300" in SEARCH
    assert (found.point - 1).abs().max() < 1e-4


def test_a_memory_is_added_as_it_says(
    tmp_path: Path, outsiders: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "delta.py").write_text(MEMORY, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"^ +papertape (train .*delta-rule)$", README, re.MULTILINE)
    few = ["agent.steps=2", "agent.evaluation_sequences=2", "env.test_lengths=[]", "plots=off"]
    assert main([*command.split(), *few, "device=cpu", "threads=1"]) == 0, capsys.readouterr().err
    circuit: Any = papertape.load_circuit(next(tmp_path.glob("runs/*/checkpoints/latest.pt")))
    inputs = torch.rand(3, 2, circuit.input_size)
    _, _, trace = circuit(inputs, trace=True)
    hidden, state = torch.rand(2, circuit.hidden_size), circuit.accessor.initial_state(2)
    state = state._replace(memory=torch.rand_like(state.memory))
    with torch.no_grad():
        reads, after, _ = circuit.accessor(hidden, state)
        parts = circuit.accessor.interface.parts(circuit.accessor.interface(hidden))
    for row in range(2):
        key, query = (parts[name][row] / parts[name][row].norm() for name in ("key", "query"))
        change = parts["value"][row] - state.memory[row] @ key
        expected = state.memory[row] + torch.sigmoid(parts["gate"][row]) * torch.outer(change, key)
        torch.testing.assert_close(after.memory[row], expected)
        torch.testing.assert_close(reads[row, 0], expected @ query)
    assert trace.memory.shape == (3, 2, 16, 16)


def test_a_task_is_added_as_it_says(tmp_path: Path, outsiders: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reverse.py").write_text(TASK, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    import_modules(["reverse.py"])
    env = lookup("env", "reverse")(length=4)
    env.check()
    batch = env.sample(3, torch.Generator().manual_seed(0))
    assert torch.equal(batch.targets[4:], batch.inputs[:4].flip(0)) and batch.mask.sum() == 12
