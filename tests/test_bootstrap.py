"""The set-up script, with its commands recorded instead of run."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
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
        monkeypatch.setattr(subprocess, "call", self._call)
        self.module = self._load()

    def _load(self) -> ModuleType:
        spec = importlib.util.spec_from_file_location("bootstrap", self.folder / "bootstrap.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.watch = lambda command, environment, *_: self._call(command, env=environment)  # type: ignore[attr-defined]
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
        words = ("venv", "pip", "fetch", "ruff", "mypy", "pytest")
        kinds = [next(word for word in words if word in command) for command in self.commands]
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
    assert setup.names() == ["venv", "pip", "fetch"]
    assert setup.main() == 0
    assert setup.names() == []


def test_training_takes_what_it_needs_and_tests_add_the_rest(setup: Setup) -> None:
    setup.main()
    assert setup.commands[1][-1] == ".[gym,visdom]"
    setup.names()
    setup.main("test")
    assert setup.commands[0][-1] == ".[dev,gym,visdom]"
    assert setup.names() == ["pip", "ruff", "ruff", "mypy", "pytest"]
    setup.main()
    assert setup.names() == []
    # What is there stays when something changes.
    (setup.folder / "constraints.txt").write_text("numpy<3\n")
    setup.main()
    assert setup.commands[0][-1] == ".[dev,gym,visdom]"


def test_scripts_of_the_page_can_be_done_without(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    setup.fails = "fetch"
    assert setup.main() == 0
    assert "stays empty until" in capsys.readouterr().out
    assert setup.main() == 0


@pytest.mark.parametrize("place", [".", "..", "elsewhere"])
def test_the_command_at_the_end_works_as_it_stands_in_any_shell(
    setup: Setup, place: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = setup.folder / place
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    setup.main()
    program = setup.folder / ".venv" / "bin" / "papertape"
    program.write_text("#!/bin/sh\necho called with $@\n")
    program.chmod(0o755)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("ready: ")
    for shell in filter(shutil.which, ("sh", "bash", "dash", "fish", "zsh", "csh")):
        done = subprocess.run([shell, "-c", last.removeprefix("ready: ")], capture_output=True, text=True, check=True)
        assert done.stdout == "called with train ntm-copy\n"


def test_it_is_never_silent_for_long(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    """What a command takes its time over is said; all that it said is in a file, the last of it in the error."""
    setup.make_environment()
    module = setup._load()
    watch = importlib.util.spec_from_file_location("fresh", setup.folder / "bootstrap.py")
    assert watch is not None and watch.loader is not None
    module = importlib.util.module_from_spec(watch)
    watch.loader.exec_module(module)
    module.SAY_SECONDS = 0.1
    code = "import sys, time; print('Collecting one\\nWARNING', flush=True); time.sleep(1); print('two'); sys.exit(3)"
    with pytest.raises(module.SetupError, match=r"(?s)counting: failed .exit status 3.*\| Collecting one\n.*\| two\n"):
        module.run("counting", sys.executable, "-c", code)
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith(" s  counting")
    assert sum(line.endswith(" s    Collecting one") for line in said) >= 3
    assert module.LOG.read_text().splitlines()[1:] == ["Collecting one", "WARNING", "two"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_what_it_runs(tmp_path: Path, number: signal.Signals) -> None:
    shutil.copy(ROOT / "bootstrap.py", tmp_path)
    (tmp_path / ".venv").mkdir()
    code = (
        "import bootstrap, os, sys\n"
        "bootstrap.set_up = lambda extras: bootstrap.run('sleeping', 'sh', '-c', 'echo $$ > child; sleep 60; :')\n"
        "sys.exit(bootstrap.main())"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not (tmp_path / "child").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said == "bootstrap.py: interrupted; the next call goes on\n"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "child").read_text()), 0)


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
    assert setup.names() == ["venv", "pip", "fetch"]
    assert not leftover.exists()


def test_an_environment_that_no_longer_works_is_made_anew(setup: Setup) -> None:
    setup.main()
    setup.names()
    setup.module.PYTHON.unlink()
    assert setup.main() == 0
    assert setup.names() == ["venv", "pip", "fetch"]


def test_a_moved_environment_is_made_anew(setup: Setup, tmp_path: Path) -> None:
    setup.main()
    setup.names()
    setup.folder = setup.folder.rename(tmp_path / "moved")
    setup.module = setup._load()
    assert setup.main() == 0
    assert setup.names() == ["venv", "pip", "fetch"]


def test_an_environment_made_by_hand_is_used(setup: Setup) -> None:
    setup.make_environment()
    assert setup.main() == 0
    assert setup.names() == ["pip", "fetch"]


def test_something_else_called_venv_is_never_deleted(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    kept = setup.module.ENVIRONMENT / "kept"
    kept.parent.mkdir()
    kept.touch()
    assert setup.main() == 1
    assert "move it away" in capsys.readouterr().err
    assert kept.exists()


@pytest.mark.parametrize("content", [None, "unfinished"])
def test_a_link_that_does_not_serve_is_removed_and_not_what_it_points_to(
    setup: Setup, tmp_path: Path, content: str | None
) -> None:
    setup.module.ENVIRONMENT.symlink_to(tmp_path / "elsewhere")
    if content:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "bootstrap").write_text(content)
    assert setup.main() == 0
    assert setup.names() == ["venv", "pip", "fetch"]
    assert not setup.module.ENVIRONMENT.is_symlink()
    assert [path.name for path in tmp_path.glob("elsewhere/*")] == ["bootstrap"] * bool(content)


def test_a_disk_that_cannot_be_written_costs_one_line(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read_only(path: Path) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", read_only)
    assert setup.main() == 1
    where = setup.module.ENVIRONMENT
    assert capsys.readouterr().err == f"bootstrap.py: [Errno 30] Read-only file system: '{where}'\n"


@pytest.mark.parametrize(
    ("said", "no_index", "reason"),
    [
        (["after connection broken by 'NewConnectionError'", "ERROR: No matching distribution found for x"], "0", "is"),
        (["ERROR: ResolutionImpossible: for help visit"], "1", "PIP_NO_INDEX is set"),
        (["after connection broken by 'NewConnectionError'", "error: command 'g++' failed"], "1", None),
        (["ERROR: No matching distribution found for x"], "0", None),
    ],
)
def test_no_package_index_is_said_in_one_line(
    setup: Setup, said: list[str], no_index: str, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", no_index)
    setup.make_environment()
    setup.module.watch = lambda command, environment, lines, *_: lines.extend(said) or 1  # type: ignore[attr-defined]
    with pytest.raises(setup.module.SetupError) as error:
        setup.module.run("installing", "pip")
    assert str(error.value).startswith(
        "installing: failed" if reason is None else f"installing: no package index could be reached ({reason}"
    )
    assert ("\n" in str(error.value)) == (reason is None)


def test_constraints_reach_every_pip_as_one_word_beside_the_users(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CONSTRAINT", "mine.txt")
    setup.main()
    ours = (setup.folder / "constraints.txt").as_uri()
    assert setup.environments[1]["PIP_CONSTRAINT"].split() == ["mine.txt", ours]
    assert setup.environments[1]["PIP_BUILD_CONSTRAINT"].split() == [ours]
    assert "PATH" not in os.environ or setup.environments[1]["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize(
    ("missing", "commands"),
    [({"ensurepip"}, ["venv", "pip", "pip", "fetch"]), ({"venv"}, []), ({"ensurepip", "pip"}, [])],
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
    monkeypatch.setattr(signal, "pthread_sigmask", lambda how, numbers: None)
    monkeypatch.setattr(os, "execv", lambda file, arguments: handed.append([str(file), *arguments[1:]]))
    setup.main("train", "dnc-copy", "agent.lr=1e-3")
    assert handed == [[str(setup.module.PYTHON), str(setup.folder / "main.py"), "train", "dnc-copy", "agent.lr=1e-3"]]


@pytest.mark.parametrize("failing", [None, "ruff", "mypy", "pytest"])
def test_every_check_runs_and_counts(setup: Setup, failing: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    setup.main("test")
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
