"""Sweeps: what the words mean, that nothing is trained twice, and that nothing is lost."""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from papertape.core import install
from papertape.core.options import OptionsError
from papertape.core.world import WorldError
from papertape.envs.images import DataError
from papertape.main import main, parser
from papertape.utils import checkpoint, comparison, options
from papertape.utils.commands import sweep
from papertape.utils.commands.league import plan
from papertape.utils.run import find_directory, read_summary

SMALL = ["env.width=3", "env.max_length=3", "env.test_lengths=[4]", "circuit.controller.hidden_size=8"]
SMALL += ["circuit.memory_size=8", "circuit.word_size=4", "agent.batch_size=4", "agent.evaluation_sequences=4"]
SMALL += ["agent.evaluate_every=5", "agent.save_every=5", "agent.retry_every=null", "agent.target_error=null"]
SMALL += ["device=cpu", "agent.warmup_steps=0"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("seed=1..4", ["1", "2", "3", "4"]),
        ("seed=1..2,7", ["1", "2", "7"]),
        ("agent.lr=1e-3,3e-3", ["1e-3", "3e-3"]),
        ("circuit.type=ntm, dnc", ["ntm", "dnc"]),
        ("env.test_lengths=[5,6],[7]", ["[5,6]", "[7]"]),
        (
            "circuit.controller={type: lstm, hidden_size: 5},{type: gru}",
            ["{type: lstm, hidden_size: 5}", "{type: gru}"],
        ),
        ("name='a,b',c", ["'a,b'", "c"]),
        ("circuit.clip=-2", ["-2"]),
        ("agent.clip_value=", [""]),
    ],
)
def test_values(word: str, values: list[str]) -> None:
    assert sweep.values_of(word) == (word.partition("=")[0], values)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=3..1"], "seed: got 3..1"),
        (["seed=1..99999999999"], "seed: got 1..99999999999"),
        (["seed=1..200", "agent.batch_size=1..200"], "sweep: got 40,000 runs"),
        (["seed=1,1"], "seed: 1 is given twice"),
        (["seed=1..2", "seed=3"], "seed: given twice"),
        (["seed=1,,2"], "seed: got '1,,2'"),
        (["ntm-copy"], "sweep: got 1 run; allowed: up to 10,000, by an option that has several values"),
        (["ntm-copy", "env.test_lengths=[10,20]"], "sweep: got 1 run"),
        (["ntm-copy", "seed=1..2", "agent.lrr=3"], "agent.lrr: unknown option; did you mean 'agent.lr'?"),
        (["ntm-cpy", "seed=1..2"], "preset: got 'ntm-cpy'; did you mean 'ntm-copy'?"),
        (["seed=1..2", "--jobs", "0"], "--jobs: got 0"),
        (["seed=1..2", "--sequences", "0"], "--sequences: got 0"),
        (["seed=1..2", "--test-option", "x"], "--test-option: got 'x'; expected key=value"),
        (["seed=1..2", "--cluster-option", "x=1"], "--cluster-option: got 'x=1' without --cluster"),
        (["seed=1..2", "agent.clip_norm="], "agent.clip_norm: got nothing; allowed: a value, or null for none"),
        (["--resume", "nowhere"], "sweep: got 'nowhere'; allowed is the path of a sweep's folder"),
        (["seed=1..2", "name=a/b"], "name: got 'a/b'"),
        (["seed=1..2", "name=a", "name=b"], "name: given twice"),
        (["agent.lr=1e-3,0.001"], "sweep: agent.lr=1e-3 and agent.lr=0.001 are the same run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(
    folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"papertape: {message}")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("option", ["--jobs", "--sequences"])
def test_a_number_that_is_none_says_what_is_allowed(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["sweep", "seed=1..2", option, "auto"])
    assert f"{option}: got 'auto'; allowed is a whole number of at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["sweep", "seed=1..2"], ["league", "recall"]], ids=lambda words: words[0])
def test_within_torchrun_it_is_refused(
    folder: Path, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every run would wait for processes of its own."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(words) == 2
    assert capsys.readouterr().err.startswith(f"papertape: {words[0]}: got 2 processes of torchrun")
    assert list(folder.iterdir()) == []


def test_submitit_that_is_missing(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main(["sweep", "seed=1..2", "--cluster", "slurm"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line.startswith("papertape: --cluster slurm: submitit is not installed; pip install ") and "[cluster]" in line
    )
    assert list(folder.iterdir()) == []


def test_a_grid_is_every_combination_and_what_is_wrong_is_kept_apart() -> None:
    runs = sweep.plan(["ntm-copy", "seed=1..2", "circuit.type=ntm,dnc", "agent.lr=1e-3,-1", *SMALL])
    assert [run.name for run in runs[:3]] == [
        "seed=1,circuit.type=ntm,agent.lr=1e-3",
        "seed=1,circuit.type=ntm,agent.lr=-1",
        "seed=1,circuit.type=dnc,agent.lr=1e-3",
    ]
    assert len(runs) == 8 and all(("lr=-1" in run.name) == bool(run.problem) for run in runs)
    assert runs[1].problem == "agent.lr: got -1; allowed: greater than 0"
    assert runs[2].labels == {"circuit.type": "dnc", "agent.lr": "1e-3"}
    assert runs[2].options["circuit"]["type"] == "dnc" and runs[2].options["plots"] == "off"


@pytest.mark.parametrize(
    ("said", "words", "expected"),
    [
        ("", [], "off"),
        ("plots: files", [], "files"),
        ("plots: files", ["plots=off"], "off"),
        ("", ["plots.type=files"], "files"),
    ],
)
def test_nothing_is_drawn_unless_the_file_or_the_command_line_says_so(
    folder: Path, said: str, words: list[str], expected: str
) -> None:
    text = (options.PRESETS / "ntm-copy.yaml").read_text(encoding="utf-8")
    Path("mine.yaml").write_text(f"{text}\n{said}\n", encoding="utf-8")
    runs = sweep.plan(["mine.yaml", "seed=1..2", *words])
    assert [run.options["plots"] for run in runs] == [expected, expected]
    assert {run.preset for run in runs} == {"mine"}


def test_names_are_folders_whatever_the_values_are() -> None:
    runs = sweep.plan(["ntm-copy", "env.test_lengths=[5],[6]", "seed=1", *SMALL[:2], *SMALL[3:]])
    assert [run.name for run in runs] == ["env.test_lengths=-5-", "env.test_lengths=-6-"]
    lists = ",".join(f"[{', '.join(map(str, range(1, count)))}]" for count in (90, 91))
    lists += f",[{84 * '漢'}]"  # file systems count bytes
    runs = sweep.plan(["ntm-copy", f"env.test_lengths=[5, 6],[5,-6],{lists}", "seed=1"])
    assert len({run.name for run in runs}) == len(runs) == 5 and all(len(run.name.encode()) < 101 for run in runs)


def test_what_cannot_be_read_of_one_run_is_its_problem_alone(folder: Path) -> None:
    plan = sweep.plan(["ntm-copy", *SMALL, "seed=1..3"])
    names = ("x" * 300, "file", "none")
    chosen = sweep.Sweep(folder, [run._replace(name=name) for run, name in zip(plan, names, strict=True)])
    (folder / "file").touch()
    found = sweep.outcomes_of(chosen, 4, [])
    assert [each.problem.partition(":")[0] for each in found] == [
        "[Errno 36] File name too long",
        "[Errno 20] Not a directory",
        "",
    ]


def test_a_range_may_be_of_one() -> None:
    (run,) = sweep.plan(["ntm-copy", "seed=3..3"])
    assert run.options["seed"] == 3


def test_runs_of_a_sweep_and_of_a_league_may_start_with_the_weights_of_another(folder: Path) -> None:
    options = ["agent.steps=1", "plots=off", "circuit={type: lstm, hidden_size: 3}"]
    assert main(["train", "chomsky", *options, "agent.warmup_steps=0", "name=begun"]) == 0
    expected = (folder / "runs" / "begun" / "checkpoints" / "best.pt").resolve()
    for begun in ("begun", "latest", "runs/begun", str(folder / "runs" / "begun")):
        words = [f"start={begun}", "circuit={type: lstm, hidden_size: 3}"]
        run, _ = sweep.plan(["chomsky", "seed=1..2", *words])
        assert Path(run.options["start"]).resolve() == expected and Path(run.options["start"]).is_absolute()
        arguments = argparse.Namespace(
            tasks="even-pairs", circuits="lstm", seeds="1", imports=[], arguments=["chomsky", *words]
        )
        (run,) = plan(arguments)[1]
        assert Path(run.options["start"]).resolve() == expected
    with pytest.raises(OptionsError, match="start: got 'nowhere'"):
        sweep.plan(["chomsky", "seed=1..2", "start=nowhere"])


@pytest.mark.slow
def test_a_sweep_leaves_a_table_a_csv_and_a_picture_and_names_what_failed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ntm-copy", *SMALL, "agent.steps=10", "seed=1..2", "circuit.clip=2,-1", "name=mine", "--sequences", "8"]
    assert main(["sweep", *words]) == 1
    out, error = capsys.readouterr()
    assert "seed=1,circuit.clip=-1 failed: circuit.clip: got -1; allowed: greater than 0" in error
    made = folder / "runs" / "mine"
    assert out == (made / "table.md").read_text()
    assert "| circuit.clip=2 | 2 | median | 10 |" in out and "2 failed" in out
    assert (made / "curves.png").stat().st_size > 10_000
    rows = list(csv.DictReader((made / "runs.csv").read_text().splitlines()))
    assert [row["status"] for row in rows] == ["done", "failed", "done", "failed"]
    assert rows[0]["steps"] == "10" and float(rows[0]["length 4"]) > 0 and rows[0]["seed"] == "1"
    assert rows[0]["length 4"] != rows[2]["length 4"]

    # Again: nothing is trained a second time, and the result is the same.
    before = {path: path.stat().st_mtime_ns for path in made.glob("*/checkpoints/*.pt")}
    assert len(before) == 4
    assert main(["sweep", "--resume", "mine", "--sequences", "8"]) == 1
    assert {path: path.stat().st_mtime_ns for path in made.glob("*/checkpoints/*.pt")} == before
    assert capsys.readouterr().out == out
    assert main(["sweep", *words]) == 1
    assert {path: path.stat().st_mtime_ns for path in made.glob("*/checkpoints/*.pt")} == before

    # Another sweep of that name is none.
    capsys.readouterr()
    assert main(["sweep", *words, "agent.lr=1e-4"]) == 2
    assert "papertape: name: got 'mine'; runs/mine is there already" in capsys.readouterr().err

    # The runs are runs like any other.
    assert main(["runs"]) == 0
    listed = capsys.readouterr().out
    assert "mine/seed=1,circuit.clip=2  ntm-copy  10    done  " in listed
    assert main(["compare", "mine/seed=1,circuit.clip=2", "runs/mine/seed=2,circuit.clip=2", "--sequences", "8"]) == 0
    compared = capsys.readouterr().out
    assert [line.split("|")[2:] for line in compared.splitlines()][2] == [
        line.split("|")[2:] for line in out.splitlines()
    ][2]
    assert main(["test", "runs/mine/seed=1,circuit.clip=2", "plots=off"]) == 0


def test_a_run_that_is_damaged_or_was_mended_by_hand_leaves_the_others_as_they_are(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, rate in (("one", "1e-3"), ("two", "2e-3")):
        words = ["ntm-copy", *SMALL, "agent.steps=2", f"agent.lr={rate}", "seed=1..1", "--jobs", "1"]
        assert main(["sweep", *words, "--sequences", "4", f"name={name}"]) == 0
    run = folder / "runs" / "one" / "seed=1"
    (run / "problem").write_text("was ended by SIGKILL")
    assert main(["train", "--resume", "runs/one/seed=1", "agent.steps=3"]) == 0
    capsys.readouterr()
    assert main(["compare", "one", "--sequences", "4"]) == 0
    assert "failed" not in capsys.readouterr().out
    chosen = sweep.read(folder / "runs" / "one")
    runner = sweep.Runner(chosen, parser().parse_args(["sweep", "--jobs", "1"]))
    assert runner._is_done(chosen.runs[0])
    (run / "options.yaml").write_text("- 1")
    assert main(["compare", "one", "two", "--sequences", "4"]) == 0
    out = capsys.readouterr().out
    assert "| all | 1 | median | 2 |" in out
    assert "1 failed:\n\n- " in out and "seed=1/options.yaml: got list; expected a mapping" in out
    (run / "options.yaml").unlink()
    assert not runner._is_done(chosen.runs[0])
    assert main(["compare", "one", "two", "--sequences", "4"]) == 0
    assert "seed=1/options.yaml: cannot be read: No such file" in capsys.readouterr().out

    def full(path: Path, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert main(["compare", "two", "--sequences", "4"]) == 2
    said = capsys.readouterr()
    assert "| all | 1 | median | 2 |" in said.out, "before it is written"
    assert "papertape: [Errno 28] No space left on device: 'runs/comparison_" in said.err and "table.md'" in said.err


@pytest.mark.parametrize("error", [WorldError("env: fell\nover"), DataError("mnist: not there"), ValueError("shape")])
def test_a_run_that_cannot_be_tested_says_why_and_the_others_are(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def errors_on_test(directory: Path, sequences: int, assignments: Sequence[str]) -> dict[str, float]:
        raise error

    monkeypatch.setattr(comparison, "errors_on_test", errors_on_test)
    assert comparison.tested(Path("run"), 4, []) == ({}, str(error).replace("\n", "; "))


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "papertape.main", "sweep", *words]
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for(folder: Path, pattern: str) -> list[Path]:
    deadline = time.monotonic() + 120
    while not (found := list(folder.glob(pattern))) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


LOCK = """
import sys
from pathlib import Path
from papertape.utils.run import locked
with locked(Path(sys.argv[1])):
    pass
"""


def locked_by_another(run: Path) -> str:
    """What another process is told that would train this run; empty if it may."""
    done = subprocess.run([sys.executable, "-c", LOCK, str(run)], capture_output=True, text=True, check=False)
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_sweep_that_is_cut_off_goes_on(folder: Path, number: signal.Signals) -> None:
    """Its runs stop with it, wherever they are; the same words go on from their checkpoints."""
    words = ["ntm-copy", *SMALL, "agent.steps=3000", "seed=1..2", "--jobs", "1", "--sequences", "8"]
    process = start(folder, *words)
    (saved,) = wait_for(folder, "runs/*/*/checkpoints/latest.pt")
    run = saved.parents[1]
    os.kill(process.pid, number)
    _, said = process.communicate(timeout=120)
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert f"go on with: {install.here('papertape')} sweep --resume runs/{run.parent.name}" in said
    deadline = time.monotonic() + 60
    while "in progress" in (again := locked_by_another(run)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not again
    step = checkpoint.load(saved)["agent"]["step"]
    assert 0 < step < 3000
    options = run / "options.yaml"
    for path in folder.glob("runs/*/sweep.json"):  # the end comes sooner in a test
        path.write_text(path.read_text().replace('"steps": 3000', f'"steps": {step + 5}'))
    options.write_text(options.read_text().replace("steps: 3000", f"steps: {step + 5}"))
    process = start(folder, "--resume", "latest", "--jobs", "2", "--sequences", "8")
    out, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert f"goes on at step {step}" in (run / "log").read_text()
    assert [read_summary(path).step for path in (run, run.parent / "seed=2")] == [step + 5] * 2  # type: ignore[union-attr]
    assert "| all | 2 | median |" in out


def test_a_signal_while_a_run_is_being_started_stops_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[bool] = []

    class Job:
        def __init__(self, *arguments: object) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            self.polls = 0

        def ended(self) -> str | None:
            self.polls += 1
            return "" if stopped else None if self.polls < 10 else "was not stopped"

        def stop(self, *, at_once: bool) -> None:
            stopped.append(at_once)

    monkeypatch.setattr(sweep, "Process", Job)
    assert main(["sweep", "ntm-copy", *SMALL, "seed=1..2", "--jobs", "1"]) == 130
    assert stopped == [False]


@pytest.mark.slow
def test_a_run_that_is_killed_is_named_and_the_rest_goes_on(folder: Path) -> None:
    process = start(folder, "ntm-copy", *SMALL, "agent.steps=100000", "seed=1..2", "--jobs", "1", "--sequences", "8")
    (saved,) = wait_for(folder, "runs/*/*/checkpoints/latest.pt")
    lock = (saved.parents[1] / "lock").read_text()
    os.kill(int(lock.split()[1]), signal.SIGKILL)
    wait_for(folder, "runs/*/seed=2/checkpoints/latest.pt")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert "seed=1 failed: was ended by SIGKILL" in said
    assert (saved.parents[1] / "problem").read_text() == "was ended by SIGKILL"


@pytest.mark.slow
def test_runs_that_are_stopped_at_once_have_not_failed(folder: Path) -> None:
    words = ["ntm-copy", *SMALL, "agent.steps=100000", "seed=1..2", "--jobs", "1", "--sequences", "8"]
    process = start(folder, *words)
    (saved,) = wait_for(folder, "runs/*/*/checkpoints/latest.pt")
    worker = int((saved.parents[1] / "lock").read_text().split()[1])
    os.kill(worker, signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130 and "failed" not in said and "stopped with 0 of 2 runs done" in said
    assert not list(folder.glob("runs/*/*/problem"))


def test_a_run_whose_folder_goes_away_does_not_end_the_sweep(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Job:
        def __init__(self, directory: Path, *arguments: object) -> None:
            if directory.name == "seed=1":
                raise OSError(28, "No space left on device")
            shutil.rmtree(directory)

        def ended(self) -> str | None:
            return "it is gone"

    monkeypatch.setattr(sweep, "Process", Job)
    assert main(["sweep", "ntm-copy", *SMALL, "seed=1..3", "--jobs", "1", "--sequences", "8", "name=mine"]) == 1
    said = {path.parent.name: path.read_text() for path in folder.glob("runs/mine/*/problem")}
    assert said == {"seed=1": "[Errno 28] No space left on device", "seed=2": "it is gone", "seed=3": "it is gone"}


def test_the_working_directory_may_hold_files_that_are_called_like_modules_of_python(
    folder: Path, outsiders: None
) -> None:
    """And what is imported is found there all the same."""
    for name in ("copy", "queue", "random"):
        (folder / f"{name}.py").write_text("raise SystemExit('this is not of Python')", encoding="utf-8")
    shutil.copy(Path(__file__).parents[1] / "outside.py", folder)
    words = [*SMALL, "seed=1..1", "agent.steps=1", "name=mine", "--jobs", "1", "--sequences", "4"]
    assert main(["sweep", *words, "--import", "outside"]) == 0


def test_a_sweep_is_no_run_but_says_how_it_goes_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", *SMALL, "seed=1,2", "agent.steps=1", "name=several"]) == 0
    capsys.readouterr()
    for command in (["train", "--resume", "several"], ["test", "several"], ["test", "runs/several"]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert "which is a sweep; allowed is one of its runs" in said
        assert f"all go on with: {install.here(f'papertape sweep --resume {command[-1]}')}" in said


def test_a_sweep_whose_file_is_damaged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "runs" / "x").mkdir(parents=True)
    whole = {"name": "a", "labels": {}, "options": {}, "problem": "", "preset": "x"}
    for damaged, said in (
        ([{**whole, "labels": []}], "0: labels: Input should be a valid dictionary"),
        ([{**whole, "name": 3}], "0: name: Input should be a valid string"),
        ([{**whole, "name": "../b"}], "name: got '../b'; allowed is the name of one folder"),
        ([{**whole, "name": ".."}], "name: got '..'; allowed is the name of one folder"),
        ([{**whole, "name": ""}], "name: got ''; allowed is the name of one folder"),
        ([{"name": "a"}], "0: labels: Field required"),
        ([], "List should have at least 1 item"),
        ("{", "Expecting property name"),
    ):
        text = damaged if isinstance(damaged, str) else json.dumps(damaged)
        (folder / "runs" / "x" / "sweep.json").write_text(text)
        for command in (["sweep", "--resume", "latest"], ["compare", "x"]):
            assert main(command) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith(f"papertape: runs/x/sweep.json: cannot be read: {said}")
    with pytest.raises(OptionsError):
        find_directory("y", what="sweep", file=sweep.FILE)


def test_a_sweep_that_cannot_begin_leaves_its_name_free(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["ntm-copy", *SMALL, "seed=1..2", "name=mine"]

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(sweep, "replace_text", full)
        assert main(["sweep", *words]) == 2
    assert not (folder / "runs" / "mine").exists()
    (folder / "runs" / "mine").mkdir(parents=True)  # as by a kill at that moment
    assert sweep.find_or_begin(sweep.plan(words[:-1], []), "mine", "mine").directory == Path("runs/mine")


def test_a_name_that_is_null_is_none(folder: Path) -> None:
    words = ["ntm-copy", *SMALL, "seed=1..2"]
    assert sweep.split_name([*words, "name=null"]) == (None, words)
    with pytest.raises(OptionsError, match="name: got nothing; allowed: a value, or null for none"):
        sweep.split_name([*words, "name="])
    assert sweep.split_name(["name='mine'", *words]) == ("mine", words)


def test_of_two_sweeps_that_begin_at_once_with_one_name_the_second_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (sweep.plan(["ntm-copy", *SMALL, f"seed={seeds}"]) for seeds in ("1..2", "3..4"))
    make = sweep.new_directory

    def overtaken(kind: str, name: str | None) -> Path:
        directory = make(kind, name)
        monkeypatch.setattr(sweep, "new_directory", make)
        sweep.find_or_begin(first, "x", "mine")
        return directory

    monkeypatch.setattr(sweep, "new_directory", overtaken)
    with pytest.raises(OptionsError, match="name: got 'mine'; runs/mine is there already"):
        sweep.find_or_begin(second, "x", "mine")
    assert sweep.read(Path("runs/mine")).runs == first


def test_what_goes_on_with_a_sweep_tests_it_as_before() -> None:
    more = {"jobs": 2, "cluster": "local", "cluster_option": ["timeout_min=5"]}
    arguments = argparse.Namespace(sequences=8, test_option=["env.test_lengths=[5, 6]"], **more)
    words = sweep.go_on_with("sweep", sweep.Sweep(Path("runs/x y"), []), arguments)
    expected = "sweep --resume 'runs/x y' --jobs 2 --cluster local --cluster-option timeout_min=5"
    assert words.endswith(f"{expected} --sequences 8 --test-option 'env.test_lengths=[5, 6]'")
    assert parser().parse_args(["sweep"]).sequences == sweep.SEQUENCES


def test_a_damaged_sweep_does_not_keep_others_from_beginning(folder: Path) -> None:
    for name, text in (("cut", '[{"name": '), ("other", '[{"of": "another version"}]')):
        (folder / "runs" / name).mkdir(parents=True)
        (folder / "runs" / name / "sweep.json").write_text(text)
    begun = sweep.find_or_begin(sweep.plan(["ntm-copy", *SMALL, "seed=1..2"], []), "new", None)
    assert begun.directory.name.startswith("new_")


@pytest.mark.parametrize(
    ("said", "last"),
    [
        ("12%|## | 3/20\npapertape: one\npapertape: two\n", "one; two"),
        (
            'Traceback (most recent call last):\n  File "a.py"\n    g()\nRuntimeError: boom\n  of size 3\nline two\n',
            "RuntimeError: boom; of size 3; line two",
        ),
        ("Killed\n", "Killed"),
        ("", ""),
    ],
)
def test_the_last_error_of_a_process_is_all_of_its_text(said: str, last: str) -> None:
    assert sweep.last_error(said) == last


def test_what_a_run_says_is_not_written_through_a_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    (tmp_path / "output").symlink_to(elsewhere)
    with pytest.raises(OSError, match="output: is a symbolic link"):
        sweep.Process(tmp_path, "ntm-copy", 1, [], 1)
    assert elsewhere.read_text() == "precious"


def test_curves_of_many_places_are_taken_together_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    curves = [
        [(run + 7 * place, math.nan if place == 3 else run / place) for place in range(1, 20)] for run in range(5)
    ]
    outcomes = [comparison.Outcome("", {}, 1, "done", "", 1, 1.0, 0, curve, {}, "loss") for curve in curves]
    (whole,) = comparison.bands(outcomes)
    monkeypatch.setattr(comparison, "ERRORS_AT_A_TIME", 50)
    (parts,) = comparison.bands(outcomes)
    assert len(whole.places) > 50 and not np.isnan(whole.quartiles).all()
    np.testing.assert_array_equal(parts.quartiles, whole.quartiles)


def test_curves_are_of_the_runs_that_the_table_counts() -> None:
    ended = comparison.Outcome("", {}, 1, "done", "", 1, 1.0, 0, [(1, 0.5), (2, 0.1)], {}, "loss")
    failed = ended._replace(status="failed", problem="no room", curve=[(1, 50.0), (2, 50.0)])
    (band,) = comparison.bands([ended, failed, failed])
    assert band.quartiles[1].tolist() == [0.5, 0.1] and band.label.endswith("(1)")
    assert comparison.bands([failed]) == []


def test_the_first_value_that_is_given_twice_is_named() -> None:
    with pytest.raises(OptionsError, match="^seed: 1 is given twice$"):
        sweep.values_of("seed=1,2,2,1")
