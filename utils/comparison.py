"""Runs in numbers: what became of each, and of each group of them the median, the quartiles and the worst.

What decides in training is validation; what is compared here is the test, of the best weights of each run.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import TypeAdapter

from ..agents.evaluation import evaluate_all, set_error
from ..core.options import OptionsError
from ..core.recorder import ANSWERED
from ..core.world import WorldError
from ..envs.images import DataError
from . import checkpoint, factory, options
from .files import replace_text, replacing
from .log import LOGGER
from .run import find_checkpoint, read_metrics, read_options, read_summary

UNTESTABLE = (ValueError, OSError, ImportError, DataError, WorldError)
"""What keeps one run from its test, and says why; the others are tested."""
THRESHOLDS = (0.1, 0.01)
"""Errors of which it is said how many sequences it took to get under them."""
APART = ("seed", "name", "plots", "visdom_host", "visdom_port", "device", "threads", "backend", "imports", "start")
"""Options by which runs are not told apart: the seed is what is averaged over, the others change nothing in a run but
how sums are rounded, or nothing that has a name of its own."""
TESTED_BY = ("seed", "precision", "env", "circuit", "agent")
"""Options of a run that its test depends on; the agent says how the task is taken, such as how actions are chosen."""
TESTED_AT_A_TIME = 64
"""Sequences of a test at most, of agents that do not say; those of a batch can have their length in common."""
_ERRORS = TypeAdapter(dict[str, float | None])
"""In tested.json; null is what is not a number."""


class Outcome(NamedTuple):
    """What became of a run."""

    name: str
    labels: Mapping[str, str]
    """What tells its group from others: option and value."""
    seed: int
    status: str
    """done, stopped, or failed."""
    problem: str
    """One line on what went wrong; empty if nothing did."""
    step: int
    seconds: float
    bad_steps: int
    curve: list[tuple[int, float]]
    """Sequences seen (steps, of an agent that counts none) and mean validation error on the training range."""
    errors: Mapping[str, float]
    """Error on every set of the test."""
    metric: str
    """What the errors are."""

    @property
    def group(self) -> str:
        """The labels in a line."""
        return ", ".join(f"{path}={value}" for path, value in self.labels.items()) or "all"

    def measures(self) -> dict[str, float]:
        """Each number by the title of its column; infinite where something was never reached or is not a number."""
        counts = [reached(self.curve, limit) for limit in THRESHOLDS]
        return {
            "steps": self.step,
            "seconds": self.seconds,
            **{
                f"sequences to < {limit}": math.inf if count is None else count
                for limit, count in zip(THRESHOLDS, counts, strict=True)
            },
            "bad steps": self.bad_steps,
            **{name: math.inf if math.isnan(error) else error for name, error in self.errors.items()},
        }


def reached(curve: Iterable[tuple[int, float]], threshold: float) -> int | None:
    """Sequences after which the error stayed under a threshold; None if it did not."""
    since = None
    for sequences, error in curve:
        if not error < threshold:
            since = None
        elif since is None:
            since = sequences
    return since


def options_of_test(values: Mapping[str, Any], assignments: Sequence[str]) -> factory.RunOptions:
    """Options of a run, changed for its test alone; on the CPU where its device is not here.

    Args:
        values: of the run.
        assignments: see :func:`errors_on_test`.

    Raises:
        OptionsError: one is wrong, or what the run has trained would not fit any more.
    """
    values = dict(values) if _is_here(values) else {**values, "device": "cpu"}
    changed = copy.deepcopy(values)
    options.override(changed, assignments)
    chosen = factory.parse(changed)
    if assignments:
        trained, tested = _sizes(factory.parse(values)), _sizes(chosen)
        for name in dict.fromkeys([*trained, *tested]):
            before, now = (sizes.get(name, "none") for sizes in (trained, tested))
            if before != now:
                raise misfit(assignments, f"{name} is {before} there, {now} here")
    return chosen


def misfit(assignments: Sequence[str], why: str) -> OptionsError:
    """The error of options of a test that what was trained does not fit."""
    return OptionsError(f"{', '.join(assignments)}: what was trained does not fit a test with that: {why}")


def _sizes(chosen: factory.RunOptions) -> dict[str, Any]:
    """Of inputs, outputs and each weight of a run that need not have begun."""
    with contextlib.closing(factory.build_task(chosen, torch.device("cpu"))) as task:
        weights = factory.outline(chosen, task).state_dict()
        tensors = {name: kept for name, kept in weights.items() if isinstance(kept, torch.Tensor)}
        shapes = {f"the shape of weight {name!r}": list(weight.shape) for name, weight in tensors.items()}
        return {"input_size": task.input_size, "output_size": task.output_size, **shapes}


def check_options_of_test(runs: Iterable[tuple[Mapping[str, Any], Sequence[str]]], assignments: Sequence[str]) -> None:
    """Raise OptionsError if none of the runs that can be read can be tested with these.

    Args:
        runs: the options of each, and the ``key=value`` that its test has besides.
        assignments: see :func:`errors_on_test`.
    """
    refused = None
    for values, own in runs if assignments else ():
        try:
            options_of_test(values, ())
        except OptionsError:
            continue
        try:
            options_of_test(values, [*own, *assignments])
        except UNTESTABLE as error:
            refused = refused or error
        else:
            for line in options.override(copy.deepcopy(dict(values)), [*own, *assignments]):
                LOGGER.info("%s", line)
            return
    if refused is not None:
        raise refused


def tested(directory: Path, sequences: int, assignments: Sequence[str]) -> tuple[dict[str, float], str]:
    """What :func:`errors_on_test` finds, and an empty text; or nothing, and in one line what keeps it from that."""
    try:
        return errors_on_test(directory, sequences, assignments), ""
    except UNTESTABLE as error:
        return {}, "; ".join(str(error).splitlines())


def errors_on_test(directory: Path, sequences: int, assignments: Sequence[str] = ()) -> dict[str, float]:
    """Error of a run's best weights on every set of the test; what was found once is kept in tested.json.

    A stream is tested on the task, and a curriculum at the level, that the run had come to with these weights.

    Args:
        directory: of the run.
        sequences: of each set.
        assignments: ``key=value`` for the test alone, such as ``env.test_lengths=[50]`` or ``circuit.memory_size=256``.

    Raises:
        OptionsError: the run has no checkpoint, or an option is wrong.
        ValueError: what the checkpoint holds is of another circuit or task.
    """
    path = find_checkpoint(str(directory))
    values = read_options(directory)
    asked = {
        "checkpoint": checkpoint.checksum(path),
        "sequences": sequences,
        "options": list(assignments),
        "of_run": {name: values.get(name) for name in TESTED_BY},
    }
    kept = directory / "tested.json"
    try:
        known = json.loads(kept.read_text(encoding="utf-8"))
        if {name: known[name] for name in asked} == asked:
            found = _ERRORS.validate_python(known["errors"])
            return {name: math.nan if error is None else error for name, error in found.items()}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing is known, or not this
    chosen = options_of_test(values, assignments)
    task = factory.build_task(chosen, factory.resolve_device(chosen.device))
    try:
        circuit = factory.load_circuit(path, device=str(task.device), options=chosen.circuit)
        saved = checkpoint.load(path)["agent"]
        try:
            if "env" in saved:
                task.load_state_dict(saved["env"])
        except ValueError as error:
            if not assignments:
                raise
            raise misfit(assignments, str(error)) from error
        at_a_time = getattr(chosen.agent, "evaluation_batch_size", TESTED_AT_A_TIME)
        metrics = evaluate_all(task, circuit, "test", sequences=sequences, batch_size=at_a_time, seed=chosen.seed)
        errors = {name: set_error(task, metrics, "test", name) for name in task.sets("test")}
    finally:
        task.close()
    plain = {name: error if math.isfinite(error) else None for name, error in errors.items()}
    try:
        replace_text(kept, json.dumps({**asked, "errors": plain}))
    except OSError as error:  # a colleague's run, say: it is tested again the next time
        LOGGER.warning("%s: what its test found cannot be kept (%s)", directory, error)
    return errors


def _is_here(values: Mapping[str, Any]) -> bool:
    try:
        factory.resolve_device(str(values.get("device", "auto")))
    except ValueError:
        return False
    return True


def outcome(
    directory: Path, name: str, labels: Mapping[str, str], errors: Mapping[str, float], problem: str
) -> Outcome:
    """What became of the run in a folder.

    Args:
        directory: of the run.
        name: what it is called.
        labels: of its group.
        errors: of its test.
        problem: what went wrong, or nothing.
    """
    summary = read_summary(directory)
    rows: list[dict[str, Any]] = []
    try:
        rows += read_metrics(directory / "metrics.jsonl")
    except FileNotFoundError:
        pass  # nothing was told yet
    except OSError as error:
        problem = problem or f"metrics.jsonl cannot be read: {error.strerror}"
    keys = [f"validation/{name}/{summary.metric}" for name in summary.trained_on] if summary else [""]
    each = (summary.answers_per_step if summary else None) or 1
    seed = 0
    with contextlib.suppress(OptionsError):  # it is not there yet, or damaged, which is for those who need it to say
        seed = read_options(directory).get("seed", 0)
    return Outcome(
        name,
        labels,
        seed,
        "failed" if problem else "done" if summary and summary.done else "stopped",
        problem,
        max([summary.step if summary else 0, *(row["step"] for row in rows)]),
        summary.seconds if summary else 0.0,
        summary.bad_steps if summary else 0,
        [
            (
                row.get(ANSWERED, row["step"] * each),
                sum(math.nan if row[key] is None else row[key] for key in keys) / len(keys),
            )
            for row in rows
            if all(key in row for key in keys)
        ],
        errors,
        summary.metric if summary else "",
    )


def told_apart(all_values: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """By what runs differ: path and value of the options that not all of them share, apart from :data:`APART`.

    Where a block is of another type, options that only one of the types has are left out.

    Args:
        all_values: the options of each run.
    """
    flat = [dict(_flat({k: v for k, v in values.items() if k not in APART})) for values in all_values]
    paths = [path for path in dict.fromkeys(path for values in flat for path in values) if path in flat[0]]
    differing = [
        path
        for path in paths
        if all(path in values for values in flat) and any(values[path] != flat[0][path] for values in flat)
    ]
    return [{path: values[path] for path in differing} for values in flat]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _text(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def quantile(values: Sequence[float], share: float) -> float:
    """The value under which a share of all lies, between neighbours in proportion; infinite ones are the largest."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return low if low == high else low + (place - math.floor(place)) * (high - low)


ROWS = {"median": 0.5, "lower quartile": 0.25, "upper quartile": 0.75, "worst": 1.0}


def table(outcomes: Sequence[Outcome]) -> str:
    """Median, quartiles and worst of every group as a Markdown table, and below it what has failed."""
    columns = list(dict.fromkeys(column for each in outcomes for column in each.measures()))
    lines = [["runs", "n", "of them", *columns]]
    for group in dict.fromkeys(each.group for each in outcomes):
        members = [each for each in outcomes if each.group == group and not each.problem]
        for row, share in ROWS.items():
            cells = []
            for column in columns:
                values = [each.measures()[column] for each in members if column in each.measures()]
                cells.append(_number(column, quantile(values, share)) if values else "")
            lines.append([group, str(len(members)), row, *cells])
    lines.insert(1, ["---"] * len(lines[0]))
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    for status, said in (("stopped", "not done, of which the numbers so far are in the table"), ("failed", "failed")):
        found = [each for each in outcomes if each.status == status]
        if found:
            text += f"\n\n{len(found)} {said}:\n\n"
            text += "\n".join(f"- {each.name}{f': {each.problem}' if each.problem else ''}" for each in found)
    return text + "\n"


def _number(column: str, value: float) -> str:
    if math.isinf(value):
        return "never" if column.startswith("sequences") else "not a number"
    return (
        f"{value:,.0f}"
        if column in ("steps", "seconds", "bad steps") or column.startswith("sequences")
        else f"{value:.4g}"
    )


def as_csv(outcomes: Sequence[Outcome]) -> str:
    """A row for each run; ``inf`` stands for never and for what is not a number, nothing for what is not known."""
    columns = list(dict.fromkeys(column for each in outcomes for column in each.measures()))
    labels = list(dict.fromkeys(path for each in outcomes for path in each.labels))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", *labels, "seed", "status", "problem", "metric", *columns])
    for each in outcomes:
        measures = {} if each.problem else each.measures()
        writer.writerow(
            [
                *(each.name, *(each.labels.get(path, "") for path in labels), each.seed, each.status, each.problem),
                *(each.metric, *(measures.get(column, "") for column in columns)),
            ]
        )
    return text.getvalue()


ERRORS_AT_A_TIME = 1_000_000
"""So many are in memory: where each run was judged at places of its own, all together are runs times runs."""


class Band(NamedTuple):
    """Median and quartiles of the curves of a group."""

    label: str
    places: np.ndarray[Any, np.dtype[np.float64]]
    """Sequences seen, ``[N]``."""
    quartiles: np.ndarray[Any, np.dtype[np.float64]]
    """Lower quartile, median and upper quartile at each place, ``[3, N]``."""


def bands(outcomes: Sequence[Outcome]) -> list[Band]:
    """The curves of each group together, without runs that failed, which no table counts either.

    A run that has ended keeps its last error; before its first it has none.
    """
    found = []
    drawn = [each for each in outcomes if each.curve and not each.problem]
    for group in dict.fromkeys(each.group for each in drawn):
        curves = [np.array(each.curve, dtype=np.float64) for each in drawn if each.group == group]
        places = np.unique(np.concatenate([curve[:, 0] for curve in curves]))
        places = places[places >= max(curve[0, 0] for curve in curves)]
        quartiles = np.empty((3, len(places)))
        at_a_time = max(1, ERRORS_AT_A_TIME // len(curves))
        for first in range(0, len(places), at_a_time):
            some = slice(first, first + at_a_time)
            errors = np.stack([np.interp(places[some], curve[:, 0], curve[:, 1]) for curve in curves])
            with np.errstate(invalid="ignore"):
                quartiles[:, some] = np.quantile(np.nan_to_num(errors, nan=np.inf), (0.25, 0.5, 0.75), axis=0)
        quartiles[~np.isfinite(quartiles)] = np.nan
        found.append(Band(f"{group} ({len(curves)})", places, quartiles))
    return found


def write(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Leave table.md, runs.csv and curves.png in a folder."""
    from .plots.bands import bands_figure

    replace_text(folder / "table.md", table(outcomes))
    replace_text(folder / "runs.csv", as_csv(outcomes))
    drawn = bands(outcomes)
    if drawn:
        metrics = {each.metric for each in outcomes if each.metric}
        figure = bands_figure(drawn, metrics.pop() if len(metrics) == 1 else "error")
        with replacing(folder / "curves.png") as path:
            figure.savefig(path, format="png")
