"""``papertape compare`` and ``papertape runs``: runs that there are, in numbers."""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...core.options import OptionsError
from .. import comparison
from ..log import LOGGER
from ..run import RUNS, find_directory, new_directory, read_options, read_summary, trained_at
from . import sweep
from .report import FAILED


def compare(arguments: argparse.Namespace) -> int:
    """Print a table of runs, which is left in a folder with a CSV file and a picture."""
    sweep.check_test(arguments)
    outcomes = outcomes_of(arguments)
    print(comparison.table(outcomes), end="")
    folder = new_directory("comparison")
    comparison.write(folder, outcomes)
    LOGGER.info("table, CSV file and curves: %s", folder)
    return FAILED if all(each.problem for each in outcomes) else 0


def outcomes_of(arguments: argparse.Namespace) -> list[comparison.Outcome]:
    """What became of the runs that are named; a sweep stands for its runs.

    Raises:
        OptionsError: no such run.
    """
    sweeps, directories = [], []
    for name in arguments.runs:
        folder = next((path for path in (Path(name), RUNS / name) if sweep.is_sweep(path)), None)
        if folder is not None:
            sweeps.append(sweep.read(folder))
        else:
            directories.append(find_directory(name))
    if len(sweeps) == 1 and not directories:
        sweep.check_options_of_test(sweeps[0].runs, arguments.test_option)
        return sweep.outcomes_of(sweeps[0], arguments.sequences, arguments.test_option)
    directories += [each.folder(run) for each in sweeps for run in each.runs if os.path.isdir(each.folder(run))]
    directories = list({path.resolve(): path for path in directories}.values())
    read = [_options_of(directory) for directory in directories]
    values = [own for own, _ in read if own is not None]
    apart = comparison.told_apart(values)
    unknown = dict.fromkeys(apart[0] if apart else (), "?")
    known = iter(apart)
    labels = [unknown if own is None else next(known) for own, _ in read]
    presets = [summary.preset if (summary := read_summary(path)) else "" for path in directories]
    if len(set(presets)) > 1:
        labels = [{"preset": preset, **label} for preset, label in zip(presets, labels, strict=True)]
    comparison.check_options_of_test([(own, ()) for own in values], arguments.test_option)
    found = []
    for directory, label, (_, problem) in zip(directories, labels, read, strict=True):
        errors: dict[str, float] = {}
        if not problem:
            errors, problem = comparison.tested(directory, arguments.sequences, arguments.test_option)
        found.append(comparison.outcome(directory, str(directory), label, errors, problem))
    return found


def _options_of(directory: Path) -> tuple[dict[str, Any] | None, str]:
    """The options of a run, or none and in one line why they cannot be read."""
    try:
        return read_options(directory), ""
    except OptionsError as error:
        return None, "; ".join(str(error).splitlines())


def list_runs(arguments: argparse.Namespace) -> int:
    """Print the runs below ``runs/``, the latest last: name, preset, step, error and when."""
    rows = sorted(_rows(RUNS))
    if not rows:
        raise OptionsError(f"runs: there are none in {RUNS}/; papertape train begins one")
    lines = [("run", "preset", "step", "", "error", "when"), *(row for _, row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return 0


def _rows(root: Path) -> Iterator[tuple[float, tuple[str, ...]]]:
    """Time and cells of each run, those of sweeps too."""
    for path in [*root.glob("*/options.yaml"), *root.glob("*/*/options.yaml")]:
        directory = path.parent
        if path.parent.parent != root and not sweep.is_sweep(directory.parent):
            continue
        summary = read_summary(directory)
        found = comparison.outcome(directory, "", {}, {}, "")
        error = found.curve[-1][1] if found.curve else math.nan
        when = trained_at(directory)
        yield (
            when,
            (
                str(directory.relative_to(root)),
                summary.preset if summary else "",
                f"{found.step:,}",
                "done" if summary and summary.done else "",
                found.problem
                if found.problem or math.isnan(error)
                else f"{error:.4g} {found.metric.replace('_', ' ')}",
                time.strftime("%Y-%m-%d %H:%M", time.localtime(when)),
            ),
        )
