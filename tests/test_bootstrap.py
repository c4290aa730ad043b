"""The set-up script, with its commands recorded instead of run."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


class Setup:
    """A copy of the script in a folder with a space; ``commands`` are those that it ran, with their environment."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        for name in ("bootstrap.py", "constraints.txt", "pyproject.toml", "setup.py"):
            shutil.copy(ROOT / name, folder)
        source = folder / "core" / "kernels" / "native.cpp"
        source.parent.mkdir(parents=True)
        source.write_text("int one() { return 1; }")
        self.commands: list[list[str]] = []
        self.environments: list[dict[str, str]] = []
        self.fails: str | None = None
        self.module = self._load()
        monkeypatch.setattr(subprocess, "call", self._call)

    def _load(self) -> ModuleType:
        spec = importlib.util.spec_from_file_location("bootstrap", self.folder / "bootstrap.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def _call(self, command: list[str], **options: object) -> int:
        if "import pip" in command:
            return 0 if self.module.PYTHON.is_file() else 1
        self.commands.append(command)
        environment = options.get("env", {})
        assert isinstance(environment, dict)
        self.environments.append(environment)
        if self.fails is not None and self.fails in command:
            return 1
        if "venv" in command:
            self.make_environment()
        return 0

    def make_environment(self) -> None:
        """What ``python -m venv`` leaves, as far as the script looks."""
        self.module.PYTHON.parent.mkdir(parents=True)
        self.module.PYTHON.touch()

    def names(self) -> list[str]:
        """The kinds of commands run since the last call."""
        kinds = [next(word for word in ("venv", "pip", "ruff", "mypy", "pytest") if word in c) for c in self.commands]
        self.commands.clear()
        return kinds

    def main(self, *arguments: str) -> int:
        """Run the script's command line."""
        sys.argv[1:] = arguments
        status = self.module.main()
        assert isinstance(status, int)
        return status


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    monkeypatch.setattr(sys, "argv", ["bootstrap.py"])
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    monkeypatch.delenv("PIP_BUILD_CONSTRAINT", raising=False)
    return Setup(tmp_path / "a b", monkeypatch)


def test_first_call_makes_and_installs_second_does_nothing(setup: Setup) -> None:
    assert setup.main() == 0
    assert setup.names() == ["venv", "pip"]
    assert setup.main() == 0
    assert setup.names() == []


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt", "setup.py", "core/kernels/native.cpp"])
def test_changed_input_installs_again_into_the_same_environment(setup: Setup, name: str) -> None:
    setup.main()
    setup.names()
    with (setup.folder / name).open("a") as file:
        file.write("\n")
    assert setup.main() == 0
    assert setup.names() == ["pip"]


@pytest.mark.parametrize("step", ["venv", "pip"])
def test_a_failed_call_is_reported_and_the_next_starts_over(
    setup: Setup, step: str, capsys: pytest.CaptureFixture[str]
) -> None:
    setup.fails = step
    assert setup.main() == 1
    assert "failed (exit status 1)" in capsys.readouterr().err
    setup.fails = None
    setup.names()
    leftover = setup.module.ENVIRONMENT / "leftover"
    leftover.touch()
    assert setup.main() == 0
    assert setup.names() == ["venv", "pip"]
    assert not leftover.exists()


def test_an_environment_that_no_longer_works_is_made_anew(setup: Setup) -> None:
    setup.main()
    setup.names()
    setup.module.PYTHON.unlink()
    assert setup.main() == 0
    assert setup.names() == ["venv", "pip"]


def test_a_moved_environment_is_made_anew(setup: Setup, tmp_path: Path) -> None:
    setup.main()
    setup.names()
    setup.folder = setup.folder.rename(tmp_path / "moved")
    setup.module = setup._load()
    assert setup.main() == 0
    assert setup.names() == ["venv", "pip"]


def test_an_environment_made_by_hand_is_used(setup: Setup) -> None:
    setup.make_environment()
    assert setup.main() == 0
    assert setup.names() == ["pip"]


def test_something_else_called_venv_is_never_deleted(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    kept = setup.module.ENVIRONMENT / "kept"
    kept.parent.mkdir()
    kept.touch()
    assert setup.main() == 1
    assert "move it away" in capsys.readouterr().err
    assert kept.exists()


def test_constraints_reach_every_pip_as_one_word_beside_the_users(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CONSTRAINT", "mine.txt")
    setup.main()
    ours = (setup.folder / "constraints.txt").as_uri()
    assert setup.environments[-1]["PIP_CONSTRAINT"].split() == ["mine.txt", ours]
    assert setup.environments[-1]["PIP_BUILD_CONSTRAINT"].split() == [ours]
    assert "PATH" not in os.environ or setup.environments[-1]["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize(
    ("missing", "commands"), [({"ensurepip"}, ["venv", "pip", "pip"]), ({"venv"}, []), ({"ensurepip", "pip"}, [])]
)
def test_python_without_parts_of_its_library(
    setup: Setup,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    missing: set[str],
    commands: list[str],
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else object())
    assert setup.main() == (0 if commands else 1)
    assert setup.names() == commands
    assert ("apt install python3-venv" in capsys.readouterr().err) == (not commands)


def test_old_python_is_refused(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    setup.module.OLDEST_PYTHON = (99, 1)
    assert setup.main("test") == 1
    assert "needs Python 99.1 or newer" in capsys.readouterr().err
    assert setup.names() == []


def test_train_hands_over_to_main(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    handed = []
    monkeypatch.setattr(os, "execv", lambda file, arguments: handed.append([str(file), *arguments[1:]]))
    setup.main("train", "dnc-copy", "agent.lr=1e-3")
    assert handed == [[str(setup.module.PYTHON), str(setup.folder / "main.py"), "train", "dnc-copy", "agent.lr=1e-3"]]


@pytest.mark.parametrize("failing", [None, "ruff", "mypy", "pytest"])
def test_every_check_runs_and_counts(setup: Setup, failing: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    setup.main()
    setup.names()
    setup.fails = failing
    assert setup.main("test", "-m", "slow") == (0 if failing is None else 1)
    assert setup.commands[-1][-3:] == ["pytest", "-m", "slow"]
    assert setup.names() == ["ruff", "ruff", "mypy", "pytest"]
    assert ("FAILED before the tests" in capsys.readouterr().out) == (failing in ("ruff", "mypy"))


@pytest.mark.parametrize(("argument", "status"), [("--help", 0), ("tset", 2)])
def test_anything_else_prints_the_usage(
    setup: Setup, argument: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert setup.main(argument) == status
    assert "python3 bootstrap.py train" in capsys.readouterr().out
    assert setup.names() == []
