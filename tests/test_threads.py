"""How many CPU threads a run takes, and how they wait."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from papertape.core.openmp import QUIET
from papertape.main import main
from papertape.utils.commands.arguments import read_arguments
from papertape.utils.commands.show import resolved

SMALL = ["env.max_length=2", "env.test_lengths=[3]", "circuit.memory_size=8", "agent.batch_size=2", "agent.steps=1"]
SMALL += ["agent.evaluation_sequences=2", "agent.retry_every=null", "plots=off", "device=cpu"]
LARGE = ["circuit.controller.hidden_size=512", "agent.batch_size=64"]


@pytest.mark.parametrize(
    ("arguments", "threads"),
    [
        (["ntm-copy"], 1),
        (["tmaze-single"], 1),
        (["sam-copy"], 1),
        (["neat-xor"], 1),
        (["ntm-copy", *LARGE], 5),
        (["mnist-es", "env.type=xor", "agent.batch_size=20000"], 5),
        (["ntm-copy", "threads=3"], 3),
        (["ntm-copy", *LARGE, "threads=3"], 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_one_thread_where_little_is_calculated(
    arguments: list[str], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    said = f"threads: {threads}\n" if threads == 3 else f"threads: auto  # {threads} here\n"
    assert said in resolved(read_arguments(arguments))


def test_several_threads_sleep_while_they_wait(tmp_path: Path) -> None:
    """A program that the command line started says so to OpenMP before it loads torch; its log names the threads."""
    environment = {name: value for name, value in os.environ.items() if name not in QUIET}
    code = """
import os, sys
from papertape import main
from papertape.core import openmp

def say():
    wait()
    print("torch" in sys.modules, openmp.QUIET.items() <= os.environ.items())

wait, openmp.sleep_while_waiting = openmp.sleep_while_waiting, say
sys.exit(main.main())
"""
    small = [word for word in SMALL if "memory" not in word]
    words = ["train", "ntm-copy", *small, "circuit.type=lstm", "threads=2"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "False True\n", done.stderr
    assert "2 CPU thread(s)" in done.stderr
    assert done.stderr.count("circuit.type=lstm: left out") == 1  # it said so twice, for it began twice


def test_a_program_that_calls_it_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    before = {name: os.environ.get(name) for name in QUIET}
    assert main(["train", "ntm-copy", *SMALL, "threads=2"]) == 0
    assert {name: os.environ.get(name) for name in QUIET} == before


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["sam-copy"], ["tmaze-single", "agent.generations=3"]], ids=" ".join)
def test_on_a_busy_machine(arguments: list[str], tmp_path: Path) -> None:
    """With every core taken by others, auto takes hardly more CPU time than one thread does."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    if arguments[0] == "sam-copy":
        arguments = [*arguments, *SMALL[:2], *SMALL[4:], "agent.steps=30"]
        arguments.remove("agent.steps=1")
    taken: dict[str, tuple[float, float]] = {}

    def turn(threads: str) -> None:
        before, began = os.times(), time.monotonic()
        command = [sys.executable, "-m", "papertape.main", "train", *arguments, "plots=off", threads]
        subprocess.run(list(dict.fromkeys(command)), cwd=tmp_path, capture_output=True, check=True)
        spent = os.times().children_user - before.children_user, time.monotonic() - began
        best = taken.get(threads, spent)
        taken[threads] = min(best[0], spent[0]), min(best[1], spent[1])

    def hardly_more() -> bool:
        one, auto = taken["threads=1"], taken["threads=auto"]
        return auto[0] < 1.5 * one[0] + 1 and auto[1] < 2 * one[1] + 2

    try:
        for _ in range(3):  # what else the machine does may be too much for one of the turns
            turn("threads=1")
            turn("threads=auto")
            if hardly_more():
                return
        raise AssertionError(taken)
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
