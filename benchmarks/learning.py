"""How soon and how well a preset learns, over several seeds.

    python benchmarks/learning.py ntm-copy --seeds 10 --processes 2 --final "env.test_lengths=[10,20,30,50,80,100,120]"
    python benchmarks/learning.py ntm-copy --seeds 10 --processes 2 agent.target_error_beyond=0.3

The first stops and chooses its best weights by the training range alone, the second by longer validation sequences,
too.

Prints, for each seed, the sequences seen until the validation error on the training range fell under 0.1 and under 0.01
and stayed there to the end, the time, and the error on every set of the test; then median and worst over the seeds. The
weights tested are those of the best checkpoint, which ``papertape test`` takes too. Test sequences decide nothing in
training.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from papertape.agents.evaluation import evaluate_all, set_error
from papertape.agents.learning import LearningAgent
from papertape.core.options import OptionsError
from papertape.core.recorder import Recorder
from papertape.main import read_arguments
from papertape.utils import factory

THRESHOLDS = (0.1, 0.01)


class Outcome(NamedTuple):
    """What became of one seed."""

    seed: int
    steps: int
    seconds: float
    learning_curve: list[tuple[int, float]]
    """Sequences seen and validation error on the training range, at every evaluation."""
    errors: dict[str, float]
    """Error on every set of the final test."""
    bad_steps: int


class _Memory(Recorder):
    """Keeps the best state and every validation row."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.states: dict[str, Mapping[str, Any]] = {}

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        if any(name.startswith("validation/") for name in values):
            self.rows.append((step, dict(values)))

    def checkpoint(self, name: str, state: Mapping[str, Any]) -> None:
        circuit = {key: value.clone() for key, value in state["circuit"].items()}
        self.states[name] = {**state, "circuit": circuit}


def learn(
    preset: str,
    assignments: list[str],
    final: list[str],
    imports: list[str],
    seed: int,
    sequences: int,
    threads: int,
) -> Outcome:
    """Train one seed and test its best weights."""
    torch.set_num_threads(threads)
    chosen = read_arguments([preset, *assignments, f"seed={seed}", "plots=off"], imports=imports)
    recorder = _Memory()
    env, circuit, agent = factory.build(chosen, recorder)
    if not isinstance(agent, LearningAgent):
        raise TypeError(f"agent.type: got {type(agent).__name__}; allowed are those that learn")
    start = time.monotonic()
    agent.fit()
    seconds = time.monotonic() - start
    circuit.load_state_dict(recorder.states.get("best", recorder.states["latest"])["circuit"])
    tested = factory.build_env(read_arguments(final, chosen.model_dump(mode="json")).env, torch.device(env.device))
    metrics = evaluate_all(tested, circuit, "test", sequences=sequences, batch_size=64, seed=seed)
    first = next(iter(env.sets("validation")))
    return Outcome(
        seed,
        agent.step,
        seconds,
        [(step * agent.answers_per_step, set_error(env, row, "validation", first)) for step, row in recorder.rows],
        {name: set_error(env, metrics, "test", name) for name in tested.sets("test")},
        int(getattr(agent, "bad_steps", 0)),
    )


def reached(curve: list[tuple[int, float]], threshold: float) -> int | None:
    """Sequences after which the error stayed under a threshold; None if it did not."""
    since = None
    for sequences, error in curve:
        if not error < threshold:
            since = None
        elif since is None:
            since = sequences
    return since


def main() -> None:
    """Train the seeds and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("assignments", nargs="*", metavar="key=value")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--sequences", type=int, default=256, help="of each set of the final test")
    parser.add_argument("--final", action="append", default=[], metavar="key=value", help="only for the final test")
    parser.add_argument("--import", action="append", default=[], dest="imports", metavar="MODULE")
    arguments = parser.parse_intermixed_args()
    try:
        chosen = read_arguments([arguments.preset, *arguments.assignments, "plots=off"], imports=arguments.imports)
        read_arguments(arguments.final, chosen.model_dump(mode="json"))
    except OptionsError as error:
        parser.error(str(error))
    jobs = [
        (
            arguments.preset,
            arguments.assignments,
            arguments.final,
            arguments.imports,
            seed,
            arguments.sequences,
            arguments.threads,
        )
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    ]
    print(f"{time.strftime('%Y-%m-%d')}, {arguments.preset} {' '.join(arguments.assignments)}, ", end="")
    print(f"{arguments.processes} process(es) of {arguments.threads} thread(s), torch {torch.__version__}\n")
    outcomes: list[Outcome] = []
    with multiprocessing.get_context("spawn").Pool(arguments.processes, maxtasksperchild=1) as pool:
        for outcome in [pool.apply_async(learn, job) for job in jobs]:
            result = outcome.get()
            if not outcomes:
                heads = ["seed", "steps", "seconds", *(f"sequences to < {limit}" for limit in THRESHOLDS), "bad steps"]
                heads += list(result.errors)
                print("| " + " | ".join(heads) + " |\n" + "| --- " * len(heads) + "|")
            outcomes.append(result)
            seen = [reached(result.learning_curve, limit) for limit in THRESHOLDS]
            cells = [str(result.seed), str(result.steps), f"{result.seconds:.0f}"]
            cells += ["never" if count is None else f"{count:,}" for count in seen]
            cells += [str(result.bad_steps), *(f"{error:.4g}" for error in result.errors.values())]
            print("| " + " | ".join(cells) + " |", flush=True)
    for label, pick in (("median", statistics.median), ("worst", max)):
        cells = [label, f"{pick([outcome.steps for outcome in outcomes]):.0f}"]
        cells.append(f"{pick([outcome.seconds for outcome in outcomes]):.0f}")
        for limit in THRESHOLDS:
            counts = [reached(outcome.learning_curve, limit) for outcome in outcomes]
            value = pick([float("inf") if count is None else count for count in counts])
            cells.append(f"{value:,.0f}" if value < float("inf") else "never")
        cells.append(f"{pick([outcome.bad_steps for outcome in outcomes]):.0f}")
        cells += [f"{pick([outcome.errors[name] for outcome in outcomes]):.4g}" for name in outcomes[0].errors]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
