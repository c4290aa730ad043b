"""One memory, three tasks: copy, repeat-copy and associative recall one after another; bits wrong after all three.

    python benchmarks/memory_sequence.py routed --seeds 1 2 3 4 5
    python benchmarks/memory_sequence.py fine-tuning --seeds 1 2 3 4 5
    python benchmarks/memory_sequence.py ewc --seeds 1 2 3 4 5
    python benchmarks/memory_sequence.py routed circuit.lending=2 --seeds 1

All learn by the preset memory-sequence, with one thread. ``fine-tuning`` is an NTM with as many units as the three
tasks of ``routed`` have together, ``ewc`` the same with that penalty. What is judged are the weights at the end, by
test sequences of each task's training range, and beside them those of each task when it ended. Further options go to
the preset.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from papertape.agents.evaluation import evaluate
from papertape.circuits import RoutedCircuit
from papertape.core.streams import stream_seed
from papertape.utils import factory
from papertape.utils.commands.arguments import read_arguments

FIXED = (
    "circuit.type=ntm",
    "circuit.controller.type=lstm",
    "circuit.controller.hidden_size=198",
    "circuit.memory_size=16",
    "circuit.word_size=8",
    "circuit.num_reads=2",
)
METHODS: Mapping[str, Sequence[str]] = {
    "routed": (),
    "fine-tuning": FIXED,
    "ewc": (*FIXED, "agent.plasticity=[{type: ewc}]"),
}
TEST_SEQUENCES = 1024


def bits_wrong(agent: Any, seed: int) -> list[float]:
    """On test sequences of each task's training range, mean bits wrong of a sequence."""
    agent.circuit.eval()
    found = []
    for index in range(len(agent.env.envs)):
        sets = agent.env.sets("test")
        name = next(name for name in sets if name.startswith(agent.env.names[index]))
        values = evaluate(
            sets[name], agent.circuit, sequences=TEST_SEQUENCES, batch_size=256, seed=stream_seed(seed, "test")
        )
        found.append(values["bits_wrong"])
    return found


def learn(method: str, seed: int, assignments: Sequence[str]) -> list[float]:
    """Train by the preset and print a row; bits wrong on each task after all."""
    options = read_arguments(["memory-sequence", f"seed={seed}", *METHODS[method], *assignments])
    agent: Any = factory.build(options).agent
    started, used = time.perf_counter(), time.process_time()
    ended = []
    steps = agent.env.every // agent.batch_size
    while agent.step < agent.last_step:
        agent.train_step()
        if agent.step % steps == 0:
            ended.append(bits_wrong(agent, seed)[agent.step // steps - 1])
    after = bits_wrong(agent, seed)
    circuit = agent.circuit
    routed = isinstance(circuit, RoutedCircuit)
    weights = circuit.live_weights() if routed else sum(parameter.numel() for parameter in circuit.parameters())
    units = sum(layer.size for layer in circuit.structure())
    columns = [f"{value:7.3f}" for value in (*ended, *after)]
    print(
        f"{method:12} {seed:5} {' '.join(columns)} {units:6} {weights:8} "
        f"{time.perf_counter() - started:7.0f} {time.process_time() - used:7.0f}",
        flush=True,
    )
    return after


def main() -> int:
    """Train the seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("assignments", nargs="*", metavar="key=value")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    given = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    print(f"{time.strftime('%Y-%m-%d')}, torch {torch.__version__}, {given.method} {' '.join(given.assignments)}\n")
    print(
        f"{'method':12} {'seed':>5} {'when each ended':>23} {'after all three':>23}  units  weights  clock s    CPU s"
    )
    rows = [learn(given.method, seed, given.assignments) for seed in given.seeds]
    medians = " / ".join(f"{statistics.median(column):.3f}" for column in zip(*rows, strict=True))
    good = sum(row[0] <= 0.05 and row[1] <= 0.05 and row[2] <= 0.3 for row in rows)
    print(f"\nmedian {medians}; at most 0.05 / 0.05 / 0.3 on {good} of {len(rows)} seeds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
