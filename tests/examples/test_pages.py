"""The examples are what their table says: short pages outside the package, with commands that are there."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import papertape
from papertape.main import main

EXAMPLES = Path(__file__).parents[2] / "examples"
PAGES = sorted(path.name for path in EXAMPLES.glob("*.py"))
TABLE = (EXAMPLES / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"`papertape (train .*?)`", TABLE)
LINES = {
    "own_memory.py": 120,
    "own_controller.py": 50,
    "own_task.py": 40,
    "own_strategy.py": 60,
    "tensorboard_sink.py": 60,
}
"""What a page has less lines than; all others have less than 80."""
ROOMS = ["papertape", "papertape.agents", "papertape.envs", "papertape.utils.plots"]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_names_all_of_them() -> None:
    assert sorted(re.findall(r"^\| \[(\w+\.py)\]\(\1\) \|", TABLE, re.MULTILINE)) == PAGES


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_short_and_outside_the_package(name: str) -> None:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) < LINES.get(name, 80)
    tree = ast.parse(text)
    assert re.search(rf"examples/{Path(name).stem}\.(py|yaml)", ast.get_docstring(tree) or "")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("papertape"):
            assert node.module in ROOMS
            room: Any = importlib.import_module(node.module)
            assert {alias.name for alias in node.names} <= set(room.__all__)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "papertape":
            assert node.attr in papertape.__all__


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_those_that_there_are(
    command: str, outsiders: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "tensorboard" in command:
        pytest.importorskip("tensorboard")
    monkeypatch.chdir(EXAMPLES.parent)
    assert main(["show", *command.split()[1:]]) == 0, capsys.readouterr().err
    assert "imports:" in capsys.readouterr().out


def test_a_plain_loop_draws_what_it_has_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example: Any = load("plain_loop")
    untrained, trained = example.main(1, tmp_path / "a.png"), example.main(300, tmp_path / "b.png")
    assert trained < 0.8 * untrained
    assert (tmp_path / "b.png").stat().st_size > 10_000
    assert "write_weights [T, B, H, N]" in capsys.readouterr().out


def test_brackets_are_judged_by_their_embedding() -> None:
    example: Any = load("embedded_tokens")
    tokens, lengths, balanced = example.strings(200, torch.Generator().manual_seed(0))
    for row in range(200):
        depth, never_below = 0, True
        for token in tokens[: lengths[row], row].tolist():
            depth += 1 - 2 * token
            never_below = never_below and depth >= 0
        assert bool(balanced[row]) == (never_below and depth == 0)
    model = example.Balanced()
    altered = tokens.clone()
    altered[lengths[0] :, 0] = 1 - altered[lengths[0] :, 0]  # what lies after a string's end
    assert torch.equal(model(tokens, lengths), model(altered, lengths))
    assert example.main(60) > 0.8


def test_a_module_with_a_circuit_inside_goes_on_where_it_was() -> None:
    example: Any = load("inside_a_module")
    model = example.PictureMemory()
    pictures, which = example.shown(6, 3, torch.Generator().manual_seed(0))
    assert pictures.shape == (6, 3, 1, 3, 3) and which.shape == (6, 3)
    whole, _ = model(pictures)
    first, state = model(pictures[:2])
    torch.testing.assert_close(torch.cat([first, model(pictures[2:], state)[0]]), whole)
    assert {name.partition(".")[0] for name, _ in model.named_parameters()} == {"eye", "memory", "voice"}
    assert example.main(150) > 0.6


@pytest.mark.parametrize("make", [papertape.NTM, papertape.DNC, papertape.Tape], ids=["ntm", "dnc", "tape"])
def test_a_trace_is_read(make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example: Any = load("reading_a_trace")
    trace = example.main(make(6, 4, memory_size=12), tmp_path / "trace.png")
    said = capsys.readouterr().out
    assert all(f"{name} " in said for name in trace)
    assert (tmp_path / "trace.png").stat().st_size > 10_000
    weights = trace.write_weights if "write_weights" in trace else trace.read_weights
    slots = " ".join(f"{slot:2}" for slot in np.argmax(weights[:, 0, 0].numpy(), -1))
    assert slots in said


def test_a_trace_is_that_of_a_circuit_that_has_learned() -> None:
    example: Any = load("reading_a_trace")
    torch.manual_seed(1)
    before = papertape.NTM(8, 6, memory_size=32, word_size=10)
    after = example.learned(5)
    assert isinstance(after, papertape.NTM)
    assert any(not torch.equal(weight, after.state_dict()[name]) for name, weight in before.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PAGES if "__main__" in (EXAMPLES / name).read_text("utf-8")])
def test_a_page_runs_as_a_program(name: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, EXAMPLES / name], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout and not done.stderr, done.stderr
