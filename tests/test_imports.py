"""What comes from outside the package, by the command line: imported, trained, resumed, tested, loaded, or refused."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import papertape
from papertape.core import registry
from papertape.main import main
from papertape.utils import checkpoint

ROOT = Path(__file__).parents[1]
RUN: dict[str, Any] = {
    "imports": ["own_memory"],
    "device": "cpu",
    "plots": "off",
    "threads": 1,
    "env": {"type": "copy", "width": 2, "max_length": 2, "test_lengths": [3]},
    "circuit": {"type": "memory", "controller": {"type": "gru", "hidden_size": 4}, "accessor": {"type": "delta"}},
    "agent": {"type": "backprop", "steps": 4, "batch_size": 2, "evaluate_every": 2, "evaluation_sequences": 2},
}
SMALL = ["env.width=2", "env.max_length=2", "env.test_lengths=[3]", "circuit.controller.hidden_size=4"]
SMALL += ["agent.batch_size=2", "agent.steps=2", "agent.evaluation_sequences=2", "agent.target_error=null"]
SMALL += ["agent.retry_every=null", "agent.confirmation_sequences=null", "device=cpu", "plots=off", "threads=1"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a memory of one's own; what is imported from there is forgotten afterwards."""
    shutil.copy(ROOT / "examples" / "own_memory.py", tmp_path)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(RUN), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(registry, "_entries", {kind: {**names} for kind, names in registry._entries.items()})
    before = set(sys.modules)
    importlib.invalidate_caches()
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What the command line says, which ends with a status."""

    def run(*arguments: str, status: int = 0) -> str:
        found = main(arguments)
        said = "".join(capsys.readouterr())
        assert found == status, said
        return said

    return run


def runs(folder: Path) -> list[Path]:
    return sorted((folder / "runs").iterdir())


def test_a_memory_of_ones_own_is_trained_resumed_tested_and_loaded(folder: Path, say: Callable[..., str]) -> None:
    """Trained by a program that lies elsewhere, as an installed one does, and loaded by another."""
    (folder / "bin").mkdir()
    program = folder / "bin" / "program.py"
    program.write_text("import sys\nfrom papertape.main import main\n\nsys.exit(main())\n", encoding="utf-8")
    done = subprocess.run([sys.executable, program, "train", "mine.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (directory,) = runs(folder)
    assert yaml.safe_load((directory / "options.yaml").read_text())["imports"] == ["own_memory"]

    path = directory / "checkpoints" / "latest.pt"
    needed = r"its run has imported 'own_memory': import it first, or say imports=\['own_memory'\]"
    with pytest.raises(
        checkpoint.CheckpointError, match=rf"circuit\.accessor\.type: got 'delta'; allowed: dynamic, .*{needed}"
    ) as caught:
        papertape.load_circuit(path)
    assert "\n" not in str(caught.value)
    loaded: Any = papertape.load_circuit(path, imports=["own_memory"])
    assert type(loaded.accessor).__name__ == "DeltaAccessor"

    say("train", "--resume", "latest", "agent.steps=7")
    assert "goes on at step 4" in (directory / "log").read_text()
    say("test", "latest", "plots=files")
    assert {path.suffix for path in (directory / "test" / "plots").iterdir() if path.is_file()} == {".png", ".gif"}
    resumed = checkpoint.load(path)["agent"]
    directory.rename(folder / "resumed")
    say("train", "mine.yaml", "agent.steps=7")
    (unbroken,) = runs(folder)
    expected = checkpoint.load(unbroken / "checkpoints" / "latest.pt")["agent"]
    assert resumed["step"] == expected["step"] == 7
    assert any("accessor" in name for name in expected["circuit"])
    assert all(torch.equal(resumed["circuit"][name], weight) for name, weight in expected["circuit"].items())

    (folder / "own_memory.py").unlink()
    del sys.modules["own_memory"]
    for command in (["train", "--resume", "latest"], ["test", "latest"]):
        (line,) = say(*command, status=2).splitlines()
        assert line.startswith("papertape: imports: 'own_memory' cannot be imported: ModuleNotFoundError: ")


def test_modules_are_named_on_the_command_line(folder: Path, say: Callable[..., str]) -> None:
    assert "  delta " not in say("list")
    chosen = ["circuit.type=memory", "circuit.accessor.type=delta", "circuit.accessor.key_size=3"]
    said = say("train", "ntm-copy", *SMALL, *chosen, status=2)
    assert "papertape: circuit.accessor.type: got 'delta'; allowed: dynamic, " in said
    say("train", "ntm-copy", "--import", "own_memory", *SMALL, *chosen)
    (directory,) = runs(folder)
    saved = yaml.safe_load((directory / "options.yaml").read_text())
    assert saved["imports"] == ["own_memory"] and saved["circuit"]["accessor"]["key_size"] == 3
    say("train", "--resume", "latest", "agent.steps=3")
    listed = say("list", "--import", "own_memory")
    assert "\n  delta                   Fast weights written by the delta rule, one matrix for each head.\n" in listed
    shown = yaml.safe_load(say("show", "mine.yaml", "circuit.accessor.num_heads=2"))
    assert shown["circuit"]["accessor"] == {"type": "delta", "num_heads": 2, "key_size": 16, "value_size": 16}


def test_modules_are_listed_by_the_command_line(say: Callable[..., str]) -> None:
    assert "  delta " in say("list", "--import", "own_memory")


def test_without_its_module_a_name_is_unknown(folder: Path, say: Callable[..., str]) -> None:
    before = sorted(folder.iterdir())
    said = say("train", "mine.yaml", "imports=[]", status=2)
    assert said.startswith("papertape: circuit.accessor.type: got 'delta'; allowed: dynamic, ")
    assert said.count("\n") == 1
    assert sorted(folder.iterdir()) == before


MODULES = {
    "fails": ("1 / 0", "imports: 'fails' cannot be imported: ZeroDivisionError: division by zero"),
    "no_python": ("def", "imports: 'no_python' cannot be imported: SyntaxError: "),
    "leaves": ("import sys\nsys.exit(3)", "imports: 'leaves' cannot be imported: SystemExit: 3"),
    "twice": (
        "from papertape.circuits import NTM\n\n\n@papertape.register('circuit', 'ntm')\nclass Mine(NTM): ...",
        (
            "imports: 'twice' cannot be imported: ValueError: circuit 'ntm': is taken by papertape.circuits.ntm.NTM; "
            "twice.Mine needs another"
        ),
    ),
    "foreign": (
        "@papertape.register('accessor', 'foreign')\nclass Foreign: ...",
        (
            "imports: 'foreign' cannot be imported: TypeError: accessor 'foreign': foreign.Foreign is no Accessor; "
            "expected a class that inherits from it"
        ),
    ),
    "half": (
        "@papertape.register('env', 'half')\nclass Half(papertape.Env):\n    def setup(self):\n        pass",
        "imports: 'half' cannot be imported: TypeError: env 'half': half.Half lacks sample",
    ),
    "kind": (
        "papertape.register('memory', 'mine', dict)",
        "imports: 'kind' cannot be imported: ValueError: kind: got 'memory'; allowed: env, circuit, ",
    ),
}


@pytest.mark.parametrize("name", [*MODULES, "is_not_there"])
def test_modules_that_cannot_be_imported(name: str, folder: Path, say: Callable[..., str]) -> None:
    code, message = MODULES.get(
        name, ("", "imports: 'is_not_there' cannot be imported: ModuleNotFoundError: No module named 'is_not_there'")
    )
    if code:
        (folder / f"{name}.py").write_text(f"import papertape\n\n\n{code}\n", encoding="utf-8")
    before = sorted(folder.iterdir())
    for command in (["train", "mine.yaml", "--import", name], ["list", "--import", name]):
        (line,) = say(*command, status=2).splitlines()
        assert line.startswith(f"papertape: {message}"), line
    assert sorted(folder.iterdir()) == before
