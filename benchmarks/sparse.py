"""What a step of sparse access costs as the memory grows, beside dense access.

    python benchmarks/sparse.py
    python benchmarks/sparse.py --slots 1024 65536 --circuits sam --steps 100

Prints a Markdown table. ``in use`` says how many slots were accessed before the sequence: a lookup searches those, so
a fresh memory and a full one are the two ends. Milliseconds are medians over sequences, divided by their steps; extra
MiB is the peak of resident memory over one forward and backward pass, less what was held before (the memory that goes
in among it), each in a process of its own. Dense circuits run fewer steps, and their MiB are per step. Linux.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from typing import Any, NamedTuple

import torch
from peak_memory import peak

import papertape

CIRCUITS: dict[str, Any] = {"sam": papertape.SAM, "sdnc": papertape.SDNC, "ntm": papertape.NTM}
CHANNELS, HIDDEN, WORD, READS = 8, 100, 32, 4
DENSE_STEPS = 3


class Figures(NamedTuple):
    """What a process measured."""

    forward: float
    """Milliseconds per step."""
    both: float
    """Milliseconds per step, forward and backward."""
    mebibytes: float
    """Of the whole sequence."""


def measure(kind: str, slots: int, full: bool, steps: int, rounds: int, threads: int, backend: str) -> Figures:
    """A circuit with so many slots, in the process that calls."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    circuit = CIRCUITS[kind](
        CHANNELS, CHANNELS, hidden_size=HIDDEN, memory_size=slots, word_size=WORD, num_reads=READS, backend=backend
    )
    circuit(torch.zeros(2, 1, CHANNELS), circuit.initial_state(1, memory_size=8))[0].sum().backward()
    inputs = torch.rand(steps, 1, CHANNELS)
    with torch.no_grad():
        state = circuit.initial_state(1)
        if full:
            accessor = state.accessor._replace(memory=torch.randn(1, slots, WORD), used=torch.tensor([slots]))
            state = state._replace(accessor=accessor)
    before, forward, both = peak(reset=True), [], []
    mebibytes = 0.0
    for round_ in range(rounds):
        start = time.perf_counter()
        outputs, _ = circuit(inputs, state)
        forward.append(time.perf_counter() - start)
        outputs.square().mean().backward()
        both.append(time.perf_counter() - start)
        if round_ == 0:
            mebibytes = peak() - before
    one, other = (1e3 * statistics.median(times) / steps for times in (forward, both))
    return Figures(one, other, mebibytes)


def main() -> None:
    """Measure circuits and sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--circuits", nargs="+", choices=CIRCUITS, default=list(CIRCUITS))
    parser.add_argument("--slots", nargs="+", type=int, default=[1024, 65_536, 1_048_576])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backend", choices=("auto", "eager", "native"), default="auto", help="dense circuits: eager")
    arguments = parser.parse_args()
    print(f"{time.strftime('%Y-%m-%d')}, torch {torch.__version__}, {arguments.threads} thread(s), batch 1, ", end="")
    print(f"LSTM {HIDDEN}, words of {WORD}, {READS} read heads, {arguments.steps} steps\n")
    print("| circuit | slots | in use | forward, ms per step | forward + backward, ms per step | extra MiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for kind in arguments.circuits:
            dense = kind == "ntm"
            steps = DENSE_STEPS if dense else arguments.steps
            for slots in arguments.slots:
                for full in (False,) if dense else (False, True):
                    backend = "eager" if dense else arguments.backend
                    job = (kind, slots, full, steps, arguments.rounds, arguments.threads, backend)
                    figures = pool.apply(measure, job)
                    memory = f"{figures.mebibytes / steps:.1f} a step" if dense else f"{figures.mebibytes:.1f}"
                    used = "dense" if dense else "all" if full else "none"
                    print(
                        f"| {kind} | {slots:,} | {used} | {figures.forward:.2f} | {figures.both:.2f} | {memory} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
