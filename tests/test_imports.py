"""What comes from outside the package, by the command line: imported, trained, resumed, tested, loaded, or refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a memory of one's own; the program lies elsewhere, as an installed one does."""
    (tmp_path / "bin").mkdir()
    program = "import sys\nfrom papertape.main import main\n\nsys.exit(main())\n"
    (tmp_path / "bin" / "program.py").write_text(program, encoding="utf-8")
    here = tmp_path / "here"
    here.mkdir()
    shutil.copy(ROOT / "examples" / "own_memory.py", here)
    (here / "mine.yaml").write_text(yaml.safe_dump(RUN), encoding="utf-8")
    return here


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def papertape(folder: Path, *arguments: str, status: int = 0) -> str:
    """What the command line says, which ends with that status."""
    done = python(folder, str(folder.parent / "bin" / "program.py"), *arguments)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def runs(folder: Path) -> list[Path]:
    return sorted((folder / "runs").iterdir())


def load(folder: Path, path: Path, imports: str) -> subprocess.CompletedProcess[str]:
    code = f"import papertape; print(papertape.load_circuit({str(path)!r}, imports={imports}).accessor)"
    return python(folder.parent, "-c", f"import sys; sys.path.append({str(folder)!r}); {code}")


def test_a_memory_of_ones_own_is_trained_resumed_tested_and_loaded(folder: Path) -> None:
    papertape(folder, "train", "mine.yaml")
    (directory,) = runs(folder)
    assert yaml.safe_load((directory / "options.yaml").read_text())["imports"] == ["own_memory"]
    papertape(folder, "train", "--resume", "latest", "agent.steps=7")
    assert "goes on at step 4" in (directory / "log").read_text()
    papertape(folder, "test", "latest", "plots=files")
    assert {path.suffix for path in (directory / "test" / "plots").iterdir() if path.is_file()} == {".png", ".gif"}
    resumed = checkpoint.load(directory / "checkpoints" / "latest.pt")["agent"]
    unbroken_run = directory.rename(folder / "resumed")
    papertape(folder, "train", "mine.yaml", "agent.steps=7")
    (unbroken,) = runs(folder)
    expected = checkpoint.load(unbroken / "checkpoints" / "latest.pt")["agent"]
    assert resumed["step"] == expected["step"] == 7
    assert any("accessor" in name for name in expected["circuit"])
    assert all(torch.equal(resumed["circuit"][name], weight) for name, weight in expected["circuit"].items())

    path = unbroken_run / "checkpoints" / "latest.pt"
    loaded = load(folder, path, "['own_memory']")
    assert loaded.returncode == 0 and "DeltaAccessor" in loaded.stdout, loaded.stderr
    refused = load(folder, path, "()")
    assert refused.returncode != 0
    last = refused.stderr.splitlines()[-1]
    assert "CheckpointError" in last and "circuit.accessor.type: got 'delta'; allowed: dynamic, " in last
    assert "its run has imported 'own_memory': import it first, or say imports=['own_memory']" in last

    (folder / "own_memory.py").unlink()
    for command in (["train", "--resume", "latest"], ["test", "latest"]):
        (line,) = papertape(folder, *command, status=2).splitlines()
        assert line.startswith("papertape: imports: 'own_memory' cannot be imported: ModuleNotFoundError: ")


def test_modules_are_named_on_the_command_line(folder: Path) -> None:
    chosen = ["circuit.type=memory", "circuit.accessor.type=delta", "circuit.accessor.key_size=3"]
    papertape(folder, "train", "ntm-copy", "--import", "own_memory", *SMALL, *chosen)
    (directory,) = runs(folder)
    saved = yaml.safe_load((directory / "options.yaml").read_text())
    assert saved["imports"] == ["own_memory"] and saved["circuit"]["accessor"]["key_size"] == 3
    papertape(folder, "train", "--resume", "latest", "agent.steps=3")
    listed = papertape(folder, "list", "--import", "own_memory")
    assert "\n  delta                   Fast weights written by the delta rule, one matrix for each head.\n" in listed
    assert "  delta " not in papertape(folder, "list")
    shown = yaml.safe_load(papertape(folder, "show", "mine.yaml", "circuit.accessor.num_heads=2"))
    assert shown["circuit"]["accessor"] == {"type": "delta", "num_heads": 2, "key_size": 16, "value_size": 16}


def test_without_its_module_a_name_is_unknown(folder: Path) -> None:
    before = sorted(folder.iterdir())
    said = papertape(folder, "train", "mine.yaml", "imports=[]", status=2)
    assert said.startswith("papertape: circuit.accessor.type: got 'delta'; allowed: dynamic, ") and said.count("\n") == 1
    assert sorted(folder.iterdir()) == before


MODULES = {
    "fails": ("1 / 0", "imports: 'fails' cannot be imported: ZeroDivisionError: division by zero"),
    "no_python": ("def", "imports: 'no_python' cannot be imported: SyntaxError: "),
    "leaves": ("import sys\nsys.exit(3)", "imports: 'leaves' cannot be imported: SystemExit: 3"),
    "twice": (
        "from papertape.circuits import NTM\n\n\n@papertape.register('circuit', 'ntm')\nclass Mine(NTM): ...",
        "imports: 'twice' cannot be imported: ValueError: circuit 'ntm': is taken by papertape.circuits.ntm.NTM; "
        "twice.Mine needs another",
    ),
    "foreign": (
        "@papertape.register('accessor', 'foreign')\nclass Foreign: ...",
        "imports: 'foreign' cannot be imported: TypeError: accessor 'foreign': foreign.Foreign is no Accessor; "
        "expected a class that inherits from it",
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
def test_modules_that_cannot_be_imported(name: str, folder: Path) -> None:
    code, message = MODULES.get(
        name, ("", "imports: 'is_not_there' cannot be imported: ModuleNotFoundError: No module named 'is_not_there'")
    )
    if code:
        (folder / f"{name}.py").write_text(f"import papertape\n\n\n{code}\n", encoding="utf-8")
    before = sorted(folder.iterdir())
    for command in (["train", "mine.yaml", "--import", name], ["list", "--import", name]):
        (line,) = papertape(folder, *command, status=2).splitlines()
        assert line.startswith(f"papertape: {message}"), line
    assert sorted(folder.iterdir()) == before


ENV = '''
@papertape.register("env", "broken")
class Broken(papertape.Env):
    def setup(self):
        self.input_size = self.output_size = 2

    def sample(self, batch_size, generator):
        return papertape.Batch(*(torch.zeros(3, batch_size, 2) for _ in range(2)), torch.ones(3, batch_size))
'''
ACCESSOR = '''
@papertape.register("accessor", "broken")
class Broken(own_memory.DeltaAccessor):
    trace_fields = own_memory.DeltaAccessor.trace_fields
'''
BROKEN = {
    "an env without sizes": (
        ENV.replace("self.input_size = self.output_size = 2", "pass"), ["env.type=broken"], "env"
    ),
    "an optimiser that is none": (
        '@papertape.register("optimiser", "broken")\nclass Broken(Optimiser):\n'
        "    def make(self, parameters, lr):\n        return 3",
        ["agent.optimiser=broken"],
        "agent: Broken.make: returns a int; expected a torch Optimizer",
    ),
    "a memory whose step lacks the heads": (
        f"{ACCESSOR}\n    def forward(self, hidden, state):\n        return super().forward(hidden, state)[:2]",
        ["circuit.accessor.type=broken"],
        "circuit",
    ),
    "a memory whose words have another shape": (
        f"{ACCESSOR}\n    @classmethod\n    def read_shape(cls, options):\n        return 1, 3",
        ["circuit.accessor.type=broken"],
        "circuit",
    ),
    "a memory that begins with no state": (
        f"{ACCESSOR}\n    def initial_state(self, batch_size):\n        return None",
        ["circuit.accessor.type=broken"],
        "circuit",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_classes_that_break_their_contract(name: str, folder: Path) -> None:
    code, assignments, message = BROKEN[name]
    head = "import own_memory\nimport papertape\nimport torch\nfrom papertape.agents.optimisers import Optimiser\n\n\n"
    (folder / "broken.py").write_text(f"{head}{code}\n", encoding="utf-8")
    before = sorted(folder.iterdir())
    lines = papertape(folder, "train", "mine.yaml", "--import", "broken", *assignments, status=2).splitlines()
    assert lines[-1].startswith(f"papertape: {message}"), lines
    assert sum("left out" not in line for line in lines) == 1, lines
    assert sorted(folder.iterdir()) == before
