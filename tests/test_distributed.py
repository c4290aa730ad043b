"""Several processes as torchrun starts them, from the command line."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from papertape.agents import EvolutionAgent
from papertape.core.distributed import Processes
from papertape.main import main, parser
from papertape.utils import checkpoint, factory
from papertape.utils.commands.train import choose
from papertape.utils.run import read_metrics

SMALL = [
    *("ntm-copy", "env.width=3", "env.max_length=3", "env.test_lengths=[4]", "circuit.controller.hidden_size=8"),
    *("circuit.memory_size=8", "circuit.word_size=4", "device=cpu", "plots=off", "threads=1"),
]
EVERY = ["agent.log_every=2", "agent.evaluate_every=5", "agent.save_every=5", "agent.evaluation_sequences=4"]
BACKPROP = ["train", *SMALL, *EVERY, "agent.batch_size=5", "agent.steps=10", "agent.target_error=null"]
BACKPROP += ["agent.retry_every=null", "agent.warmup_steps=0", "agent.online=true"]
EVOLUTION = [
    *("train", *SMALL, "agent.type=evolution", *EVERY, "agent.batch_size=4", "agent.generations=200"),
    *("agent.strategy.type=trust", "agent.strategy.population=10", "agent.fitness.type=reward"),
    *("agent.fitness.prediction=sampled", "agent.shards=3"),
]


class Crash(Exception):
    """Not one that the command line reports."""


needs_processes = pytest.mark.skipif(
    not torch.distributed.is_available() or not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists(),
    reason="needs torch.distributed, and /proc to find processes",
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def torchrun(*arguments: str, restarts: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [f"--max-restarts={restarts}", "--monitor-interval=0.1", "-m", "papertape.main", *arguments]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)


def end(launcher: subprocess.Popen[str]) -> str:
    """What torchrun and its workers have said until they ended well."""
    try:
        _, said = launcher.communicate(timeout=120)
    finally:
        # It ends its workers before itself.
        launcher.terminate()
    assert launcher.returncode == 0, said
    return said


def worker(parent: int, rank: int) -> int:
    """The process that torchrun has started with this rank."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    (found,) = (
        int(child) for child in children if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0")
    )
    return found


def wait_for(pattern: str, folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob(pattern)):
        assert time.monotonic() < deadline, f"{pattern} never came"
        time.sleep(0.01)


def the_run(folder: Path) -> Path:
    (directory,) = (folder / "runs").iterdir()
    return directory


def state(directory: Path) -> dict[str, object]:
    found: dict[str, object] = checkpoint.load(directory / "checkpoints" / "latest.pt")["agent"]
    return found


def rows(directory: Path) -> list[dict[str, float]]:
    kept = list(read_metrics(directory / "metrics.jsonl"))
    for row in kept:
        row.pop("train/sequences_per_second", None)
    return kept


def flat(value: object) -> object:
    """A state without tensors, for comparison bit for bit."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: flat(part) for key, part in value.items()}
    return [flat(part) for part in value] if isinstance(value, list | tuple) else value


@needs_processes
@pytest.mark.slow
def test_workers_save_and_stop_when_torchrun_is_killed(folder: Path) -> None:
    launcher = torchrun(*(word.replace("agent.steps=10", "agent.steps=1000000") for word in BACKPROP))
    wait_for("runs/*/checkpoints/latest.pt", folder)
    workers = [worker(launcher.pid, rank) for rank in (0, 1)]
    launcher.kill()
    _, said = launcher.communicate(timeout=60)  # until the last of them has let go of the pipe
    assert "stopping after this step" in said and "go on with: " in said
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{number}").exists() for number in workers):
        assert time.monotonic() < deadline, "they go on as orphans"
        time.sleep(0.1)


@needs_processes
@pytest.mark.slow
def test_two_processes_one_of_them_killed_evolve_what_one_process_does(folder: Path) -> None:
    """kill -9 a worker: torchrun starts both again, they find their run, and end bit for bit where one process does."""
    launcher = torchrun(*EVOLUTION, restarts=1)
    wait_for("runs/*/checkpoints/latest.pt", folder)
    os.kill(worker(launcher.pid, rank=1), signal.SIGKILL)
    said = end(launcher)
    shared = the_run(folder)
    assert said.count("goes on") == 1 and said.count("2 processes share the work") == 2, said
    assert not (shared / "launch").exists()

    (folder / "alone").mkdir()
    os.chdir(folder / "alone")
    assert main(EVOLUTION) == 0
    alone = the_run(folder / "alone")
    assert rows(shared) == rows(alone)
    assert flat(state(shared)) == flat(state(alone))
    assert (shared / "options.yaml").read_text() == (alone / "options.yaml").read_text()


LEAVING = """
import os
from pathlib import Path
import torch
from papertape.core import distributed
with distributed.join() as processes:
    processes.any(True)
    import torch._dynamo  # as a first step of an optimiser does
    assert len(os.listdir("/proc/self/task")) > 1
Path(f"left {processes.rank}").write_text(str(len(os.listdir("/proc/self/task"))))
"""


@needs_processes
@pytest.mark.slow
def test_no_thread_of_the_group_outlives_it(folder: Path) -> None:
    """One that did might let go of a tensor while Python ends, by which the process aborts now and then."""
    (folder / "leaving.py").write_text(LEAVING)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "leaving.py"]
    end(subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True))
    assert [(folder / f"left {rank}").read_text() for rank in range(2)] == ["1", "1"]


UNITS = "{type: continual-backprop, replacement_rate: 0.05, maturity: 2}"
METHODS = f"agent.plasticity=[{UNITS}, {{type: ewc, every: 4}}, {{type: set, density: 0.5, every: 4}}]"


@needs_processes
@pytest.mark.slow
@pytest.mark.parametrize("plasticity", ["agent.plasticity=null", METHODS], ids=["plain", "plasticity"])
def test_two_processes_share_each_batch(folder: Path, plasticity: str) -> None:
    """Five sequences, two and three: gradients, metrics and all that follows, up to rounding, as in one process."""
    launcher = torchrun(*BACKPROP, plasticity)
    end(launcher)
    shared = the_run(folder)
    (folder / "alone").mkdir()
    os.chdir(folder / "alone")
    assert main([*BACKPROP, plasticity]) == 0
    alone = the_run(folder / "alone")
    for mine, theirs in zip(rows(shared), rows(alone), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    one, two = (state(directory)["circuit"] for directory in (alone, shared))
    for name, weight in one.items():  # type: ignore[attr-defined]
        torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=1e-5)  # type: ignore[index]


@needs_processes
@pytest.mark.slow
def test_processes_import_what_comes_from_outside(folder: Path) -> None:
    """A memory, a strategy and a fitness that is a function: every process finds them, and evolves what one does."""
    examples = Path(__file__).parents[1] / "examples"
    imports = [f"--import={examples}/own_{name}.py" for name in ("memory", "strategy", "fitness")]
    chosen = [
        "circuit.type=memory",
        "circuit.accessor.type=fast-weights",
        "agent.type=evolution",
        "agent.shards=2",
        *EVERY,
    ]
    chosen += ["agent.strategy.type=one-plus-lambda", "agent.fitness.type=streak", "agent.batch_size=4"]
    small = [word for word in SMALL if not word.startswith(("circuit.memory_size", "circuit.word_size"))]
    given = ["train", *small, *imports, *chosen, "agent.generations=4"]
    end(torchrun(*given))
    (folder / "alone").mkdir()
    os.chdir(folder / "alone")
    assert main(given) == 0
    assert flat(state(the_run(folder))) == flat(state(the_run(folder / "alone")))


def test_a_restart_finds_the_run_that_it_has_begun(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process under torchrun: a crash leaves the run to be gone on with, an end does not, nor do other options."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job 7")
    train_step = EvolutionAgent.train_step

    def crashing(agent: EvolutionAgent) -> dict[str, float]:
        if agent.step == crashes[-1]:
            raise Crash
        return train_step(agent)

    monkeypatch.setattr(EvolutionAgent, "train_step", crashing)
    short = [word.replace("generations=200", "generations=12") for word in EVOLUTION]
    crashes = []
    for step in (2, 7, 7):  # before the first checkpoint, after it, and again
        crashes.append(step)
        with pytest.raises(Crash):
            main(short)
    begun = the_run(folder)
    crashes.append(-1)
    assert main([*short, "seed=5"]) == 0
    (other,) = set((folder / "runs").iterdir()) - {begun}
    assert main(short) == 0
    assert {path.name for path in (folder / "runs").iterdir()} == {begun.name, other.name}
    assert state(begun)["step"] == 12
    assert [row["step"] for row in rows(begun) if "train/fitness_best" in row] == [2, 4, 6, 8, 10, 12]
    assert main(short) == 0
    assert len(list((folder / "runs").iterdir())) == 3


def test_more_processes_than_there_is_work_for_are_refused() -> None:
    agent = factory.build(choose(parser().parse_args(EVOLUTION), contextlib.ExitStack()).chosen).agent
    agent.join(Processes(0, 3))
    with pytest.raises(ValueError, match=r"agent\.shards: got 3, .* of 10 has 3 parts; 4 processes share them out"):
        agent.join(Processes(0, 4))
    agent = factory.build(choose(parser().parse_args(BACKPROP), contextlib.ExitStack()).chosen).agent
    agent.join(Processes(0, 5))
    with pytest.raises(ValueError, match=r"agent\.batch_size: got 5; 6 processes share each batch"):
        agent.join(Processes(0, 6))
