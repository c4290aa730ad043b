"""How well a network goes on learning: online permuted MNIST with each method of plasticity.

    python benchmarks/plasticity.py --methods none l2-init --seeds 1 2 3 --to permuted.jsonl
    python benchmarks/plasticity.py --table permuted.jsonl

A 784-100-100-10 ReLU network sees 100 tasks, each of 10,000 of the 60,000 training images under other places of all
pixels, in batches of 16, and learns by Adam with 1e-3, as in the preset ``permuted-mnist``. What counts is the share of
right answers before each update, over tasks 91 to 100.
Each run is a line of the file; one that is in it already is not run again. ``--methods`` are names of methods, joined
by ``+``, each with options as YAML: ``"{type: redo, threshold: 0.1}+l2-init"``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from papertape.agents import BackpropAgent
from papertape.agents.plasticity import DORMANT, dormant_share, watched
from papertape.circuits import FeedForwardCircuit
from papertape.envs import ImagesEnv, PermutedImagesEnv

TASKS, IMAGES, BATCH, LATE = 100, 10_000, 16, 10
NEVER = 10**9


def methods_of(words: str) -> list[Any]:
    """The methods that are named, as options."""
    return [] if words == "none" else [yaml.safe_load(word) for word in words.split("+")]


def permuted(words: str, seed: int, tasks: int = TASKS) -> dict[str, Any]:
    """One run: the share of right answers of each task, in percent."""
    torch.manual_seed(seed)
    env = PermutedImagesEnv(images=ImagesEnv(data="mnist", validation=0), every=IMAGES)
    circuit = FeedForwardCircuit(env.input_size, env.output_size, hidden_sizes=[100, 100], activation="relu")
    often: Any = {"log_every": IMAGES // BATCH, "evaluate_every": NEVER, "save_every": NEVER}
    plasticity = methods_of(words)
    agent = BackpropAgent(
        env, circuit, batch_size=BATCH, lr=1e-3, steps=None, plasticity=plasticity, seed=seed, online=True, **often
    )
    start, accuracy = time.perf_counter(), []
    for _ in range(tasks):
        rows = [agent.train_step() for _ in range(IMAGES // BATCH)]
        accuracy.append(round(100 * rows[-1]["online_accuracy"], 2))
    return {
        "methods": words,
        "seed": seed,
        "accuracy": accuracy,
        "dead": round(100 * dormant(agent), 1),
        "seconds": round(time.perf_counter() - start),
    }


def dormant(agent: BackpropAgent) -> float:
    """The share of units that are dormant over 1000 images of the last task."""
    batch = agent.env.sample(1000, torch.Generator().manual_seed(0))
    with torch.no_grad(), watched(agent.circuit, wanted=True) as watch:
        agent.circuit(batch.inputs)
    return dormant_share(agent.circuit, watch.activity(agent.circuit, batch.inputs), DORMANT)


def lines(file: Path) -> list[dict[str, Any]]:
    """The runs that are in a file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def table(file: Path) -> str:
    """The runs as a table in Markdown, means over seeds; a spread is a standard deviation."""
    found = ["| methods | seeds | tasks 1-10 | 41-50 | 91-100 | lowest seed | dormant at last |", "| --- " * 7 + "|"]
    runs = lines(file)
    for words in dict.fromkeys(run["methods"] for run in runs):
        own = [run for run in runs if run["methods"] == words]
        parts = [[statistics.mean(run["accuracy"][end - LATE : end]) for run in own] for end in (LATE, 50, TASKS)]
        means = [f"{statistics.mean(part):.2f}" for part in parts]
        spread = f" ± {statistics.stdev(parts[-1]):.2f}" if len(own) > 1 else ""
        dead = statistics.mean(run["dead"] for run in own)
        cells = [words, len(own), *means[:2], f"{means[2]}{spread}", f"{min(parts[-1]):.2f}", f"{dead:.1f} %"]
        found.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(found)


def main() -> int:
    """Run what is asked for, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["none", "continual-backprop", "redo", "l2-init"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--to", type=Path, default=Path("permuted.jsonl"), help="the file of runs")
    parser.add_argument("--table", type=Path, help="print the table of a file of runs")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.table))
        return 0
    torch.set_num_threads(1)
    for seed in arguments.seeds:
        for words in arguments.methods:
            if any((run["methods"], run["seed"]) == (words, seed) for run in lines(arguments.to)):
                continue
            run = permuted(words, seed)
            with arguments.to.open("a") as file:
                file.write(json.dumps(run) + "\n")
            print(f"{words}, seed {seed}: {statistics.mean(run['accuracy'][-LATE:]):.2f} %", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
