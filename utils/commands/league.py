"""``papertape league``: every circuit on every task, with several seeds, and one table of what came of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ...core.options import OptionsError
from .. import comparison
from .. import league as leagues
from ..run import find_directory
from . import sweep
from .arguments import gives, is_assignment, read_arguments, started

FILE = "league.yaml"
DEFAULT = "chomsky"


def league(arguments: argparse.Namespace) -> int:
    """Train all runs of a league that are not done, and leave its table and a picture beside those of a sweep."""
    sweep.check(arguments)
    if arguments.resume is not None:
        if arguments.arguments or {arguments.tasks, arguments.circuits, arguments.seeds} != {None}:
            raise OptionsError("--resume: a league that goes on has its options already: leave them out")
        folder = find_directory(arguments.resume, what="league", file=FILE)
        chosen, found = sweep.read(folder), leagues.load(str(folder / FILE))
        sweep.check_options_of_test(chosen.runs, arguments.test_option)
    else:
        folder_name, arguments.arguments = sweep.split_name(arguments.arguments)
        found, runs, name = plan(arguments)
        sweep.check_options_of_test(runs, arguments.test_option)
        chosen = sweep.find_or_begin(runs, f"league-{name}", folder_name)
        leagues.save(chosen.directory, found)

    def table(outcomes: Sequence[comparison.Outcome]) -> str:
        return leagues.table(found, outcomes)

    def write(folder: Path, outcomes: Sequence[comparison.Outcome]) -> None:
        comparison.write(folder, outcomes)
        leagues.write(folder, found, outcomes)

    return sweep.train_and_write(chosen, arguments, table, write, "league")


def plan(arguments: argparse.Namespace) -> tuple[leagues.League, list[sweep.Run], str]:
    """The league that the command line asks for, its runs and its name.

    Raises:
        OptionsError: no such league, task or circuit, or the options of every run are wrong.
    """
    words = [word for word in arguments.arguments if not is_assignment(word)]
    if words[1:]:
        raise OptionsError(f"{words[1]!r}: expected key=value, such as agent.steps=1000; the league is {words[0]!r}")
    name = words[0] if words else DEFAULT
    assignments = [word for word in arguments.arguments if is_assignment(word)]
    _, seeds = sweep.values_of(f"--seeds={arguments.seeds}") if arguments.seeds is not None else ("", [])
    wrong = [seed for seed in seeds if not seed.isdecimal()]
    if wrong:
        raise OptionsError(f"--seeds: got {wrong[0]!r}; allowed: whole numbers, such as 1,2,5 or 1..10")
    if gives(assignments, "seed"):
        raise OptionsError("seed: the runs of a league differ in it; --seeds gives them, such as --seeds 1..3")
    found = leagues.narrowed(
        leagues.load(name),
        tasks=_names(arguments.tasks),
        circuits=_names(arguments.circuits),
        seeds=[int(seed) for seed in seeds],
    )
    found = found.model_copy(update={"about": found.about + _under(assignments, found)})
    runs = []
    # Seed by seed, so that a league that is cut off has something of all.
    for seed in found.seeds:
        for task in found.tasks:
            for circuit in found.circuits:
                labels, values, problem = {"task": task, "circuit": circuit}, {}, ""
                alone = found.test_options.get(circuit, [])
                try:
                    given = {"plots": "off", **leagues.run_options(found, task, circuit, seed)}
                    chosen = started(read_arguments(assignments, given, arguments.imports))
                    values = chosen.model_dump(mode="json", exclude={"name"})
                    comparison.options_of_test(values, alone)
                except comparison.UNTESTABLE as error:
                    problem = "; ".join(str(error).splitlines())
                else:
                    leagues.check_score(found, task, chosen.env.component.error_metric)
                runs.append(sweep.Run(f"{task},{circuit},seed={seed}", labels, values, problem, Path(name).stem, alone))
    sweep.check_runs(runs, name)
    return found, runs, Path(name).stem


def _under(assignments: Sequence[str], league: leagues.League) -> str:
    """What the table is to say of options that are not the league's own."""
    told = [word for word in assignments if word.startswith(("env", "circuit", "agent", "start"))]
    if not told:
        return ""
    changed = league.published and any(word.startswith("env") for word in told)
    other = " Published figures are of the tasks without that." if changed else ""
    return f" All runs here under {', '.join(told)}.{other}"


def _names(text: str | None) -> list[str]:
    return [word.strip() for word in text.split(",")] if text is not None else []
