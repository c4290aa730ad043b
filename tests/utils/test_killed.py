"""Runs that are killed at any moment, locked out or short of disk: their files are whole, and they go on exactly."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from papertape.agents import EvolutionAgent
from papertape.core.options import OptionsError
from papertape.core.world import WorldError
from papertape.main import main
from papertape.utils import checkpoint
from papertape.utils.commands import train
from papertape.utils.files import append_line, lock, replace_text
from papertape.utils.run import locked, read_summary

STARTS = multiprocessing.get_context("forkserver")
"""Its children begin with everything imported: a kill may come within the first milliseconds of a run."""
STARTS.set_forkserver_preload(["papertape.main"])

TINY = [
    *("ntm-copy", "env.width=2", "env.max_length=2", "env.test_lengths=[3]", "circuit.memory_size=4"),
    *("circuit.word_size=4", "circuit.controller.hidden_size=4", "agent.batch_size=2", "agent.evaluation_sequences=2"),
    *("agent.log_every=1", "agent.evaluate_every=5", "agent.save_every=3", "agent.retry_every=null"),
    *("agent.target_error=null", "agent.target_error_beyond=null", "threads=1", "device=cpu", "plots=off"),
]
KINDS = {
    "backprop": [*TINY, "agent.steps=120"],
    "evolution": [
        *[option for option in TINY if "retry" not in option],
        *("agent.type=evolution", "agent.strategy.type=trust", "agent.strategy.population=4", "agent.generations=80"),
    ],
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_main(arguments: list[str]) -> None:
    """In a child process."""
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (lives as long as the process)
    torch.set_num_threads(1)
    sys.exit(main(arguments))


def begin(arguments: list[str]) -> ForkServerProcess:
    process = STARTS.Process(target=run_main, args=(arguments,))
    process.start()
    return process


def runs(folder: Path) -> list[Path]:
    return [path.parent for path in folder.glob("runs/*/options.yaml")]


def check_whole(directory: Path) -> None:
    """Whatever was going on, every file is whole but for the last rows of those that grow."""
    assert yaml.safe_load((directory / "options.yaml").read_text())["circuit"]["type"] == "ntm"
    for path in directory.glob("options-until-*.yaml"):
        assert yaml.safe_load(path.read_text())["circuit"]["type"] == "ntm"
    for path in directory.glob("checkpoints/*.pt"):
        assert checkpoint.load(path)["agent"]["step"] >= 0


def rows(directory: Path) -> list[dict[str, object]]:
    read = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "train/sequences_per_second"} for row in read]


def bits(value: object) -> object:
    """A state with its tensors as bytes, so that what is equal is so bit for bit."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.reshape(-1).view(torch.uint8).tolist()
    if isinstance(value, dict):
        return {key: bits(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [bits(part) for part in value]
    return repr(value)


def state(directory: Path) -> object:
    return bits(checkpoint.load(directory / "checkpoints" / "latest.pt")["agent"])


def kill_again_and_again(folder: Path, arguments: list[str], kills: int, seed: int) -> None:
    """Start, kill, go on, kill, …; at the end everything is as in a run that nobody has killed."""
    unbroken = folder / "unbroken"
    unbroken.mkdir()
    warm = folder / "warm"
    warm.mkdir()
    os.chdir(warm)
    begin(["train", *arguments]).join()  # What is read from the disk is at hand: from now on starts take no longer.
    os.chdir(unbroken)
    began = time.monotonic()
    process = begin(["train", *arguments])
    while not runs(unbroken) and process.exitcode is None:
        time.sleep(0.005)
    ready = time.monotonic() - began
    process.join()
    took = time.monotonic() - began
    assert process.exitcode == 0
    os.chdir(folder)
    random_state = random.Random(seed)
    killed, stretch = 0, 1.0  # as the machine is faster or slower now than it was for the unbroken run
    while killed < kills:
        (latest,) = runs(folder) or [None]
        # Half of the kills come early, where a run that goes on looks at its files and changes them.
        early, share = random_state.random() < 0.5 and latest, random_state.random()
        pause = ready * share * 1.2 if early else ready + (took - ready) * share * 0.4
        pause *= stretch
        # Another option at every start, so that options.yaml is written each time.
        again = ["train", "--resume", str(latest), f"visdom_port={9000 + killed}"]
        process = begin(again if latest else ["train", *arguments])
        process.join(pause)
        if process.exitcode is not None:
            assert process.exitcode == 0
            if killed > 1:
                break
            for directory in runs(folder):
                shutil.rmtree(directory)
            killed, stretch = 0, stretch / 2
            continue
        process.kill()
        process.join()
        killed += 1
        if not runs(folder):
            stretch *= 1.5
        for directory in runs(folder):
            check_whole(directory)
    (directory,) = runs(folder)
    process = begin(["train", "--resume", str(directory)])
    process.join()
    assert process.exitcode == 0
    (expected,) = runs(unbroken)
    assert state(directory) == state(expected)
    assert rows(directory) == rows(expected)
    assert not list(directory.rglob("*.part"))


@pytest.mark.parametrize("kind", KINDS)
def test_killed_ten_times(folder: Path, kind: str) -> None:
    kill_again_and_again(folder, KINDS[kind], kills=10, seed=1)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", KINDS)
def test_killed_very_often(folder: Path, kind: str, seed: int) -> None:
    kill_again_and_again(folder, KINDS[kind], kills=20, seed=seed)


def endless(folder: Path) -> tuple[ForkServerProcess, Path]:
    """A run that goes on until it is killed, and has a checkpoint."""
    process = begin(["train", *TINY, "agent.steps=1000000"])
    deadline = time.monotonic() + 120
    while not list(folder.glob("runs/*/checkpoints/latest.pt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    return process, runs(folder)[0]


def test_a_run_in_progress_is_locked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process, directory = endless(folder)
    for name in ("latest", directory.name, str(directory.absolute())):
        assert main(["train", "--resume", name, "agent.lr=0.5"]) == 2
        error = capsys.readouterr().err.strip()
        assert "is in progress (process " in error and str(process.pid) in error and "\n" not in error
    assert "0.5" not in (directory / "options.yaml").read_text()
    assert main(["test", "latest"]) == 0
    process.kill()
    process.join()
    step = checkpoint.load(directory / "checkpoints" / "latest.pt")["agent"]["step"]
    assert main(["train", "--resume", "latest", f"agent.steps={step + 1}"]) == 0


def test_two_runs_that_take_a_name_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The later one leaves the folder to the one that has locked it, and to one that has even ended by then."""
    directory, new = folder / "runs" / "mine", train.new_directory

    def after(words: list[str]) -> None:
        def taken(*arguments: Any) -> Path:
            made = new(*arguments)
            process = begin(words)
            if "agent.steps=6" in words:
                process.join()
            while not (directory / "summary.json").exists():
                time.sleep(0.01)
            others.append(process)
            return made

        monkeypatch.setattr(train, "new_directory", taken)

    for steps in (1_000_000, 6):
        others: list[ForkServerProcess] = []
        after(["train", *TINY, f"agent.steps={steps}", "name=mine"])
        assert main(["train", *TINY, "agent.steps=9", "name=mine"]) == 2
        others[0].kill()
        others[0].join()
        assert (directory / "options.yaml").exists() and f"steps: {steps}" in (directory / "options.yaml").read_text()
        shutil.rmtree(directory)


def test_a_name_is_free_again_where_its_run_was_killed_as_it_began(folder: Path) -> None:
    directory = folder / "runs" / "mine"
    (directory / "plots").mkdir(parents=True)
    for name in ("lock", ".options.yaml.999999999.part"):
        (directory / name).touch()
    assert main(["train", *TINY, "agent.steps=6", "name=mine"]) == 0
    assert not list(directory.glob(".*"))
    assert main(["train", *TINY, "agent.steps=6", "name=mine"]) == 2


def hold() -> None:
    """In a child process: hold a lock, and so does, in vain, a child of it that lives on."""
    with locked(Path()):
        if child := os.fork():
            Path("child").write_text(str(child))
            Path("held").touch()
        time.sleep(600)


def try_to_hold() -> None:
    with contextlib.suppress(OptionsError), locked(Path()):
        os._exit(0)
    os._exit(2)


def test_what_a_run_has_started_does_not_keep_it_locked(folder: Path) -> None:
    holder = STARTS.Process(target=hold)
    holder.start()
    while not (folder / "held").exists():
        time.sleep(0.01)
    try:
        for expected in (2, 0):
            other = STARTS.Process(target=try_to_hold)
            other.start()
            other.join()
            assert other.exitcode == expected
            holder.kill()
            holder.join()
    finally:
        os.kill(int((folder / "child").read_text()), signal.SIGKILL)


def on_a_small_disk(arguments: list[str], room: int) -> None:
    """In a child process: no file may grow beyond so many bytes, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    torch.set_num_threads(1)
    with open("said", "w") as sys.stderr:
        status = main(arguments)
    os._exit(status)


def test_a_full_disk_is_said_once_and_keeps_what_was(folder: Path) -> None:
    assert main(["train", *TINY, "agent.steps=6"]) == 0
    (directory,) = runs(folder)
    path = directory / "checkpoints" / "latest.pt"
    before, metrics = path.read_bytes(), directory / "metrics.jsonl"
    room = metrics.stat().st_size + 400
    assert room < len(before)
    process = STARTS.Process(target=on_a_small_disk, args=(["train", "--resume", "latest", "agent.steps=60"], room))
    process.start()
    process.join()
    assert process.exitcode == 1
    said = (folder / "said").read_text()
    for what in ("checkpoint latest", "metrics.jsonl"):
        assert sum(f"{what} cannot be written" in line and "goes on" in line for line in said.splitlines()) == 1, said
    assert path.read_bytes() == before
    assert rows(directory)
    check_whole(directory)
    assert main(["train", "--resume", "latest", "agent.steps=8"]) == 0
    assert rows(directory)[-1]["step"] == 8


def test_a_disk_that_is_full_at_the_start_leaves_nothing_behind(folder: Path) -> None:
    process = STARTS.Process(target=on_a_small_disk, args=(["train", *TINY], 100))
    process.start()
    process.join()
    assert process.exitcode == 2
    assert not (folder / "runs").exists()
    assert "papertape: " in (folder / "said").read_text()


def test_a_row_that_was_cut_off(folder: Path) -> None:
    assert main(["train", *TINY, "agent.steps=4"]) == 0
    (directory,) = runs(folder)
    expected = rows(directory)
    with open(directory / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "train/lo')
    with open(directory / "log", "a") as file:
        file.write("cut o")
    assert main(["train", "--resume", "latest", "agent.steps=5"]) == 0
    assert rows(directory)[: len(expected)] == expected
    assert "\ncut o\n" in (directory / "log").read_text()


def test_a_validation_that_failed_is_in_the_rows_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made again when the run goes on, however often that is killed before it saves."""
    words = ["tmaze-single", "env.trials=2", "agent.strategy.population=4", "agent.strategy.truncation=2"]
    words += ["agent.strategy.elite_candidates=2", "agent.batch_size=1", "agent.evaluation_sequences=2"]
    words += ["agent.log_every=1", "agent.evaluate_every=2", "agent.save_every=9", "threads=1", "plots=off"]
    for name in ("unbroken", "failed"):
        (folder / name).mkdir()
    os.chdir("unbroken")
    assert main(["train", *words, "agent.generations=4"]) == 0
    os.chdir(folder / "failed")
    with monkeypatch.context() as patched:
        patched.setattr(EvolutionAgent, "evaluate", raising(WorldError("it is gone")))
        assert main(["train", *words, "agent.generations=4"]) == 1
    for _ in range(2):
        with monkeypatch.context() as patched:
            patched.setattr(EvolutionAgent, "train_step", raising(KeyboardInterrupt()))
            assert main(["train", "--resume", "latest"]) == 130
    assert main(["train", "--resume", "latest"]) == 0
    (expected,), (found,) = runs(folder / "unbroken"), runs(folder / "failed")
    assert rows(found) == rows(expected) and state(found) == state(expected)


def raising(error: BaseException) -> Callable[..., Any]:
    def act(*arguments: object) -> Any:
        raise error

    return act


def failing(*arguments: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = tmp_path / "file"
    replace_text(path, "old")
    monkeypatch.setattr(os, name, failing)
    with pytest.raises(OSError, match="No space"):
        replace_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_half_a_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = tmp_path / "file", os.write
    append_line(path, "first")
    monkeypatch.setattr(os, "write", lambda descriptor, text: write(descriptor, text[: len(text) // 2]))
    with pytest.raises(OSError, match="no room"):
        append_line(path, "second")
    assert path.read_text() == "first\n"


@pytest.mark.parametrize("name", ["lock", "log"])
def test_a_run_is_not_written_through_a_link(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TINY, "agent.steps=3", "name=theirs"]) == 0
    elsewhere, link = folder / "elsewhere", folder / "runs" / "theirs" / name
    elsewhere.write_text("precious")
    link.unlink()
    link.symlink_to(elsewhere)
    capsys.readouterr()
    assert main(["train", "--resume", "theirs", "agent.steps=6"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.endswith(f"theirs/{name}: is a symbolic link, which nothing is written through; remove it first")
    assert elsewhere.read_text() == "precious"


def test_a_line_is_not_appended_through_a_link(tmp_path: Path) -> None:
    elsewhere, link = tmp_path / "elsewhere", tmp_path / "metrics.jsonl"
    link.symlink_to(elsewhere)
    with pytest.raises(OSError, match="metrics.jsonl: is a symbolic link"):
        append_line(link, "line")
    assert not elsewhere.exists()


def test_a_lock_that_a_full_disk_lets_nothing_be_written_into_holds(tmp_path: Path) -> None:
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, most[1]))
    try:
        with lock(tmp_path / "lock") as holder:
            assert holder == ""
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
        signal.signal(signal.SIGXFSZ, before)
    assert (tmp_path / "lock").read_bytes() == b""


def test_what_takes_the_place_of_a_file_is_not_written_through_a_link(tmp_path: Path) -> None:
    elsewhere, path = tmp_path / "elsewhere", tmp_path / "options.yaml"
    (tmp_path / f".options.yaml.{os.getpid()}.part").symlink_to(elsewhere)
    path.symlink_to(elsewhere)
    replace_text(path, "text")
    assert path.read_text() == "text" and not path.is_symlink() and not elsewhere.exists()


def test_a_run_whose_end_could_not_be_saved_is_not_done(folder: Path) -> None:
    process = STARTS.Process(target=on_a_small_disk, args=(["train", *TINY, "agent.steps=6"], 6_000))
    process.start()
    process.join()
    assert process.exitcode == 1
    said = (folder / "said").read_text()
    *before, last = [line for line in said.splitlines() if "checkpoint latest cannot be written" in line]
    assert len(before) == 1 and "not saved at step 6: checkpoint latest cannot be written ([Errno 27]" in last
    assert ".pt'); go on with: " in last
    (directory,) = runs(folder)
    summary = read_summary(directory)
    assert summary is not None and summary.step == 6 and not summary.done
    assert main(["train", "--resume", "latest"]) == 0
    summary = read_summary(directory)
    assert summary is not None and summary.done
    assert checkpoint.load(directory / "checkpoints" / "latest.pt")["agent"]["step"] == 6


def test_the_seconds_of_a_killed_run_count(folder: Path) -> None:
    """Up to its last checkpoint; and a run that was done is not, once it goes on."""
    assert main(["train", *TINY, "agent.steps=3", "name=mine"]) == 0
    directory = folder / "runs" / "mine"
    process = begin(["train", "--resume", "mine", "agent.steps=1000000"])
    deadline, summary = time.monotonic() + 60, read_summary(directory)
    while (summary is None or summary.seconds < 1 or summary.step < 9) and time.monotonic() < deadline:
        time.sleep(0.05)
        summary = read_summary(directory)
    process.kill()
    process.join()
    killed = read_summary(directory)
    assert killed is not None and killed.seconds >= 1 and killed.step >= 9 and not killed.done
    step = checkpoint.load(directory / "checkpoints" / "latest.pt")["agent"]["step"]
    assert main(["train", "--resume", "mine", f"agent.steps={step + 1}"]) == 0
    ended = read_summary(directory)
    assert ended is not None and ended.seconds > killed.seconds and ended.done


def test_what_others_write_is_not_cleared_away(folder: Path) -> None:
    """Not in the runs of a sweep, which have locks of their own, nor what a living process writes."""
    sweep, run = folder / "sweep", folder / "sweep" / "seed=1"
    (run / "checkpoints").mkdir(parents=True)
    (run / "lock").touch()
    (sweep / "jobs").mkdir()
    kept = run / "checkpoints" / ".latest.pt.999999999.part"
    dead, living = sweep / "jobs" / ".a.999999999.part", sweep / "jobs" / f".b.{os.getppid()}.part"
    own = sweep / f".c.{os.getpid()}.part"
    for path in (kept, dead, living, own):
        path.touch()
    with locked(sweep):
        assert kept.exists() and living.exists()
        assert not dead.exists() and not own.exists()
    with locked(run):
        assert not kept.exists()
