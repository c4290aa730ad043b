"""The README's code does what it says."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

import papertape
from papertape.core.registry import entries, import_modules, lookup
from papertape.utils import options
from papertape.utils.factory import parse

README = (Path(papertape.__file__).parent / "README.md").read_text(encoding="utf-8")
LIBRARY, TRAINING, TASK = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


COMMANDS = re.findall(r"^ +(?:python|torchrun .*?) main\.py (?:train )?(.*?)(?: +#|$)", README, re.MULTILINE)


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


def test_a_task_is_added_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reverse.py").write_text(TASK, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    import_modules(["reverse"])
    env = lookup("env", "reverse")(length=4)
    env.check()
    batch = env.sample(3, torch.Generator().manual_seed(0))
    assert torch.equal(batch.targets[4:], batch.inputs[:4].flip(0)) and batch.mask.sum() == 12


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_name_what_there_is(line: str) -> None:
    words = [word for word in line.split() if not word.startswith("--")]
    if not words or words[0] in ("list", "runs", "show", "test", "mine.yaml", "latest", "agent.lrr=1e-3"):
        return
    values = options.load_file(words[0])
    assignments = [word for word in words[1:] if not word.startswith(("start=", "env.type=reverse"))]
    options.override(values, assignments)
    parse(values)


@pytest.mark.parametrize("word", re.findall(r"`agent\.type=([\w-]+)`", README))
def test_agents_are_those_that_there_are(word: str) -> None:
    assert word in entries("agent")
