"""How much memory training takes, with activation checkpointing over chunks of time and without.

    python benchmarks/peak_memory.py                     # every case
    python benchmarks/peak_memory.py dnc-2048 --backends auto --every 0 5 10

Prints a Markdown table. Each row is a process of its own: the peak of its resident memory during one forward and one
backward pass, less what it held before, and the time of that first pass. Linux.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

import papertape


class Case(NamedTuple):
    """A circuit and its sequences."""

    circuit: Any
    arguments: dict[str, Any]
    steps: int
    batch_size: int
    every: tuple[int, ...]
    """Steps per chunk to measure; 0 keeps all steps."""


CASES = {
    "ntm-long": Case(papertape.NTM, {}, 2000, 16, (0, 50)),
    "dnc-long": Case(papertape.DNC, {"hidden_size": 64, "memory_size": 128, "word_size": 32}, 2000, 4, (0, 50)),
    "dnc-2048": Case(papertape.DNC, {"hidden_size": 64, "memory_size": 2048, "word_size": 32}, 50, 1, (0, 7)),
    "sam-65536": Case(papertape.SAM, {"memory_size": 65_536}, 2000, 1, (0, 100)),
}
CHANNELS = 8


class Figures(NamedTuple):
    """What a process measured."""

    backend: str | None
    mebibytes: float
    seconds: float


def peak(reset: bool = False) -> float:
    """MiB of this process's resident memory at its highest since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


def measure(name: str, backend: str, every: int, threads: int) -> Figures:
    """One forward and one backward pass, in the process that calls."""
    torch.set_num_threads(threads)
    case = CASES[name]
    torch.manual_seed(0)
    circuit = case.circuit(CHANNELS, CHANNELS, backend=backend, recompute_every=every or None, **case.arguments)
    # Loads what is loaded once, compiles what is compiled.
    circuit(torch.zeros(2, case.batch_size, CHANNELS), circuit.initial_state(case.batch_size, memory_size=4))[
        0
    ].sum().backward()
    inputs = torch.rand(case.steps, case.batch_size, CHANNELS)
    state = circuit.initial_state(case.batch_size)
    before, start = peak(reset=True), time.perf_counter()
    outputs, _ = circuit(inputs, state)
    outputs.square().mean().backward()
    return Figures(circuit.chosen_backend, peak() - before, time.perf_counter() - start)


def main() -> None:
    """Measure the named cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"default: all of {', '.join(CASES)}")
    parser.add_argument("--backends", nargs="+", default=["eager", "auto"])
    parser.add_argument("--every", nargs="+", type=int, help="steps per chunk, 0 for all; default: two of each case")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    unknown = [name for name in arguments.cases if name not in CASES]
    if unknown:
        parser.error(f"CASE: got {', '.join(unknown)}; allowed: {', '.join(CASES)}")
    print(f"{time.strftime('%Y-%m-%d')}, torch {torch.__version__}, {arguments.threads} thread(s)\n")
    print("| case | steps | batch | backend | recompute_every | peak extra MiB | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name in arguments.cases or CASES:
            case, measured = CASES[name], set()
            for backend in arguments.backends:
                for every in arguments.every or case.every:
                    figures = pool.apply(measure, (name, backend, every, arguments.threads))
                    if (figures.backend, every) in measured:
                        continue
                    measured.add((figures.backend, every))
                    print(
                        f"| {name} | {case.steps} | {case.batch_size} | {figures.backend} | {every or 'none'} | "
                        f"{figures.mebibytes:,.0f} | {figures.seconds:.1f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
