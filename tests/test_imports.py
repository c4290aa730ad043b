"""What comes from outside the package, by the command line: imported, trained, resumed, tested, loaded, or refused."""

from __future__ import annotations

import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import papertape
from papertape.main import main
from papertape.utils import checkpoint, factory

ROOT = Path(__file__).parents[1]
RUN: dict[str, Any] = {
    "imports": ["own_memory"],
    "device": "cpu",
    "plots": "off",
    "threads": 1,
    "env": {"type": "copy", "width": 2, "max_length": 2, "test_lengths": [3]},
    "circuit": {
        "type": "memory",
        "controller": {"type": "gru", "hidden_size": 4},
        "accessor": {"type": "fast-weights"},
    },
    "agent": {"type": "backprop", "steps": 4, "batch_size": 2, "evaluate_every": 2, "evaluation_sequences": 2},
}
TINY = [f"circuit.accessor.{size}=2" for size in ("num_heads", "key_size", "value_size")]
SMALL = ["env.width=2", "env.max_length=2", "env.test_lengths=[3]", "circuit.controller.hidden_size=4"]
SMALL += ["agent.batch_size=2", "agent.steps=2", "agent.evaluation_sequences=2", "agent.target_error=null"]
SMALL += ["agent.retry_every=null", "agent.confirmation_sequences=null", "device=cpu", "plots=off", "threads=1"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outsiders: None) -> Path:
    """A folder with a memory of one's own."""
    for file in ("examples/own_memory.py", "tests/outside.py"):
        shutil.copy(ROOT / file, tmp_path)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(RUN), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


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
    done = subprocess.run([sys.executable, program, "train", "mine.yaml", *TINY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (directory,) = runs(folder)
    assert yaml.safe_load((directory / "options.yaml").read_text())["imports"] == ["own_memory"]

    path = directory / "checkpoints" / "latest.pt"
    needed = r"its run has imported 'own_memory'; imports= names what to import instead"
    with pytest.raises(
        checkpoint.CheckpointError,
        match=rf"circuit\.accessor\.type: got 'fast-weights'; allowed: attention, .*{needed}",
    ) as caught:
        papertape.load_circuit(path, imports=[])
    assert "\n" not in str(caught.value) and "own_memory" not in sys.modules
    loaded: Any = papertape.load_circuit(path)
    assert type(loaded.accessor).__name__ == "DeltaAccessor"

    say("train", "--resume", "latest", "agent.steps=7")
    assert "goes on at step 4" in (directory / "log").read_text()
    say("test", "latest", "plots=files")
    assert {path.suffix for path in (directory / "test" / "plots").iterdir() if path.is_file()} == {".png", ".gif"}
    resumed = checkpoint.load(path)["agent"]
    directory.rename(folder / "resumed")
    say("train", "mine.yaml", *TINY, "agent.steps=7")
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


COUNTS = """
from own_controller import LeakyController
from papertape.core.registry import register

@register("controller", "counting")
class Counting(LeakyController):
    def setup(self):
        super().setup()
        self.calls = 0

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]

    def forward(self, x, state):
        self.calls += self.training
        return super().forward(x, state)
"""


def test_what_a_part_keeps_beside_tensors_goes_with_it(folder: Path, say: Callable[..., str]) -> None:
    """torch saves it by get_extra_state: each command that reads a checkpoint takes it as it is."""
    shutil.copy(ROOT / "examples/own_controller.py", folder)
    (folder / "counts.py").write_text(COUNTS, encoding="utf-8")
    chosen = ["circuit.controller={type: counting, hidden_size: 3}", *TINY, "name=counted"]
    say("train", "mine.yaml", "--import", "counts", *chosen)
    say("train", "--resume", "counted", "agent.steps=6")
    loaded: Any = papertape.load_circuit(folder / "runs/counted/checkpoints/latest.pt")
    assert loaded.controller.calls > 6
    say("test", "counted")
    assert "length 4" in say("compare", "counted", "--test-option", "env.test_lengths=[4]")
    say("train", "mine.yaml", "--import", "counts", *chosen[:-1], "name=next", "start=counted")


def test_modules_are_named_on_the_command_line(folder: Path, say: Callable[..., str]) -> None:
    assert "  fast-weights " not in say("list")
    chosen = ["circuit.type=memory", "circuit.accessor.type=fast-weights", "circuit.accessor.key_size=3"]
    said = say("train", "ntm-copy", *SMALL, *chosen, status=2)
    assert "papertape: circuit.accessor.type: got 'fast-weights'; allowed: attention, " in said
    say("train", "ntm-copy", "--import", "own_memory", *SMALL, *chosen)
    (directory,) = runs(folder)
    saved = yaml.safe_load((directory / "options.yaml").read_text())
    assert saved["imports"] == ["own_memory"] and saved["circuit"]["accessor"]["key_size"] == 3
    say("train", "--resume", "latest", "agent.steps=3")
    listed = say("list", "--import", "own_memory")
    assert re.search(r"\n  fast-weights +Fast weights written by the delta rule, one matrix for each head\.\n", listed)
    shown = yaml.safe_load(say("show", "mine.yaml", "circuit.accessor.num_heads=2"))
    assert shown["circuit"]["accessor"] == {"type": "fast-weights", "num_heads": 2, "key_size": 16, "value_size": 16}


def test_modules_are_listed_by_the_command_line(say: Callable[..., str]) -> None:
    assert "  fast-weights " in say("list", "--import", "own_memory")


def test_without_its_module_a_name_is_unknown(folder: Path, say: Callable[..., str]) -> None:
    before = sorted(folder.iterdir())
    said = say("train", "mine.yaml", "imports=[]", status=2)
    assert said.startswith("papertape: circuit.accessor.type: got 'fast-weights'; allowed: attention, ")
    assert said.count("\n") == 1
    assert sorted(folder.iterdir()) == before


LEARNS = {"type": "backprop", "steps": 6, "batch_size": 2, "evaluate_every": 2, "save_every": 2, "log_every": 1}
LEARNS |= {"evaluation_sequences": 2}
EVOLVES = {**LEARNS, "type": "evolution", "generations": 6, "strategy": {"type": "snes", "population": 6}}
del EVOLVES["steps"]
COPY = {"type": "copy", "width": 2, "max_length": 2, "test_lengths": []}
NTM = {"type": "ntm", "controller": {"type": "gru", "hidden_size": 4}, "memory_size": 4, "word_size": 3}
DELTA = {"type": "memory", "controller": {"type": "gru", "hidden_size": 4}, "accessor": "fast-weights"}
LEAKY = {**NTM, "controller": {"type": "fading", "hidden_size": 4}}
ONE_PLUS_LAMBDA = {"type": "one-plus-lambda", "population": 6}
MIXED = {**EVOLVES, "type": "mixed", "strategy": {"type": "trust", "population": 6}}
OUTSIDE: dict[str, tuple[dict[str, Any], str]] = {  # what a run has of it, and its name misspelt
    "optimiser": ({"agent": {**LEARNS, "optimiser": "sign"}}, "agent.optimiser.type=sgin"),
    "curriculum": ({"env": {**COPY, "curriculum": "halves"}}, "env.curriculum.type=havles"),
    "circuit": ({"circuit": {"type": "echo", "hidden_size": 3}}, "circuit.type=ecko"),
    "controller": ({"circuit": LEAKY}, "circuit.controller.type=fadding"),
    "agent": ({"agent": {**LEARNS, "type": "patient", "patience": 3.0}}, "agent.type=patent"),
    "task": ({"env": {"type": "n-back", "length": 5, "test_lengths": []}}, "env.type=n_back"),
    "world": ({"env": {"type": "lights"}, "agent": EVOLVES}, "env.type=light"),
    "evolved": ({"circuit": DELTA, "agent": EVOLVES}, "circuit.accessor.type=fast-weigths"),
    "mixed": ({"circuit": DELTA, "agent": MIXED}, "circuit.accessor.type=fast-weight"),
    "fitness": ({"agent": {**EVOLVES, "fitness": {"type": "streak", "power": 2.0}}}, "agent.fitness.type=steak"),
    "strategy": ({"agent": {**EVOLVES, "strategy": ONE_PLUS_LAMBDA}}, "agent.strategy.type=one-plus-lambd"),
}
NAMES = {"curriculum": "halves", "circuit": "echo", "task": "n-back", "world": "lights", "optimiser": "sign"}
NAMES |= {
    "agent": "patient",
    "evolved": "fast-weights",
    "mixed": "fast-weights",
    "fitness": "streak",
    "controller": "fading",
}
NAMES |= {"strategy": "one-plus-lambda"}
FILES = [*(f"{ROOT}/examples/own_{name}.py" for name in ("memory", "controller", "task", "fitness", "strategy"))]
FILES += ["outside"]


@pytest.mark.parametrize("kind", OUTSIDE)
def test_every_kind_from_outside_is_like_ours(kind: str, folder: Path, say: Callable[..., str]) -> None:
    """Listed, shown, refused where misspelt, trained, tested, loaded, and resumed as if it had not been stopped."""
    blocks, misspelt = OUTSIDE[kind]
    values = {**RUN, "imports": FILES, "env": COPY, "circuit": NTM, "agent": LEARNS, **blocks}
    (folder / "mine.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    steps = "agent.steps" if "steps" in values["agent"] else "agent.generations"
    assert f"\n  {NAMES[kind]} " in say("list", *(f"--import={file}" for file in FILES))
    shown = yaml.safe_load(say("show", "mine.yaml"))
    assert shown["imports"] == FILES and NAMES[kind] in yaml.safe_dump(shown)
    option, _, value = misspelt.partition("=")
    said = say("train", "mine.yaml", misspelt, status=2)
    assert f"papertape: {option}: got {value!r}; did you mean {NAMES[kind]!r}? " in said

    say("train", "mine.yaml")
    (unbroken,) = runs(folder)
    unbroken.rename(folder / "unbroken")
    say("train", "mine.yaml", f"{steps}=3")
    say("train", "--resume", "latest", f"{steps}=6")
    (resumed,) = runs(folder)
    one, other = (
        checkpoint.load(path / "checkpoints" / "latest.pt")["agent"] for path in (folder / "unbroken", resumed)
    )
    assert one["step"] == other["step"] == 6
    assert one["circuit"] and all(torch.equal(weight, other["circuit"][key]) for key, weight in one["circuit"].items())
    say("test", "latest")
    loaded = papertape.load_circuit(resumed / "checkpoints" / "latest.pt")
    assert all(torch.equal(weight, other["circuit"][key]) for key, weight in loaded.state_dict().items())


def test_files_are_imported_by_their_path(folder: Path, say: Callable[..., str]) -> None:
    """From the folder of the options file that names them; the run knows them from everywhere."""
    (folder / "elsewhere").mkdir()
    (folder / "own_memory.py").rename(folder / "elsewhere" / "own_memory.py")
    path = str(folder / "elsewhere" / "own_memory.py")
    (folder / "elsewhere" / "mine.yaml").write_text(yaml.safe_dump({**RUN, "imports": ["own_memory.py"]}))
    say("train", "elsewhere/mine.yaml", "--import", "elsewhere/own_memory.py")
    (directory,) = runs(folder)
    assert yaml.safe_load((directory / "options.yaml").read_text())["imports"] == [path]
    say("train", "--resume", "latest", "agent.steps=5")
    code = f"import papertape; print(papertape.load_circuit({str(directory / 'checkpoints' / 'latest.pt')!r}).accessor)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True)
    assert loaded.stdout.startswith("DeltaAccessor("), loaded.stderr

    (folder / "elsewhere").rename(folder / "moved")
    sys.modules.pop("own_memory", None)
    said = say("train", "--resume", "latest", "agent.steps=6", status=2)
    assert "there is no such file; if it lies elsewhere now, give its path (--import on the command line" in said
    say("train", "--resume", "latest", "agent.steps=6", "--import", "moved/own_memory.py")
    say("test", "latest", "--import", "moved/own_memory.py", "plots=off")
    moved = str(folder / "moved" / "own_memory.py")
    assert yaml.safe_load((directory / "options.yaml").read_text())["imports"] == [moved]

    said = say("train", "mine.yaml", "--import", "nowhere/own_memory.py", status=2)
    assert said == "papertape: imports: 'own_memory' cannot be imported: there is no such file\n" or "nowhere" in said
    (folder / "json.py").write_text("VALUE = 3\n")
    said = say("list", "--import", "json.py", status=2)
    assert said.startswith("papertape: imports: 'json.py' cannot be imported: the name 'json' is that of ")
    assert say("train", "ntm-copy", "imports=[3]", status=2).startswith("papertape: imports.0: got 3; allowed: ")


def test_options_bring_their_imports_to_another_process(folder: Path) -> None:
    values = {**RUN, "imports": [str(folder / "own_memory.py")]}
    sent = pickle.dumps(factory.parse(values))
    code = "import pickle, sys; print(type(pickle.load(sys.stdin.buffer).circuit.accessor).component.__name__)"
    done = subprocess.run([sys.executable, "-c", code], input=sent, cwd="/", capture_output=True)
    assert done.stdout.decode() == "DeltaAccessor\n", done.stderr


def test_an_installed_package_needs_no_import(
    folder: Path, say: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = folder / "site"
    (site / "somebodys_memory").mkdir(parents=True)
    (folder / "own_memory.py").rename(site / "somebodys_memory" / "__init__.py")
    (site / "somebodys_memory-1.0.dist-info").mkdir()
    (site / "somebodys_memory-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys-memory\n")
    (site / "somebodys_memory-1.0.dist-info" / "entry_points.txt").write_text("[papertape]\ndelta = somebodys_memory\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    chosen = ["circuit.type=memory", *SMALL]
    said = say("train", "ntm-copy", *chosen, "circuit.accessor.type=fast-weight", status=2)
    assert "circuit.accessor.type: got 'fast-weight'; did you mean 'fast-weights'? " in said
    say("train", "ntm-copy", *chosen, "circuit.accessor.type=fast-weights")
    (directory,) = runs(folder)
    assert yaml.safe_load((directory / "options.yaml").read_text())["imports"] == []
    say("train", "--resume", "latest", "agent.steps=3")
    loaded: Any = papertape.load_circuit(directory / "checkpoints" / "latest.pt")
    assert type(loaded.accessor).__module__ == "somebodys_memory"


@pytest.mark.slow
def test_seeds_are_swept_by_other_processes(folder: Path) -> None:
    def swept(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, ROOT / "benchmarks" / "learning.py", *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    values = {name: value for name, value in RUN.items() if name not in ("plots", "imports")}
    (folder / "mine.yaml").write_text(yaml.safe_dump({**values, "imports": ["own_memory.py"]}))
    done = swept("mine.yaml", "--seeds", "2", "--processes", "2", "--sequences", "4", "--final", "env.test_lengths=[4]")
    assert "\n| all | 2 | median | 4 | " in done.stdout and "length 4" in done.stdout, done.stderr
    (folder / "mine.yaml").write_text(yaml.safe_dump(values))
    done = swept("mine.yaml", "--import", "own_memory", "--seeds", "1", "--sequences", "4")
    assert "\n| all | 1 | median | 4 | " in done.stdout, done.stderr
    done = swept("mine.yaml")
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(
        "papertape: circuit.accessor.type: got 'fast-weights'; allowed: "
    )


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


@pytest.mark.parametrize("preset", ["ntm-copy", "mqar"])  # mqar has an embedding
def test_options_are_shown_without_the_compiler(preset: str, tmp_path: Path) -> None:
    """torch._dynamo takes longer to load than all else together; a function of torch on the device meta may do so."""
    show = f"from papertape.main import main; main(['show', {preset!r}])"
    code = f"import sys; {show}\nprint('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_a_library_knows_all_that_the_command_line_does(tmp_path: Path) -> None:
    code = """
import papertape, papertape.agents, papertape.circuits, papertape.envs
from papertape.core.registry import entries
KINDS = ("env", "circuit", "controller", "accessor", "agent", "strategy", "fitness", "curriculum", "optimiser")
before = {kind: set(entries(kind)) for kind in KINDS}
import papertape.utils.factory
print([(kind, sorted(set(entries(kind)) - before[kind])) for kind in KINDS if set(entries(kind)) != before[kind]])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
