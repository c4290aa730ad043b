"""Learning without end: circuits that change themselves beside fixed ones, on streams of tasks.

    python benchmarks/continual.py                                  # every row, ten seeds each: hours
    python benchmarks/continual.py arithmetic slowly-changing       # these rows
    python benchmarks/continual.py arithmetic --first-seed 101 --seeds 3 agent.check_every=200

Each seed of a row is a run of a preset, whose stream of tasks has that seed as well. What it measured is written to
runs/continual/ROW/SEED.json once it is over; the same words again go on with those that are missing, and ``--minutes``
begins no further one after so long. Options after the rows are those of all of them, and are kept in folders of their
own. At last comes a table in Markdown of all seeds that are there.

Compute is how many weights were updated, those on trial as well: a change costs what its trial costs. What a row says
of it is relative to the fixed circuit beside it, whose row comes first.
"""

from __future__ import annotations

import argparse
import copy
import json
import operator
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from papertape.agents import BackpropAgent, SelfModifyingAgent
from papertape.agents.evaluation import evaluate
from papertape.agents.plasticity import DORMANT, dormant_share, watched
from papertape.agents.structure.strategies import STRATEGIES, Done, Subject
from papertape.agents.structure.trial import LOOK_EVERY, TOLERANCE, PairedTrial
from papertape.core.circuit import Circuit
from papertape.core.structure import narrowed, widened
from papertape.envs import ArithmeticEnv
from papertape.utils import factory, options

Measured = dict[str, float]

RESULTS = Path("runs", "continual")


class Row(NamedTuple):
    """A row of the table."""

    what: str
    asked: str
    measure: Callable[[int, Sequence[str]], Measured]
    """What comes of a seed, under further options."""
    tell: Callable[[Sequence[Measured]], str]
    """What came of all seeds, in words."""
    beside: str | None = None
    """The row whose compute is 1."""


# ---- running ---------------------------------------------------------------------------------------------------------


def override(values: dict[str, Any], assignments: Sequence[str]) -> None:
    """Set options one after another: those of a row give way to those of the command line."""
    for assignment in assignments:
        options.override(values, [assignment])


def agent_of(preset: str, seed: int, assignments: Sequence[str]) -> SelfModifyingAgent:
    """The agent of a preset, under other options, with a seed of its own for weights, sequences and tasks."""
    values = options.load_file(preset)
    override(values, [f"seed={seed}", f"env.task_seed={seed}", "device=cpu", "plots=off", *assignments])
    agent = factory.build(factory.parse(values)).agent
    assert isinstance(agent, SelfModifyingAgent)
    return agent


def weights(circuit: Circuit) -> int:
    """How many weights a circuit has."""
    return sum(parameter.numel() for parameter in circuit.parameters())


class Course:
    """Lets an agent learn, and keeps count of what that costs."""

    def __init__(self, agent: SelfModifyingAgent) -> None:
        """
        Args:
            agent: that has not learned yet.
        """
        self.agent = agent
        self.updated, self.seconds = 0, 0.0

    def go(self, steps: int) -> float:
        """So many steps; the mean loss of their batches, each before it was learned from."""
        total, started = 0.0, time.process_time()
        agent, trial = self.agent, self.agent.trial
        served, tried = weights(agent.circuit), weights(trial.circuit) if isinstance(trial, PairedTrial) else 0
        for _ in range(steps):
            total += agent.train_step()["objective"]
            self.updated += served + tried
            if agent.trial is not trial:
                trial = agent.trial
                served = weights(agent.circuit)
                tried = weights(trial.circuit) if isinstance(trial, PairedTrial) else 0
        self.seconds += time.process_time() - started
        return total / steps

    def cost(self) -> Measured:
        """What it cost until now."""
        agent = self.agent
        return {
            "updated": self.updated,
            "updates_per_step": agent.updates / agent.step,
            "sequences_per_second": agent.step * agent.batch_size / self.seconds,
            "tried": agent.tracker.tried,
            "kept": agent.tracker.kept,
            "units": sum(layer.size for layer in agent.circuit.structure()),
        }


# ---- rows ------------------------------------------------------------------------------------------------------------

SAMPLES = 200_000


def arithmetic(*fixed: str, samples: int = SAMPLES) -> Callable[[int, Sequence[str]], Measured]:
    """A row of the preset arithmetic-endless, under options of its own."""

    def measure(seed: int, assignments: Sequence[str]) -> Measured:
        agent = agent_of("arithmetic-endless", seed, [*fixed, *assignments])
        course = Course(agent)
        course.go(samples // agent.batch_size)
        env = agent.env
        assert isinstance(env, ArithmeticEnv)
        found = course.cost()
        for name, each in (("trained", env), ("held_out", env.sets("test")["held-out pairs"])):
            values = evaluate(each, agent.circuit, sequences=1, batch_size=1000, seed=0)
            found |= {f"{name}_{share}": 100 * values[f"within_{share}"] for share in (5, 15, 1)}
        return found

    return measure


def _arithmetic_told(seeds: Sequence[Measured]) -> str:
    parts = []
    for name, words in (("trained", "pairs trained on"), ("held_out", "held-out pairs")):
        within = [seed[f"{name}_5"] for seed in seeds]
        strict = statistics.mean(seed[f"{name}_1"] for seed in seeds)
        parts.append(
            f"{words}: {statistics.mean(within):.1f} % within 5 %, worst {min(within):.1f}, strict {strict:.0f}"
        )
    return f"{'; '.join(parts)}; {_costs(seeds)}"


def _costs(seeds: Sequence[Measured]) -> str:
    rate = statistics.median(seed["sequences_per_second"] for seed in seeds)
    tried, kept, units = (statistics.mean(seed[name] for seed in seeds) for name in ("tried", "kept", "units"))
    changes = f", {tried:.0f} changes tried and {kept:.0f} kept" if tried else ""
    return f"{units:.0f} units at last{changes}, {rate:,.0f} sequences a second of CPU time"


def slowly_changing(*fixed: str, examples: int = 1_000_000) -> Callable[[int, Sequence[str]], Measured]:
    """A row of the preset slowly-changing, under options of its own."""

    def measure(seed: int, assignments: Sequence[str]) -> Measured:
        agent = agent_of("slowly-changing", seed, [*fixed, *assignments])
        course = Course(agent)
        losses = [course.go(examples // agent.batch_size // 10) for _ in range(10)]
        return course.cost() | {f"loss_{index}": loss for index, loss in enumerate(losses)}

    return measure


def _slowly_told(seeds: Sequence[Measured]) -> str:
    last = [seed["loss_9"] for seed in seeds]
    first = statistics.mean(seed["loss_0"] for seed in seeds)
    return (
        f"online error in the last tenth {statistics.mean(last):.3f} ({min(last):.2f} to {max(last):.2f}), in the "
        f"first {first:.2f}; {_costs(seeds)}"
    )


TASKS, LATE = 100, 10
"""Tasks of permuted images, and how many of them a mean is over."""


def permuted(plasticity: str, *fixed: str, tasks: int = TASKS) -> Callable[[int, Sequence[str]], Measured]:
    """A row of the preset permuted-mnist, of all training images, with methods of plasticity; null is none.

    Measured is the share of images that are told right before they are learned from, over the first, the middle and the
    last tasks, and the share of units that are dormant over 1000 images of the last task.
    """

    def measure(seed: int, assignments: Sequence[str]) -> Measured:
        values = options.load_file("permuted-mnist")
        words = [f"seed={seed}", "env.images.validation=0", f"agent.plasticity={plasticity}", "device=cpu", "plots=off"]
        override(values, [*words, *fixed, *assignments])
        agent = factory.build(factory.parse(values)).agent
        assert isinstance(agent, BackpropAgent)
        accuracy = []
        for _ in range(tasks):
            rows = [agent.train_step() for _ in range(agent.log_every)]
            accuracy.append(100 * rows[-1]["online_accuracy"])
        ends = {"first": LATE, "middle": tasks // 2, "last": tasks}
        found = {name: statistics.mean(accuracy[max(end - LATE, 0) : end]) for name, end in ends.items()}
        return found | {"dormant": 100 * _dormant(agent)}

    return measure


def _dormant(agent: BackpropAgent) -> float:
    batch = agent.env.sample(1000, torch.Generator().manual_seed(0))
    with torch.no_grad(), watched(agent.circuit, wanted=True) as watch:
        agent.circuit(batch.inputs)
    return dormant_share(agent.circuit, watch.activity(agent.circuit, batch.inputs), DORMANT)


def _permuted_told(seeds: Sequence[Measured]) -> str:
    first, middle, last, dormant = ([seed[name] for seed in seeds] for name in ("first", "middle", "last", "dormant"))
    return (
        f"tasks 91-100: {statistics.mean(last):.1f} %, worst {min(last):.1f}; 1-10: {statistics.mean(first):.1f}, "
        f"41-50: {statistics.mean(middle):.1f}; {statistics.mean(dormant):.0f} % of units dormant at last"
    )


LEARNED = 6250
"""Steps that a circuit has learned before changes are put on trial."""
CHANGES = 10
"""Of each kind that are put on trial for each seed."""


def flagged(seed: int, assignments: Sequence[str]) -> Measured:
    """Shares of changes that are taken back within 50 steps: removals at random, plain and absorbed, and widenings.

    A circuit of two layers of fifteen units has learned arithmetic from 100,000 samples. Each change is put on trial as
    the agent does, for :data:`LOOK_EVERY` steps. Beside it stands what no trial can see: whether the change was for the
    worse by the loss over all pairs, the mean over the last half of the trial, and the share of verdicts that say so.
    """
    words = ["circuit.hidden_sizes=[15,15]", "agent.policy=random", "agent.check_every=10000000"]
    agent = agent_of("arithmetic-endless", seed, [*words, f"agent.trial_steps={LOOK_EVERY}", *assignments])
    course = Course(agent)
    course.go(LEARNED)
    generator, structure = torch.Generator().manual_seed(seed), agent.circuit.structure()

    def drawn() -> tuple[int, int]:
        layer = int(torch.randint(len(structure), (), generator=generator))
        return layer, int(torch.randint(structure[layer].size, (), generator=generator))

    def removed(subject: Subject, absorbed: bool) -> Done:
        layer, unit = drawn()
        inputs = subject.inputs if absorbed else None
        return Done(subject.circuit.edit(narrowed(structure, {layer: [unit]}), inputs, generator), {})

    def widening(subject: Subject) -> Done:
        layer, unit = drawn()
        return Done(subject.circuit.edit(widened(structure, {layer: [unit]}), None, generator), {})

    kinds: dict[str, Callable[[Subject], Done]] = {
        "removal_plain": lambda subject: removed(subject, False),
        "removal_absorbed": lambda subject: removed(subject, True),
        "widening": widening,
    }
    env = agent.env
    assert isinstance(env, ArithmeticEnv)
    every_pair = next(env.batches(10**6))

    def exact(circuit: Circuit) -> float:
        with torch.no_grad():
            return float(env.losses(circuit(every_pair.inputs)[0], every_pair).sum())

    start = copy.deepcopy(agent.state_dict())
    found: Measured = {}
    for name, apply in kinds.items():
        taken_back, worse = [], []
        for _ in range(CHANGES):
            before = len(agent.tracker.records)
            agent.try_out(STRATEGIES["add-neuron" if name == "widening" else "remove-neuron"], apply)
            losses = []
            while isinstance(agent.trial, PairedTrial):
                losses.append((exact(agent.circuit), exact(agent.trial.circuit)))
                agent.train_step()
            assert len(agent.tracker.records) == before + 1
            taken_back.append(not agent.tracker.records[-1].kept)
            without, changed = map(sum, zip(*losses[len(losses) // 2 :], strict=True))
            worse.append(not changed <= TOLERANCE * without)
            agent.load_state_dict(copy.deepcopy(start))
        found |= {
            name: statistics.mean(taken_back),
            f"{name}_worse": statistics.mean(worse),
            f"{name}_right": statistics.mean(map(operator.eq, taken_back, worse)),
        }
    return found


def _flagged_told(seeds: Sequence[Measured]) -> str:
    words = {
        "removal_plain": "removals",
        "removal_absorbed": "those that least squares absorb",
        "widening": "widenings",
    }
    means = {name: 100 * statistics.mean(seed[name] for seed in seeds) for name in seeds[0]}
    parts = []
    for name, said in words.items():
        worse, right = means[f"{name}_worse"], means[f"{name}_right"]
        parts.append(f"{said} {means[name]:.0f} % ({worse:.0f} % were worse; {right:.0f} % of verdicts say so)")
    return ", ".join(parts)


TWO, WIDE = "circuit.hidden_sizes=[2,2]", "circuit.hidden_sizes=[15,15]"
FIXED, RANDOM, ALONE = "agent.policy=none", "agent.policy=random", "agent.plasticity=null"
# Weights shrink by a ten-thousandth at each step.
DECAY = "agent.optimiser={type: adamw, weight_decay: 0.1}"
# Changes at the size that the circuit begins with, a fifth of the time on trial.
CHANGING = ["agent.type=self-modifying", "agent.max_layers=2", "agent.max_units=100", "agent.check_every=1250"]
ROWS: dict[str, Row] = {
    "arithmetic-fixed": Row("arithmetic, 200,000 samples, fixed 2×15", "", arithmetic(WIDE, FIXED), _arithmetic_told),
    "arithmetic": Row(
        "from 2×2",
        "≥ 98 % within 5 %, worst seed ≥ 95 %; ≥ 10,000 samples a second",
        arithmetic(TWO),
        _arithmetic_told,
        "arithmetic-fixed",
    ),
    "arithmetic-random": Row(
        "from 2×2, arms at random",
        "no better than Thompson",
        arithmetic(TWO, RANDOM),
        _arithmetic_told,
        "arithmetic-fixed",
    ),
    "arithmetic-wide": Row(
        "from 2×15",
        "within 1 point of fixed 2×15 at ≤ 1.5 × compute",
        arithmetic(WIDE),
        _arithmetic_told,
        "arithmetic-fixed",
    ),
    "arithmetic-million": Row(
        "from 2×2, a million samples",
        "100 % within 5 %, strict ≥ 95 %",
        arithmetic(TWO, samples=1_000_000),
        _arithmetic_told,
    ),
    "flagged": Row(
        "bad changes taken back within 50 steps",
        "≥ 95 % of random removals, ≤ 5 % of widenings",
        flagged,
        _flagged_told,
    ),
    "slowly-changing-fixed": Row(
        "slowly-changing regression, 111 weights, fixed", "", slowly_changing(FIXED, ALONE), _slowly_told
    ),
    "slowly-changing-continual-backprop": Row(
        "continual backprop", "≤ 0.60", slowly_changing(FIXED), _slowly_told, "slowly-changing-fixed"
    ),
    "slowly-changing": Row(
        "continual backprop, self-modifying",
        "≤ 0.60 at ≤ 1.2 × compute",
        slowly_changing(),
        _slowly_told,
        "slowly-changing-fixed",
    ),
    "slowly-changing-random": Row(
        "the same, arms at random",
        "no better than Thompson",
        slowly_changing(RANDOM),
        _slowly_told,
        "slowly-changing-fixed",
    ),
    "permuted-fixed": Row("permuted MNIST, backprop alone", "", permuted("null"), _permuted_told),
    "permuted-continual-backprop": Row(
        "continual backprop", "≥ 86.5 %", permuted("continual-backprop"), _permuted_told
    ),
    "permuted-redo": Row("ReDo", "≥ 86.5 %", permuted("redo"), _permuted_told),
    "permuted-l2-init": Row("L2-init", "≥ 87.5 %", permuted("l2-init"), _permuted_told),
    "permuted-decay": Row("AdamW", "", permuted("null", DECAY), _permuted_told),
    "permuted-continual-backprop-decay": Row(
        "continual backprop, AdamW", "≥ 86.5 %", permuted("continual-backprop", DECAY), _permuted_told
    ),
    "permuted-redo-decay": Row("ReDo, AdamW", "≥ 86.5 %", permuted("redo", DECAY), _permuted_told),
    "permuted-changing-decay": Row(
        "continual backprop, AdamW, self-modifying",
        "≥ 86.5 %",
        permuted("continual-backprop", DECAY, *CHANGING),
        _permuted_told,
    ),
    "permuted-changing": Row("self-modifying", "≥ 86.5 %", permuted("null", *CHANGING), _permuted_told),
    "permuted-changing-continual-backprop": Row(
        "continual backprop, self-modifying", "≥ 86.5 %", permuted("continual-backprop", *CHANGING), _permuted_told
    ),
    "permuted-changing-l2-init": Row(
        "L2-init, self-modifying", "≥ 87.5 %", permuted("l2-init", *CHANGING), _permuted_told
    ),
}


# ---- the table -------------------------------------------------------------------------------------------------------


def folder_of(name: str, assignments: Sequence[str]) -> Path:
    """Where what was measured of a row is kept."""
    return RESULTS / re.sub(r"[^\w.=-]+", "_", " ".join([name, *assignments]))


def known(name: str, assignments: Sequence[str]) -> dict[int, Measured]:
    """What was measured of a row so far, by seed."""
    files = sorted(folder_of(name, assignments).glob("*.json"), key=lambda file: int(file.stem))
    return {int(file.stem): json.loads(file.read_text(encoding="utf-8")) for file in files}


def compute(row: Row, seeds: Mapping[int, Measured], assignments: Sequence[str]) -> str:
    """Weights updated beside those of another row, over the seeds of both."""
    if row.beside is None or not (other := known(row.beside, assignments)):
        return ""
    own, theirs = (statistics.mean(seed["updated"] for seed in each.values()) for each in (seeds, other))
    return f"{own / theirs:.2f} ×"


def table(names: Sequence[str], seeds: Sequence[int], assignments: Sequence[str]) -> str:
    """What was measured of these rows and seeds, in Markdown."""
    lines = ["| what | asked | measured | seeds | compute |", "| --- | --- | --- | --- | --- |"]
    for name in names:
        row = ROWS[name]
        found = {seed: values for seed, values in known(name, assignments).items() if seed in seeds}
        if found:
            told = row.tell(list(found.values()))
            lines.append(f"| {row.what} | {row.asked} | {told} | {len(found)} | {compute(row, found, assignments)} |")
    return "\n".join(lines)


def main() -> int:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="ROW or key=value", help=f"rows: {', '.join(ROWS)}")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which no further seed is begun")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(arguments.threads)
    assignments = [word for word in arguments.words if "=" in word]
    names = [word for word in arguments.words if "=" not in word] or list(ROWS)
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"row: got {unknown[0]!r}; allowed: {', '.join(ROWS)}")
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    end = time.monotonic() + 60 * arguments.minutes
    for name in names:
        for seed in seeds:
            file = folder_of(name, assignments) / f"{seed}.json"
            if file.exists() or time.monotonic() >= end:
                continue
            measured = ROWS[name].measure(seed, assignments)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(measured, indent=1), encoding="utf-8")
            print(f"{name}, seed {seed}: {ROWS[name].tell([measured])}", flush=True)
    print(f"\n{time.strftime('%Y-%m-%d')}, torch {torch.__version__}, {arguments.threads} thread(s)\n")
    print(table(names, seeds, assignments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
