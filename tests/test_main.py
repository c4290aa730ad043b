"""End to end: the command line as a user types it."""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
import yaml

import papertape
from papertape.agents import BackpropAgent, PPOAgent
from papertape.agents.learning import LearningAgent
from papertape.core import install
from papertape.core.component import options_of
from papertape.core.distributed import Processes
from papertape.core.registry import entries
from papertape.envs import ArithmeticEnv, TMazeWorld
from papertape.main import PORT, main
from papertape.utils import checkpoint, comparison, factory, options, visdom_server
from papertape.utils.commands.arguments import read_arguments
from papertape.utils.commands.train import choose_resumed, prepare
from papertape.utils.run import Run, load_agent_state, new_directory, read_metrics, read_options, read_summary

SMALL = [
    "env.width=3",
    "env.max_length=3",
    "env.test_lengths=[4]",
    "circuit.controller.hidden_size=8",
    "circuit.memory_size=8",
    "circuit.word_size=4",
    "agent.batch_size=4",
    "agent.evaluation_sequences=4",
    "agent.log_every=2",
    "agent.evaluate_every=5",
    "agent.save_every=5",
    "agent.retry_every=null",
    "agent.target_error=null",
    "device=cpu",
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def last_of_each(*assignments: str) -> list[str]:
    """The command line refuses a key that is given twice."""
    return list({assignment.partition("=")[0]: assignment for assignment in assignments}.values())


def run_directory(root: Path) -> Path:
    (directory,) = (root / "runs").iterdir()
    return directory


def states(directory: Path) -> dict[str, object]:
    state: dict[str, object] = checkpoint.load(directory / "checkpoints" / "latest.pt")["agent"]
    return state


def equal_states(left: dict[str, object], right: dict[str, object]) -> bool:
    """Bit-for-bit equality, through the bytes that a checkpoint writes."""

    def flat(value: object) -> object:
        if isinstance(value, torch.Tensor):
            return value.tolist()
        if isinstance(value, dict):
            return {key: flat(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [flat(part) for part in value]
        return value

    return flat(left) == flat(right)


def test_train_leaves_a_run_behind(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "ntm-copy", *SMALL, "agent.steps=10", "plots=files"]) == 0
    directory = run_directory(folder)
    saved = yaml.safe_load((directory / "options.yaml").read_text())
    assert saved["env"]["width"] == 3
    assert saved["circuit"]["memory_init"] == "constant"
    rows = list(read_metrics(directory / "metrics.jsonl"))
    assert [row["step"] for row in rows if "train/loss" in row] == [2, 4, 6, 8, 10]
    assert [row["step"] for row in rows if "validation/length 4/bits_wrong" in row] == [5, 10]
    assert {path.name for path in (directory / "checkpoints").iterdir()} == {"latest.pt", "best.pt"}
    assert any(path.suffix == ".png" for path in (directory / "plots").iterdir())
    log = (directory / "log").read_text()
    assert "BackpropAgent" in log
    assert "NTM: " in log
    assert "validation, bits wrong" in log
    assert f"done at step 10; look closer with: {install.here('papertape')} test runs/{directory.name}" in log
    assert "done at step 10" in capsys.readouterr().err


def test_test_writes_pictures_and_an_animation(folder: Path) -> None:
    small = [assignment for assignment in SMALL if "test_lengths" not in assignment]
    assert main(["train", "dnc-repeat-copy", *small, "agent.steps=5", "plots=off"]) == 0
    directory = run_directory(folder)
    assert main(["test", "latest", "--checkpoint", "latest", "plots=files"]) == 0
    pictures = {path.suffix for path in (directory / "test" / "plots").iterdir() if path.is_file()}
    assert pictures == {".png", ".gif"}
    assert "still being drawn" in (directory / "test" / "log").read_text()
    (row,) = read_metrics(directory / "test" / "metrics.jsonl")
    assert row["step"] == 5
    assert all(name.startswith("test/") for name in row if name != "step")
    assert any(name.endswith("bits_wrong") for name in row)
    assert not any("test/" in name for trained in read_metrics(directory / "metrics.jsonl") for name in trained)


@pytest.mark.parametrize("word", ["--chekpoint", "--resume"])
def test_unknown_options_of_the_command_line(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["test", "latest", word, "plots=files"])
    assert f"unrecognized arguments: {word}" in capsys.readouterr().err


def test_test_without_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["test"])
    assert "test: RUN is missing; allowed is a run's folder, its name, or latest" in capsys.readouterr().err


def test_killed_and_resumed_equals_unbroken(folder: Path) -> None:
    """kill -9 at some moment, then --resume: weights, optimiser and rows are those of the unbroken run."""
    command = [sys.executable, "-m", "papertape.main", "train", "ntm-copy", *SMALL, "agent.steps=200", "plots=off"]
    command += ["threads=1"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    writer = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(folder.glob("runs/*/checkpoints/latest.pt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    killed = run_directory(folder)
    assert states(killed)["step"] < 200  # type: ignore[operator]
    assert main(["train", "--resume", str(killed)]) == 0

    (folder / "unbroken").mkdir()
    os.chdir(folder / "unbroken")
    assert main([*command[3:]]) == 0
    unbroken = run_directory(folder / "unbroken")
    assert equal_states(states(killed), states(unbroken))

    def rows(directory: Path) -> list[dict[str, object]]:
        kept = list(read_metrics(directory / "metrics.jsonl"))
        for row in kept:
            row.pop("train/sequences_per_second", None)
        return kept

    assert rows(killed) == rows(unbroken)


def test_interrupt_saves_and_says_how_to_go_on(folder: Path) -> None:
    command = [sys.executable, "-m", "papertape.main", "train", *SMALL, "agent.steps=1000000", "plots=off"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(folder.glob("runs/*/checkpoints/latest.pt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0
    directory = run_directory(folder)
    step = states(directory)["step"]
    assert (
        f"stopped at step {step}; go on with: {install.here('papertape')} train --resume runs/{directory.name}" in error
    )
    assert main(["train", "--resume", "latest", f"agent.steps={step + 2}"]) == 0  # type: ignore[operator]
    assert states(directory)["step"] == step + 2  # type: ignore[operator]


def test_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    types = ["backprop", "empty", "ntm", "dnc", "lstm", "gru", "feedforward", "snes", "accuracy", "growing"]
    types += ["static", "tensorflow-rmsprop", "sgd", "visdom"]
    for name in [*options.names(), *options.names(options.LEAGUES), *types]:
        assert re.search(rf"^  {name} +[A-Z]", text, re.MULTILINE), name
    assert "  fashion-mnist\n" in text
    assert "The Neural Turing Machine learns to copy 1 to 20 words of 8 bits (NTM paper, section 4.1).\n" in text
    assert "`" not in text and ":class:" not in text
    assert main(["show", "dnc-repeat-copy", "agent.lr=3e-4"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["agent"]["lr"] == 3e-4
    assert shown["circuit"]["link_sharpening"] is False


def test_the_log_has_a_line_for_each_metric_but_not_for_each_part_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = {"loss": 1.5, "error": 0.2, "accuracy/0": 0.7, "accuracy/1": 0.9, "accuracy": 0.8}
    caplog.set_level("INFO")
    with Run(tmp_path, read_arguments(["plots=off"]), task=ArithmeticEnv()) as run:
        run.metrics(7, {f"test/images/{name}": value for name, value in values.items()})
    assert caplog.messages == [
        "step 7, test, error: images: 0.2",
        "step 7, test, accuracy: images: 0.8",
    ]


def test_empty_agent_from_the_command_line(folder: Path) -> None:
    assert main(["train", "ntm-copy", "agent.type=empty", "agent.steps=2", "plots=off", "device=cpu"]) == 0
    assert "batch 2: " in (run_directory(folder) / "log").read_text()


WORLD = [
    *("train", "ntm-copy", "env.type=t-maze", "env.trials=2", "env.test_trials=[3]", "agent.type=evolution"),
    *("agent.strategy.type=openai-es", "agent.strategy.population=6", "agent.batch_size=2", "agent.generations=2"),
    *("agent.evaluate_every=2", "agent.evaluation_sequences=2", "circuit.controller.hidden_size=8", "device=cpu"),
]


def test_evolution_in_a_world_from_the_command_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[object] = []
    monkeypatch.setattr(TMazeWorld, "close", lambda world: closed.append(world))
    assert main([*WORLD, "plots=off"]) == 0
    assert main(["train", "--resume", "latest", "agent.generations=4"]) == 0
    directory = run_directory(folder)
    assert main(["test", "latest", "plots=files"]) == 0
    assert len(closed) == 3
    rows = list(read_metrics(directory / "metrics.jsonl"))
    assert [row["step"] for row in rows if "validation/trials 3/avoidable_misses" in row] == [2, 4]
    names = {path.name for path in (directory / "test" / "plots").iterdir() if path.is_file()}
    assert {"trials-2.png", "trials-2.gif", "trials-3.png"} <= names


EVOLVE = [*SMALL[:6], "agent.type=evolution", "agent.strategy.type=openai-es", "agent.strategy.population=6"]
EVOLVE += ["agent.generations=2", "agent.batch_size=4", "agent.evaluation_sequences=4", "device=cpu", "plots=off"]


def test_weights_are_handed_over_between_backprop_and_evolution(folder: Path) -> None:
    """backprop -> evolution -> backprop, from options alone; each begins with what the last one found, and resumes."""
    assert main(["train", "ntm-copy", *SMALL, "agent.steps=5", "plots=off", "seed=3"]) == 0
    trained = run_directory(folder).rename(folder / "runs" / "trained")
    assert main(["train", "ntm-copy", *EVOLVE, "start=latest"]) == 0
    evolved = next(path for path in (folder / "runs").iterdir() if path != trained)
    saved = yaml.safe_load((evolved / "options.yaml").read_text())
    assert saved["start"] == str(folder / "runs" / "trained" / "checkpoints" / "best.pt")
    before: dict[str, torch.Tensor] = checkpoint.load(trained / "checkpoints" / "best.pt")["agent"]["circuit"]
    strategy: dict[str, torch.Tensor] = states(evolved)["strategy"]  # type: ignore[assignment]
    assert torch.equal(strategy["genome"], torch.cat([weight.flatten() for weight in before.values()]))

    # A resumed run has weights of its own: it needs the first ones no more.
    shutil.rmtree(trained)
    assert main(["train", "--resume", str(evolved), "agent.generations=4"]) == 0
    assert main(["test", str(evolved)]) == 0
    shutil.copy(evolved / "checkpoints" / "latest.pt", folder / "found.pt")
    shutil.rmtree(evolved)
    still = ["agent.steps=1", "agent.lr=1e-30", "agent.final_lr=0"]
    assert main(["train", "ntm-copy", *SMALL, *still, "plots=off", "start=found.pt"]) == 0
    found: dict[str, torch.Tensor] = checkpoint.load(folder / "found.pt")["agent"]["circuit"]
    after: dict[str, torch.Tensor] = states(run_directory(folder))["circuit"]  # type: ignore[assignment]
    assert all(torch.equal(found[name], after[name]) for name in found)


def test_weights_that_cannot_be_handed_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "ntm-copy", *SMALL, "agent.steps=5", "plots=off"]) == 0
    (run,) = (folder / "runs").iterdir()
    for arguments, messages in [
        (
            ["start=latest", "circuit.word_size=5", "env.width=4"],
            [
                f"papertape: start: {run}/checkpoints/best.pt does not fit; checkpoint: weight",
                "papertape: env.width: 3 there, 4 here",
                "papertape: circuit.word_size: 4 there, 5 here",
            ],
        ),
        (["start=nowhere"], ["papertape: start: got 'nowhere'; allowed is the path of a run's folder"]),
        (["start=options.yaml"], ["papertape: start: got 'options.yaml'"]),
        (
            [*EVOLVE, "agent.strategy.type=trust", "start=latest"],
            ["papertape: agent.strategy.initial: got 'resampled'"],
        ),
    ]:
        assert main(["train", "ntm-copy", *last_of_each(*SMALL[:6], "plots=off", *arguments)]) == 2
        error = capsys.readouterr().err
        assert all(message in error for message in messages), error
    assert main(["train", "--resume", "latest", "start=latest"]) == 2
    assert "start: got 'latest'; a run that goes on has weights of its own" in capsys.readouterr().err
    assert len(list((folder / "runs").iterdir())) == 1


def test_gymnasium_that_is_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    assert main(["train", "gym-cartpole"]) == 2
    said = capsys.readouterr().err.strip()
    assert said == f"papertape: env type gym: gymnasium is not installed; {install.here(install.GYMNASIUM)}"
    assert list(folder.iterdir()) == []


def test_bad_input_leaves_nothing_behind(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in [
        (["train", "nonsense"], "preset: got 'nonsense'"),
        (["train", "agent.lr=quick"], "agent.lr: got 'quick'"),
        (["train", "--resume", "nowhere"], "run: got 'nowhere'; allowed is the path of a run's folder"),
        (["test", "latest"], "run: got 'latest'"),
        (["show", "env.width=0"], "env.width: got 0"),
        (["train", "ntm-copy", "twice"], "'twice': expected key=value"),
        (
            ["train", "ntm-copy", "env={type: stream, envs: [copy, mqar]}"],
            "env.envs.1: has token inputs; the first has",
        ),
        (
            ["train", *EVOLVE, "agent.strategy={type: neat, population: 4}"],
            "agent.strategy: got neat, which evolves one network of any topology, of which there are 0; it needs",
        ),
        (["train", "ppo-cartpole", "agent.minibatches=7"], "agent.minibatches: got 7; allowed is what divides"),
    ]:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert f"papertape: {message}" in error
        assert "Traceback" not in error
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["backend=triton"], "backend: 'triton' cannot run this circuit: it runs on GPUs, and inputs are on the CPU"),
        (["backend=native", "precision=bfloat16"], "backend: 'native' cannot run this circuit: it has no autocast"),
        (
            ["backend=native", "circuit.controller.type=direct"],
            "backend: 'native' cannot run this circuit: it has no DirectController",
        ),
        (
            ["backend=native", "agent.type=mixed"],
            "backend: got 'native'; allowed with agent.type 'mixed': auto, eager",
        ),
        (["circuit.memory_size=9999999999999"], "circuit.memory_size: got 9999999999999; allowed: at most 10000000"),
        (
            ["circuit.memory_size=99999999999999999"],
            "circuit.memory_size: got 99999999999999999; allowed: ",
        ),
        (["device=meta"], "device: got 'meta'; allowed: auto, cpu, cuda, cuda:1 and so on, "),
        (["device=gpu"], "device: got 'gpu'; allowed: auto, cpu, cuda, cuda:1 and so on, "),
        (["device=1"], "device: got 1; allowed: a valid string"),
        (["device=cuda:99"], "device: got 'cuda:99'; torch finds "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_run_here_leaves_nothing_behind(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    small = last_of_each("device=cpu", "agent.batch_size=1", "plots=off", *arguments)
    assert main(["train", "ntm-copy", *small]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "left out" not in line]
    assert len(said) == 1 and said[0].startswith(f"papertape: {message}"), said
    assert list(folder.iterdir()) == []


def test_memory_that_runs_out_later_is_one_line_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(BackpropAgent, "train_step", lambda agent: torch.empty(10**15))
    assert main(["train", "ntm-copy", *SMALL, "plots=off"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("papertape: train: there is not enough memory; 3,725,2")


def made_elsewhere(directory: Path) -> None:
    """Make it look as if a run had been trained on a GPU that is not here."""
    for name in ("latest", "best"):
        path = directory / "checkpoints" / f"{name}.pt"
        content = checkpoint.load(path)
        content["options"] |= {"device": "cuda:99", "backend": "triton"}
        checkpoint.save(path, content)
    path = directory / "options.yaml"
    path.write_text(
        path.read_text().replace("device: cpu", "device: cuda:99").replace("backend: auto", "backend: triton")
    )
    assert "cuda:99" in path.read_text() and "triton" in path.read_text()


def test_a_run_that_was_made_on_another_machine(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["train", "ntm-copy", *SMALL, "agent.steps=5", "plots=off"]) == 0
    directory = run_directory(folder)
    made_elsewhere(directory)
    circuit = papertape.load_circuit(directory / "checkpoints" / "best.pt")
    assert isinstance(circuit, papertape.NTM) and circuit.backend == "auto"
    capsys.readouterr()
    assert main(["test", "latest"]) == 0
    said = capsys.readouterr().err
    assert "device: got 'cuda:99'; torch finds no CUDA devices here; takes auto" in said
    assert "backend: 'triton' cannot run this circuit: it runs on GPUs" in said
    assert not (directory / "test" / "checkpoints").exists()
    assert main(["test", "latest", "backend=triton"]) == 2
    assert "papertape: backend: 'triton' cannot run this circuit" in capsys.readouterr().err
    assert main(["train", "--resume", "latest", "agent.steps=7"]) == 0
    assert states(directory)["step"] == 7
    assert "device: 'cuda:99' -> 'auto'" in (directory / "log").read_text()


def test_a_circuit_is_built_without_its_env(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["train", "ntm-copy", *SMALL, "agent.steps=5", "plots=off"]) == 0
    path = run_directory(folder) / "checkpoints" / "best.pt"

    def build_env(*arguments: object) -> None:
        raise AssertionError("an env was built")

    monkeypatch.setattr(factory, "build_env", build_env)
    assert papertape.load_circuit(path).input_size == 5


def test_a_run_that_goes_on_says_what_is_new_and_keeps_what_was(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "ntm-copy", *SMALL, "agent.steps=5", "plots=off"]) == 0
    directory = run_directory(folder)
    first = (directory / "options.yaml").read_text()
    assert main(["train", "--resume", "latest", "seed=5"]) == 2
    assert "papertape: seed: 1 -> 5; a run that goes on keeps it" in capsys.readouterr().err
    assert main(["train", "--resume", "latest"]) == 0
    assert not list(directory.glob("options-*"))
    assert main(["train", "--resume", "latest", "agent.steps=6", "precision=float64"]) == 0
    log = (directory / "log").read_text()
    assert "agent.steps: 5 -> 6" in log and "precision: 'float32' -> 'float64'" in log
    assert (directory / "options-until-5.yaml").read_text() == first
    assert yaml.safe_load((directory / "options.yaml").read_text())["agent"]["steps"] == 6


def test_a_run_without_a_checkpoint_starts_from_the_beginning(folder: Path) -> None:
    assert main(["train", "ntm-copy", *SMALL, "agent.steps=6", "plots=off"]) == 0
    directory = run_directory(folder)
    before = states(directory)
    shutil.rmtree(directory / "checkpoints")
    assert main(["train", "--resume", "latest"]) == 0
    assert "has no checkpoint yet: it starts from the beginning" in (directory / "log").read_text()
    assert equal_states(states(directory), before)
    steps = [row["step"] for row in read_metrics(directory / "metrics.jsonl") if "train/loss" in row]
    assert steps == [2, 4, 6]


def test_a_run_whose_latest_checkpoint_is_gone_goes_on_from_its_best(folder: Path) -> None:
    assert main(["train", "ntm-copy", *SMALL, "agent.steps=6", "plots=off"]) == 0
    directory = run_directory(folder)
    before = states(directory)
    (directory / "checkpoints" / "latest.pt").unlink()
    step = checkpoint.load(directory / "checkpoints" / "best.pt")["agent"]["step"]
    assert main(["train", "--resume", "latest"]) == 0
    assert f"goes on at step {step}" in (directory / "log").read_text()
    assert equal_states(states(directory), before)


def test_a_stop_in_the_last_step_stops_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_step = BackpropAgent.train_step

    def interrupted(agent: BackpropAgent) -> dict[str, float]:
        values = train_step(agent)
        if agent.step == 5:
            signal.raise_signal(signal.SIGINT)
        return values

    monkeypatch.setattr(BackpropAgent, "train_step", interrupted)
    reached = ["agent.target_error=1e9", "agent.confirmation_sequences=null"]
    assert main(["train", "ntm-copy", *last_of_each(*SMALL, *reached, "agent.steps=9", "plots=off")]) == 0
    log = (run_directory(folder) / "log").read_text()
    assert "target reached" in log and "done at step 5" in log and "go on with" not in log


def test_damaged_checkpoint_and_other_circuit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SMALL, "agent.steps=5", "plots=off"]) == 0
    directory = run_directory(folder)
    assert main(["train", "--resume", "latest", "circuit.word_size=5", "agent.steps=9"]) == 2
    assert "has shape" in capsys.readouterr().err
    path = directory / "checkpoints" / "latest.pt"
    path.write_bytes(path.read_bytes()[:-7])
    assert main(["train", "--resume", "latest"]) == 2
    assert "is cut off" in capsys.readouterr().err
    path.unlink()
    (directory / "checkpoints" / "best.pt").unlink()
    assert main(["test", "latest"]) == 2
    assert "holds none of best, latest.pt" in capsys.readouterr().err


def test_full_disk_does_not_stop_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, state: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    assert main(["train", *SMALL, "agent.steps=10", "plots=off"]) == 1  # what it has learned is lost
    error = capsys.readouterr().err
    assert error.count("checkpoint latest cannot be written ([Errno 28] No space left on device); the run goes on") == 1
    assert "not saved at step 10: checkpoint " in error
    assert "checkpoint latest cannot be written ([Errno 28] No space left on device); go on with: " in error


def test_circuit_from_a_checkpoint(folder: Path) -> None:
    assert main(["train", *SMALL, "agent.steps=5", "plots=off"]) == 0
    path = run_directory(folder) / "checkpoints" / "best.pt"
    circuit = papertape.load_circuit(path)
    assert isinstance(circuit, papertape.NTM)
    outputs, _ = circuit(torch.zeros(6, 2, 5))
    assert outputs.shape == (6, 2, 3)
    torch.save({"x": 1}, folder / "other.pt")
    with pytest.raises(checkpoint.CheckpointError, match="not a checkpoint of Papertape"):
        papertape.load_circuit(folder / "other.pt")
    checkpoint.save(folder / "empty.pt", {"step": 1})
    with pytest.raises(checkpoint.CheckpointError, match="holds no circuit"):
        papertape.load_circuit(folder / "empty.pt")


def test_names_of_runs_never_collide(folder: Path) -> None:
    names = {new_directory("ntm-copy").name for _ in range(3)}
    assert len(names) == 3


def test_metrics_are_strict_json(folder: Path) -> None:
    assert main(["train", *SMALL, "agent.steps=4", "plots=off"]) == 0
    for line in (run_directory(folder) / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


PROGRAM = "import sys; from papertape.main import main; print('on', flush=True); sys.exit(main())"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_starts_ends_it_without_a_traceback(folder: Path, number: signal.Signals) -> None:
    """While modules are loaded, options read and parts built, and while the program starts again by itself."""
    command = [sys.executable, "-c", PROGRAM, "train", "ntm-copy", *SMALL, "threads=2", "plots=off"]
    for delay in (0.1, 0.3, 0.7, 1.5, 3.0):
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "on\n"
        time.sleep(delay)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert "Traceback" not in said, (delay, said)
        if process.returncode == 0:  # it had begun, and stopped after a step
            assert "stopping after this step" in said and "go on with: " in said
        else:
            assert process.returncode == 128 + number, (delay, said)
            assert said.splitlines()[-1] == "papertape: interrupted"


def test_a_signal_once_it_is_over_changes_nothing(folder: Path) -> None:
    late = "import atexit, os, signal, sys; atexit.register(os.kill, os.getpid(), signal.SIGINT); "
    command = [sys.executable, "-c", late + "from papertape.main import main; sys.exit(main())", "list"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("beside", "hint"),
    [
        (".venv/bin/papertape", "call .venv/bin/papertape instead"),
        ("bootstrap.py", "python3 bootstrap.py train sets everything up"),
        ("py.typed", f"{sys.executable} -m pip install . in a clone of Papertape installs all that it needs"),
    ],
)
def test_without_its_packages_it_says_what_to_do(folder: Path, beside: str, hint: str) -> None:
    """`python3 main.py` outside the environment, and what a wheel has installed."""
    shutil.copy(Path(papertape.__file__).parent / "main.py", folder)
    (folder / beside).parent.mkdir(parents=True, exist_ok=True)
    (folder / beside).touch()
    for arguments in ([], ["train", "ntm-copy"], ["list"], ["page"]):
        command = [sys.executable, "-I", "-S", "main.py", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        (line,) = done.stderr.splitlines()
        assert f"papertape is not installed for {sys.executable}; " in line
        assert hint in line
        assert done.returncode == 2


def test_the_default_preset_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert f"default preset: {options.DEFAULT_PRESET}" in capsys.readouterr().out


def test_help_comes_before_torch(folder: Path) -> None:
    code = "import sys; from papertape.main import main\ntry: main(['--help'])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert "usage: papertape" in done.stdout and done.stdout.endswith("False\n")


def test_the_page_is_started_shown_and_stopped(folder: Path) -> None:
    """By the command line, as often as one likes, and not twice."""
    pytest.importorskip("visdom")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "HOME": str(folder)}

    def call(*arguments: str) -> str:
        command = [sys.executable, "-m", "papertape.main", "page", *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    try:
        for _ in range(2):
            said = call("--port", str(port))
            assert f"http://localhost:{port} shows the newest run and lists the others" in said
        with urllib.request.urlopen(f"http://localhost:{port}", timeout=10) as answer:
            assert "no run yet" in answer.read().decode()
    finally:
        other = port - 1 if port > 1 else port + 1
        assert visdom_server.PORT == PORT
        assert call("stop", "--port", str(other)) == f"no page is running at port {other}\n"
        assert call("stop", "--port", str(port)) == f"stopped at port {port}\n"
    assert call("stop") == "no page is running\n"


@pytest.mark.parametrize("active", [True, False])
def test_commands_in_hints_work_as_they_stand(folder: Path, monkeypatch: pytest.MonkeyPatch, active: bool) -> None:
    """Whether or not the environment is active in the shell."""
    binaries = folder / "a b" / "bin"
    binaries.mkdir(parents=True)
    for name in ("papertape", "python", "pip"):
        (binaries / name).write_text(f"#!/bin/sh\necho {name} $@\n")
        (binaries / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(binaries / "python"))
    monkeypatch.setenv("PATH", f"{binaries}:/usr/bin:/bin" if active else "/usr/bin:/bin")
    hints = {"papertape test runs/1": "papertape test runs/1", "pip install a && pip install b": None}
    for hint, said in hints.items():
        shown = install.here(hint)
        assert (shown == hint) == active
        for shell in filter(shutil.which, ("sh", "bash", "fish", "zsh")):
            done = subprocess.run([shell, "-c", shown], cwd=folder, capture_output=True, text=True, check=True)
            pips = "pip install a\npip install b" if active else "python -m pip install a\npython -m pip install b"
            assert done.stdout == f"{said or pips}\n"
    (binaries / "papertape").unlink()
    root = Path(papertape.__file__).parent
    assert install.here("papertape page") == f"'a b/bin/python' {root / 'main.py'} page"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["lr=3e-3"], "lr: unknown option; did you mean 'agent.lr'?"),
        (["hidden_size=3"], "hidden_size: unknown option; did you mean 'circuit.controller.hidden_size'?"),
        (
            ["circuit.hidden_size=3"],
            "circuit.hidden_size: unknown option; did you mean 'circuit.controller.hidden_size'?",
        ),
        (["batchsize=3"], "batchsize: unknown option; did you mean 'agent.batch_size'?"),
        (["type=dnc"], "type: unknown option; did you mean 'circuit.type'?"),
        (["controller=gru"], "controller: unknown option; did you mean 'circuit.controller'?"),
        (["circuit.controller.lr=1"], "circuit.controller.lr: unknown option; did you mean 'agent.lr'?"),
        (["name=a/b"], "name: got 'a/b'; allowed: a letter or digit"),
        (["name=latest"], "name: got 'latest'; allowed: another one, for this is the newest run"),
        (["name=main"], "name: got 'main'; allowed: another one, for this is visdom's own page"),
        ([f"name={'語' * 90}"], f"name: got '{'語' * 90}'; allowed: a letter or digit"),
        (["ntm-copy", "dnc-copy"], "'dnc-copy': expected key=value, such as agent.lr=3e-4; the preset is 'ntm-copy'"),
        (["env.test_lengths.1=0"], "env.test_lengths.1: got 0; allowed: greater than or equal to 1"),
        (["env.test_lengths.9=1"], "env.test_lengths.9: env.test_lengths is the list [20, 40, 80, 120]; allowed after"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_hints(folder: Path, words: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"papertape: {hint}")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--lr", "3e-3"], "agent.lr=3e-3"),
        (["ntm-copy", "--lr=3e-3", "--batch-size", "4"], "agent.lr=3e-3 agent.batch_size=4"),
        (["--circuit.type", "dnc"], "circuit.type=dnc"),
        (["--agent.lr", "-1"], "agent.lr=-1"),
        (["mnist-es", "--population=8"], "agent.strategy.population=8"),
        (["--seed", "3"], "seed=3"),
        (["--test-lengths", "9", "--test-lengths=[8]"], "env.test_lengths=[9] env.test_lengths=[8]"),
    ],
    ids=" ".join,
)
def test_options_with_dashes(words: list[str], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["train", *words])
    assert capsys.readouterr().err.endswith(f"; options of a run have no dashes: {meant}\n")


def test_a_preset_beside_a_run_is_refused_with_a_hint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SMALL, "agent.steps=2", "plots=off", "name=one"]) == 0
    capsys.readouterr()
    for words in (["train", "ntm-copy", "--resume", "one"], ["test", "one", "ntm-copy"]):
        assert main(words) == 2
        assert capsys.readouterr().err.startswith(
            "papertape: 'ntm-copy': expected key=value, such as agent.lr=3e-4; a run"
        )
    assert main(["train", "--resume", "one", "name=two"]) == 2
    assert capsys.readouterr().err.startswith("papertape: name: got 'two'; a run that goes on keeps its folder")
    assert main(["train", *SMALL, "agent.steps=2", "plots=off", "name=one"]) == 2
    assert "name: got 'one'; runs/one is there already, --resume runs/one goes on with it" in capsys.readouterr().err
    # Its options file begins another run.
    assert main(["train", "runs/one/options.yaml", "seed=3"]) == 0


def test_weights_that_a_killed_run_had_come_to_stay_the_best_until_there_are_better_ones(folder: Path) -> None:
    words = [word for word in SMALL if not word.startswith(("agent.evaluate_every", "agent.save_every"))]
    words += ["agent.evaluate_every=5", "agent.save_every=100", "agent.lr=0.01", "plots=off", "name=run"]
    assert main(["train", *words, "agent.steps=10"]) == 0
    checkpoints = Path("runs/run/checkpoints")
    before = (checkpoints / "latest.pt").read_bytes()
    assert main(["train", "--resume", "run", "agent.steps=40"]) == 0
    best = load_agent_state(Path("runs/run"), ("best",))
    assert best["step"] > 10, "or nothing is tested here"
    (checkpoints / "latest.pt").write_bytes(before)  # as if killed before another one was saved
    assert main(["train", "--resume", "run", "agent.lr=1e-9", "agent.final_lr=1e-9", "agent.steps=41"]) == 0
    assert load_agent_state(Path("runs/run"))["best_error"] == best["best_error"]
    kept = load_agent_state(Path("runs/run"), ("best",))
    assert (kept["step"], kept["best_error"]) == (best["step"], best["best_error"])


@pytest.mark.parametrize("word", ["name=other", "start=latest"])
def test_a_test_takes_the_weights_of_its_run_and_goes_to_its_folder(
    folder: Path, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "seed=2", *SMALL, "agent.steps=1", "plots=off", "name=mine"]) == 0
    assert main(["test", "mine", word]) == 2
    key, _, value = word.partition("=")
    assert f"papertape: {key}: got {value!r}; a test" in capsys.readouterr().err
    assert not (folder / "runs" / "mine" / "test").exists()


def test_a_run_that_can_only_be_read_is_compared_and_has_no_test_of_its_own(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["train", *SMALL, "agent.steps=1", "name=mine", "plots=off"]) == 0
    before = {*(folder / "runs" / "mine").iterdir()}
    write = comparison.replace_text
    capsys.readouterr()

    def refuse(path: Path, text: str) -> None:
        if path.parent.name == "mine":
            raise PermissionError(13, "Permission denied", str(path))
        write(path, text)

    with monkeypatch.context() as patched:
        patched.setattr(comparison, "replace_text", refuse)
        assert main(["compare", "mine", "--sequences", "4"]) == 0
    said = capsys.readouterr()
    assert "| all | 1 | median | 1 |" in said.out and "failed" not in said.out
    (line,) = [line for line in said.err.splitlines() if "cannot be kept" in line]
    assert line.endswith("cannot be kept ([Errno 13] Permission denied: 'runs/mine/tested.json')")

    monkeypatch.setattr(os, "access", lambda path, mode: mode & os.W_OK == 0)
    assert main(["test", "mine"]) == 2
    refused = capsys.readouterr().err
    assert "runs/mine cannot be written; test a copy of the run, or have its errors from: " in refused
    assert refused.endswith(f"{install.here('papertape compare runs/mine')}\n")
    assert {*(folder / "runs" / "mine").iterdir()} == before


def test_a_path_that_is_not_utf_8_is_refused_before_anything_is_made(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = folder / os.fsdecode(b"odd\xe9")
    try:
        odd.mkdir()
    except OSError:
        pytest.skip("here no folder has such a name")
    assert main(["train", *SMALL, "agent.steps=1", "name=mine", "plots=off"]) == 0
    shutil.copytree(folder / "runs" / "mine", odd / "mine")
    capsys.readouterr()

    def refused(*words: str) -> str:
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "allowed is a path that can be written as UTF-8" in line and repr(str(odd))[:-1] in line
        return line

    begin = [*SMALL, "agent.steps=1", "plots=off"]
    assert refused("compare", "mine", str(odd / "mine")).startswith("papertape: run: got ")
    assert refused("test", str(odd / "mine")).startswith("papertape: run: got ")
    assert refused("test", str(odd / "mine" / "checkpoints" / "best.pt")).startswith("papertape: run: got ")
    monkeypatch.chdir(odd)
    assert refused("train", *begin, "start=mine/checkpoints/best.pt").startswith("papertape: start: got ")
    for words in (["train"], ["train", "name=mine"], ["sweep", "seed=1..2"]):
        assert refused(*words, *begin).startswith("papertape: run: got ")
    assert [path.name for path in odd.iterdir()] == ["mine"] and len(list((folder / "runs").iterdir())) == 1


def test_a_kept_test_that_is_damaged_is_made_again(folder: Path) -> None:
    assert main(["train", *SMALL, "agent.steps=1", "name=mine", "plots=off"]) == 0
    errors = comparison.errors_on_test(Path("runs/mine"), 4)
    kept = folder / "runs" / "mine" / "tested.json"
    whole = json.loads(kept.read_text())
    for damaged in ([], {"length 3": "low"}, {"length 3": 10**310}):
        kept.write_text(json.dumps({**whole, "errors": damaged}))
        assert comparison.errors_on_test(Path("runs/mine"), 4) == errors


def test_a_terminal_that_lacks_characters_gets_others(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "papertape.main", "list"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "Del\\xe9tang" in done.stdout and not done.stderr


def test_what_nobody_reads_ends_without_a_word(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "papertape.main", "list"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == -signal.SIGPIPE


def train_closed(folder: Path, closed: str, *words: str) -> None:
    """With files of the terminal that a shell has closed."""
    command = [sys.executable, "-m", "papertape.main", "train", *words, "plots=off", "threads=1"]
    done = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *command], cwd=folder, capture_output=True)
    log = (run_directory(folder) / "log").read_text()
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b""), log
    assert "done at step 2" in log and (run_directory(folder) / "checkpoints" / "latest.pt").exists()


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_a_run_needs_no_terminal(folder: Path, closed: str) -> None:
    train_closed(folder, closed, "ntm-copy", *SMALL, "agent.steps=2")


def test_processes_that_play_episodes_need_no_terminal(folder: Path) -> None:
    pytest.importorskip("gymnasium")
    small = ["agent.generations=2", "agent.batch_size=1", "agent.strategy.population=2", "device=cpu"]
    train_closed(folder, "2>&-", "gym-cartpole", "env.vectorization=async", "env.workers=1", *small)


def test_a_table_that_nobody_reads_ends_without_a_word_after_all_runs(folder: Path) -> None:
    sweep = ["sweep", "seed=1,2", *SMALL, "agent.steps=1", "plots=off", "name=mine", "--jobs", "1"]
    command = [sys.executable, "-m", "papertape.main", *sweep]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        *_, line = process.stderr.read().splitlines()
        assert "seed=2: done" in line
    assert process.returncode == 128 + signal.SIGPIPE


def test_runs_are_called_after_their_preset_and_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs"]) == 2
    assert "runs: there are none in runs/" in capsys.readouterr().err
    assert main(["train", "seed=2", "dnc-repeat-copy", *SMALL[:1], *SMALL[3:], "agent.steps=5", "plots=off"]) == 0
    (directory,) = (folder / "runs").iterdir()
    assert re.fullmatch(r"dnc-repeat-copy_\d{12}", directory.name)
    assert main(["runs"]) == 0
    heads, line = capsys.readouterr().out.splitlines()
    assert heads.split() == ["run", "preset", "step", "error", "when"]
    assert line.split()[:4] == [directory.name, "dnc-repeat-copy", "5", "done"]
    assert re.search(r"[\d.]+ bits wrong  \d{4}-\d\d-\d\d \d\d:\d\d$", line)
    for damaged in ("summary.json", "options.yaml"):
        (directory / damaged).write_text("{")
        assert main(["runs"]) == 0
    (directory / "metrics.jsonl").unlink()
    (directory / "metrics.jsonl").mkdir()
    capsys.readouterr()
    assert main(["runs"]) == 0
    said = capsys.readouterr().out
    assert directory.name in said and "metrics.jsonl cannot be read: Is a directory" in said


def test_sizes_and_rates_that_bode_ill_are_said_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["circuit.memory_size=8", "agent.lr=1", "agent.steps=80", "agent.evaluation_sequences=2", "device=cpu"]
    small += ["agent.warmup_steps=0", "agent.retry_every=null", "env.test_lengths=[20]", "plots=off"]
    assert main(["train", *small]) == 0
    said = capsys.readouterr().err
    assert said.count("circuit.memory_size: 8 slots are few for this task, whose sequences have up to 20 words") == 1
    assert said.count("agent.lr: 1.0 is 1,000 times the usual 0.001 of this optimiser") == 1
    assert said.count("training diverges; try an agent.lr below 1.0") == 1
    assert main(["train", *SMALL, "agent.steps=80", "plots=off"]) == 0
    said = capsys.readouterr().err
    assert not any(word in said for word in ("slots are few", "the usual", "diverges", "GiB"))


def test_memory_that_a_run_takes_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    large = ["circuit.memory_size=1024", "env.max_length=200", "agent.batch_size=16", "plots=off", "device=cpu"]
    factory.build(read_arguments(["dnc-copy", *large, "agent.retry_every=null"]))
    (line,) = caplog.messages
    assert re.match(r"memory: this run takes about [78]\.\d GiB, what the backward pass keeps most of it", line)
    caplog.clear()
    factory.build(read_arguments(["dnc-copy", "device=cpu"]))
    assert not caplog.messages


def test_ctrl_c_that_is_ignored_at_the_start_stays_ignored(folder: Path) -> None:
    """As it is for what a shell's script runs in the background; SIGTERM stops it."""
    command = [sys.executable, "-c", PROGRAM, "train", "ntm-copy", *SMALL, "threads=1", "plots=off", "name=run"]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_deaf
    )
    deadline = time.monotonic() + 120
    while not (folder / "runs/run/checkpoints/latest.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0 and said.count("stopping after this step") == 1


def _deaf() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def test_a_signal_while_a_line_is_being_written_saves_and_stops(folder: Path) -> None:
    """The terminal, or what reads the lines in its place, takes no more of them at that moment."""
    reads, writes = os.pipe()
    fcntl.fcntl(writes, 1031, 4096)  # F_SETPIPE_SZ
    command = [sys.executable, "-c", PROGRAM, "train", "ntm-copy", *SMALL, "threads=1", "plots=off", "name=run"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(command, cwd=folder, stdout=writes, stderr=writes, env=environment)
    os.close(writes)
    log, size, same = folder / "runs/run/log", -1, 0
    deadline = time.monotonic() + 120
    while same < 8 and time.monotonic() < deadline:  # until the pipe is full
        time.sleep(0.25)
        now = log.stat().st_size if log.exists() else -1
        size, same = now, same + 1 if now == size > 2000 else 0
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    with open(reads, "rb") as file:
        said = file.read().decode()
    assert process.wait(60) == 0, said
    assert "Traceback" not in said and "go on with: " in said
    assert (folder / "runs/run/checkpoints/latest.pt").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--resume", ""], "run: got ''"),
        (["sweep", "--resume", ""], "sweep: got ''"),
        (["league", "--resume", ""], "league: got ''"),
        (["league", "--circuits", ""], "--circuits: got "),
        (["league", "--tasks", ""], "--tasks: got "),
        (["league", "--seeds", ""], "--seeds"),
        (["show", ""], "got ''"),
        (["train", "device=cuda:99999999999999999999"], "device: got 'cuda:99999999999999999999'; allowed"),
        (["train", "device=cuda:\u0663"], "allowed: auto"),
        (["train", "one-shot", "env.data=nope"], "env.data: got 'nope'"),
        (["train", "permuted-mnist", "env.images=copy"], "env.images: got a CopyEnv"),
        (["page", "--port", "99999999"], "'99999999'; allowed: 1 to 65535"),
        (["page", "--port", "-1"], "--port"),
        (["page", "fetch", "--port", "8098"], "page: --port: got 8098; allowed with start and stop"),
    ],
)
def test_what_is_empty_or_out_of_range_is_refused(
    words: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(words)
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert said in capsys.readouterr().err
    assert not (folder / "runs").exists()


def test_the_best_weights_of_another_task_are_judged_by_the_one_that_a_run_goes_on_with(folder: Path) -> None:
    words = ["env.width=1", "env.max_length=1", "env.test_lengths=[]", "circuit={type: gru, hidden_size: 32}"]
    words += ["agent.lr=0.01", "agent.steps=100", "agent.evaluate_every=50", "agent.evaluation_sequences=64"]
    words += [f"agent.{name}=null" for name in ("retry_every", "target_error", "confirmation_sequences")]
    assert main(["train", *words, "plots=off", "name=run", "device=cpu"]) == 0
    assert load_agent_state(Path("runs/run"), ("best",))["best_error"] == 0
    assert main(["train", "--resume", "run", "env.max_length=4", "agent.steps=101"]) == 0
    kept = load_agent_state(Path("runs/run"))["best_error"]
    assert 0 < kept < math.inf, "the weights of step 100, on strings of up to 4"
    assert main(["train", "--resume", "run", "agent.steps=102", "agent.evaluation_batch_size=7"]) == 0
    assert load_agent_state(Path("runs/run"))["best_error"] != kept, "other sequences"
    Path("runs/run/checkpoints/best.pt").write_bytes(b"damaged")
    assert main(["train", "--resume", "run", "agent.steps=103", "agent.evaluation_batch_size=64"]) == 0
    assert load_agent_state(Path("runs/run"), ("best",))["step"] == 103
    assert main(["train", "--resume", "run", "agent.steps=400"]) == 0
    best = load_agent_state(Path("runs/run"), ("best",))
    assert best["step"] > 101 and best["best_error"] < kept


@pytest.mark.parametrize(
    ("change", "step"),
    [
        ("env.max_length=4", 7),
        ("env.curriculum.type=growing", 7),
        ("agent.evaluation_sequences=9", 7),
        ("agent.confirmation_sequences=9", 7),
        ("agent.target_error=1e8", 7),
        ("agent.lr=1e-3", 5),
    ],
)
def test_a_target_that_was_reached_is_looked_at_again_once_it_is_another(
    folder: Path, change: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = ["agent.target_error=1e9", "agent.confirmation_sequences=null", "agent.steps=7"]
    assert main(["train", "ntm-copy", *last_of_each(*SMALL, *reached), "plots=off", "name=run"]) == 0
    assert states(Path("runs/run"))["step"] == 5
    monkeypatch.setattr(LearningAgent, "_confirmed", lambda agent: False)
    assert main(["train", "--resume", "run", change]) == 0
    assert states(Path("runs/run"))["step"] == step
    judged = [row["step"] for row in read_metrics(Path("runs/run/metrics.jsonl")) if "answered" in row]
    assert judged == ([5, 7] if step == 7 else [5])


class Crash(Exception):
    """Not one that the command line reports."""


def crash(agent: BackpropAgent) -> dict[str, float]:
    raise Crash


def test_a_change_whose_first_start_was_killed_is_still_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["train", *SMALL, "agent.steps=5", "plots=off", "name=run"]) == 0
    first = Path("runs/run/options.yaml").read_text()
    train_step = BackpropAgent.train_step
    monkeypatch.setattr(BackpropAgent, "train_step", crash)
    with pytest.raises(Crash):
        main(["train", "--resume", "run", "env.max_length=9", "agent.steps=6"])
    monkeypatch.setattr(BackpropAgent, "train_step", train_step)
    assert read_options(Path("runs/run"))["env"]["max_length"] == 9
    judged: list[int] = []
    monkeypatch.setattr(BackpropAgent, "judge_anew", lambda agent, best: judged.append(best["step"]))
    assert main(["train", "--resume", "run"]) == 0
    assert judged == [5]
    assert Path("runs/run/log").read_text().count("env.max_length: 3 -> 9") == 2
    assert Path("runs/run/options-until-5.yaml").read_text() == first
    assert main(["train", "--resume", "run"]) == 0
    assert judged == [5], "what was saved meanwhile has it"


def test_each_agent_says_which_of_its_options_decide_what_validation_finds(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in entries("agent").values():
        if issubclass(kind, LearningAgent):
            assert set(kind.judging) <= options_of(kind).model_fields.keys()
    words = ["ppo-cartpole", "circuit.controller.hidden_size=4", "circuit.memory_size=4", "circuit.word_size=3"]
    words += ["device=cpu", "agent.batch_size=2", "agent.rollout_steps=4", "agent.minibatches=1", "agent.epochs=1"]
    words += ["agent.evaluation_actions=sampled", "agent.evaluation_sequences=2", "agent.evaluate_every=1"]
    assert main(["train", *words, "agent.updates=1", "agent.target_error=null", "plots=off", "name=run"]) == 0
    judged: list[int] = []
    monkeypatch.setattr(PPOAgent, "judge_anew", lambda agent, best: judged.append(best["step"]))
    for change, times in (("agent.discount=0.9", 0), ("agent.initial_deviation=0.5", 1), ("precision=float64", 2)):
        agent = prepare(choose_resumed([change], Path("runs/run")), Processes()).agent
        assert judged == [1] * times and isinstance(agent, PPOAgent)
        assert bool(agent.last_validation) == (change == "agent.discount=0.9"), "that of this step is made again"


def test_best_weights_of_a_change_that_was_taken_back_are_judged_as_the_run_goes_on(folder: Path) -> None:
    words = last_of_each(*SMALL, "agent.save_every=100", "agent.lr=0.1", "env.test_lengths=[]")
    assert main(["train", *words, "agent.steps=5", "plots=off", "name=run"]) == 0
    kept = Path("runs/run/checkpoints/latest.pt").read_bytes()
    # Easier: what is found there is the best for ever, unless it is judged by the task that the run goes on with.
    assert main(["train", "--resume", "run", "env.max_length=1", "agent.steps=10"]) == 0
    Path("runs/run/checkpoints/latest.pt").write_bytes(kept)  # as if killed before another one was saved
    best = load_agent_state(Path("runs/run"), ("best",))
    assert best["step"] == 10
    agent = prepare(choose_resumed(["env.max_length=3", "agent.steps=5"], Path("runs/run")), Processes()).agent
    assert isinstance(agent, BackpropAgent)
    found = agent.best_error
    agent.judge_anew(best)
    assert found == agent.best_error > best["best_error"]


def test_what_is_written_into_the_options_of_a_run_counts_as_given(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *SMALL, "agent.steps=5", "plots=off", "name=run"]) == 0
    path = Path("runs/run/options.yaml")
    first = path.read_text()
    path.write_text(first.replace("\nseed: 1\n", "\nseed: 2\n"))
    assert main(["train", "--resume", "run"]) == 2
    assert "papertape: seed: 1 -> 2; a run that goes on keeps it" in capsys.readouterr().err
    path.write_text("# mine\n" + first.replace("max_length: 3\n", "max_length: 4\n"))
    assert main(["train", "--resume", "run"]) == 0
    assert "env.max_length: 3 -> 4" in Path("runs/run/log").read_text()
    assert Path("runs/run/options-until-5.yaml").read_text() == first
    path.write_text("# mine\n" + path.read_text())
    capsys.readouterr()
    assert main(["train", "--resume", "run"]) == 0
    assert "->" not in capsys.readouterr().err


def test_options_of_a_run_in_whose_path_values_are_may_be_begun_with(folder: Path) -> None:
    assert main(["sweep", *SMALL, "agent.steps=1", "seed=1,2", "--jobs", "1", "--sequences", "4"]) == 0
    (first,) = Path("runs").glob("*/seed=1/options.yaml")
    assert main(["train", str(first), f"start={first.parent}", "agent.steps=2", "name=second"]) == 0
    assert read_options(Path("runs/second"))["start"].startswith(str(first.parent.absolute()))


def test_what_was_tested_is_tested_again_once_the_task_has_changed(folder: Path) -> None:
    assert main(["train", *SMALL, "agent.steps=4", "plots=off", "name=run"]) == 0
    before = comparison.errors_on_test(Path("runs/run"), 4)
    assert comparison.errors_on_test(Path("runs/run"), 4) == before
    assert main(["train", "--resume", "run", "env.test_lengths=[7]"]) == 0
    assert "length 7" not in before and "length 7" in comparison.errors_on_test(Path("runs/run"), 4)


EIGHT = ["agent.evaluation_sequences=8", "agent.evaluation_batch_size=3"]
ALIKE = [*EIGHT, "seed=3", "device=cpu", "plots=off", "name=run"]


def errors_of_test(run: str) -> dict[str, float]:
    """What ``papertape test`` finds of a run on each set."""
    assert main(["test", run]) == 0
    (row,) = read_metrics(Path("runs") / run / "test" / "metrics.jsonl")
    summary = read_summary(Path("runs") / run)
    assert summary is not None
    ending = f"/{summary.metric}"
    return {key[len("test/") : -len(ending)]: value for key, value in row.items() if key.endswith(ending)}


def test_dropout_is_off_where_runs_are_compared(folder: Path) -> None:
    deep = ["circuit.controller.num_layers=2", "circuit.controller.dropout=0.9"]
    assert main(["train", "ntm-copy", *last_of_each(*SMALL, *ALIKE, *deep, "agent.steps=5")]) == 0
    assert comparison.errors_on_test(Path("runs/run"), 8) == pytest.approx(errors_of_test("run"))
    assert not papertape.load_circuit("runs/run/checkpoints/best.pt").training


STREAM = ["env.bits=8", "env.slow_bits=7", "env.units=5", "env.every=16", "agent.batch_size=8"]


def test_a_stream_is_compared_on_the_task_that_its_run_came_to(folder: Path) -> None:
    often = ["agent.steps=20", "agent.evaluate_every=20", "agent.log_every=20", "agent.save_every=20"]
    assert main(["train", "slowly-changing", *ALIKE, *STREAM, *often]) == 0
    assert states(folder / "runs" / "run")["env"] == {"seen": 160}
    assert comparison.errors_on_test(Path("runs/run"), 8) == pytest.approx(errors_of_test("run"))
    content = checkpoint.load(Path("runs/run/checkpoints/best.pt"))
    content["agent"]["env"] = {"level": 3}
    checkpoint.save(Path("runs/run/checkpoints/best.pt"), content)
    with pytest.raises(ValueError, match=r"env\.every=9: .* does not fit .* env state: got level"):
        comparison.errors_on_test(Path("runs/run"), 8, ["env.every=9"])
    del content["agent"]["env"]  # as of an agent that keeps none
    checkpoint.save(Path("runs/run/checkpoints/best.pt"), content)
    assert comparison.errors_on_test(Path("runs/run"), 8).keys() == {"current task"}


def test_what_was_tested_is_tested_again_once_the_agent_acts_otherwise(folder: Path) -> None:
    few = ["agent.updates=1", "agent.batch_size=2", "agent.rollout_steps=4", "agent.minibatches=1"]
    assert main(["train", "ppo-tmaze", *few, *ALIKE, "agent.target_error=null"]) == 0
    found = comparison.errors_on_test(Path("runs/run"), 2)
    path, kept = (folder / "runs" / "run" / name for name in ("options.yaml", "tested.json"))
    marked = dict.fromkeys(found, 0.25)
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"errors": marked}))
    assert comparison.errors_on_test(Path("runs/run"), 2) == marked
    path.write_text(path.read_text().replace("evaluation_actions: likeliest", "evaluation_actions: sampled"))
    assert comparison.errors_on_test(Path("runs/run"), 2) != marked


def test_options_of_a_test_that_there_are_not_are_refused_before_runs_are_compared(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *SMALL, "agent.steps=2", "plots=off", "name=run"]) == 0
    assert main(["compare", "run", "--test-option", "foo=1"]) == 2
    assert "foo" in capsys.readouterr().err
    assert [path.name for path in (folder / "runs").iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("env.width=2", "input_size"),
        ("circuit.word_size=5", "weight"),
        ("circuit.controller.type=gru", "weight"),
    ],
)
def test_options_of_a_test_that_what_was_trained_does_not_fit_are_named_in_one_line(
    option: str, why: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *SMALL, "agent.steps=2", "plots=off", "name=run"]) == 0
    blocks = {
        name: block for name, block in read_options(Path("runs/run")).items() if name in ("env", "agent", "circuit")
    }
    league = {"about": "x", "score": "error", "common": blocks, "tasks": {"copy": {}}, "circuits": {"ntm": {}}}
    Path("mine.yaml").write_text(yaml.safe_dump(league))
    for words in (
        ["test", "run", option],
        ["compare", "run", "--test-option", option],
        ["sweep", *SMALL, "agent.steps=2", "seed=1,2", "--test-option", option],
        ["league", "mine.yaml", "--test-option", option],
    ):
        capsys.readouterr()
        assert main(words) == 2
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("papertape: "))
        assert line.startswith(f"papertape: {option}: what was trained does not fit a test with that: ")
        assert words[0] == "test" or why in line
        assert [path.name for path in (folder / "runs").iterdir()] == ["run"]


@pytest.mark.parametrize("options", [[], ["circuit.tied_bits=false"]])
def test_a_tape_whose_words_are_not_fed_back_evolves(folder: Path, options: list[str]) -> None:
    words = ["tape-copy", "plots=off", "agent.generations=1", "circuit.read_feedback=false", "agent.batch_size=4"]
    assert main(["train", *words, *options]) == 0
