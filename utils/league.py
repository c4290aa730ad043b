"""A league: the same tasks for several circuits, on one table, with the figures that others have published."""

from __future__ import annotations

import copy
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import AfterValidator, Field, ValidationError, field_validator

from ..core.explain import explain
from ..core.options import Options, OptionsError, near
from ..core.registry import placed
from . import options
from .comparison import Outcome
from .factory import RunOptions
from .files import replace_text, replacing


class Score(NamedTuple):
    """What a league's numbers are."""

    name: str
    of: Callable[[float], float]
    """From an error."""
    rises: bool
    """Whether higher is better."""
    digits: str
    """How it is written."""


SCORES = {
    "accuracy": Score("accuracy in percent", lambda error: 100 * (1 - error), True, ".1f"),
    "return": Score("return", lambda error: 1 - error, True, ".3f"),
    "error": Score("error", lambda error: error, False, ".4g"),
}

COUNTS = ("bits_wrong", "excess_bits", "loss")
"""Errors that are a share of nothing, and that no return lacks: they are their own score."""

Seed = Annotated[(int, *RunOptions.model_fields["seed"].metadata)]
"""One that a run may have."""


NAME_BYTES = 100
"""Of the name of a task or a circuit at most, as UTF-8."""


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[\w.-]+", name) or len(name.encode()) > NAME_BYTES:  # two of them are in that of a folder
        raise ValueError(f"got {name!r}; allowed: letters, digits and any of _.-, in {NAME_BYTES} bytes")
    return name


Name = Annotated[str, AfterValidator(_check_name)]


class League(Options):
    """What a league's file says."""

    about: str = Field(min_length=1, description="what is compared, and where the published figures are from")
    tasks: dict[Name, dict[str, Any]] = Field(min_length=1, description="by name the options that make a task")
    circuits: dict[Name, dict[str, Any]] = Field(
        min_length=1, description="by name the options that make a circuit and how it learns; they precede the task's"
    )
    test_options: dict[Name, list[str]] = Field(
        default={}, description="by circuit key=value for its tests alone, such as circuit.memory_size=1024"
    )
    common: dict[str, Any] = Field(default={}, description="options of all runs; the others' precede them")
    seeds: list[Seed] = Field(default=[1, 2, 3], min_length=1, description="a run for each")
    score: Literal["accuracy", "return", "error"] = Field(
        default="accuracy",
        description="accuracy: 100 (1 - error), for errors that are a share; return: 1 - error, for worlds whose error "
        "is what a return lacks of 1; error: as it is",
    )
    judged: Literal["last", "beyond", "all"] = Field(
        default="beyond",
        description="last: the last set of the test; beyond: the mean over its sets but the first, the training range, "
        "where there are others; all: over all",
    )
    solved: float | None = Field(default=None, description="score from which on a task counts as solved")
    published: dict[Name, dict[Name, float]] = Field(
        default={}, description="by circuit and task the scores of others; circuits that only they have may be there"
    )

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"got {seeds}; allowed: each of them once")
        return seeds


def load(name: str) -> League:
    """A league of the package, or of a YAML file given by its path.

    Raises:
        OptionsError: no such league or file, or not what a league is; lists every problem.
    """
    path, text = options.read("league", name, options.LEAGUES)
    values = options.parse_yaml(text, name)
    if not isinstance(values, dict):
        raise OptionsError(f"{name}: got {type(values).__name__}; expected a mapping with about, tasks and circuits")
    try:
        found = League.model_validate(values)
    except ValidationError as error:
        raise OptionsError("\n".join(f"{name}: {line}" for line in explain(error, values, League))) from error
    if isinstance(found.common.get("imports"), list):
        found.common["imports"] = placed(found.common["imports"], path.parent)
    for circuit in found.test_options:
        if circuit not in found.circuits:
            raise OptionsError(f"{name}: test_options: got {circuit!r}; allowed: {', '.join(found.circuits)}")
    for circuit, figures in found.published.items():
        for task in figures:
            if task not in found.tasks:
                raise OptionsError(f"{name}: published.{circuit}: got {task!r}; allowed: {', '.join(found.tasks)}")
    return found


def narrowed(league: League, *, tasks: Sequence[str], circuits: Sequence[str], seeds: Sequence[int]) -> League:
    """A part of a league; nothing named is all.

    Raises:
        OptionsError: a name that the league has not, or a seed that no run has.
    """
    kept = {}
    for kind, wanted, there in (("tasks", tasks, league.tasks), ("circuits", circuits, league.circuits)):
        for name in wanted:
            if name not in there:
                meant = near(name, there)
                asked = f"did you mean {meant!r}? " if meant else ""
                raise OptionsError(f"--{kind}: got {name!r}; {asked}allowed: {', '.join(there)}")
        kept[kind] = {name: block for name, block in there.items() if not wanted or name in wanted}
    figures = {
        circuit: {task: score for task, score in scores.items() if task in kept["tasks"]}
        for circuit, scores in league.published.items()
        if not circuits or circuit in circuits or circuit not in league.circuits
    }
    tests = {name: words for name, words in league.test_options.items() if name in kept["circuits"]}
    update = {
        **kept,
        "test_options": tests,
        "seeds": list(seeds) or league.seeds,
        "published": {k: v for k, v in figures.items() if v},
    }
    try:
        return League.model_validate({**dict(league), **update})
    except ValidationError as error:
        raise OptionsError("\n".join(f"--{line}" for line in explain(error, update, League))) from error


def run_options(league: League, task: str, circuit: str, seed: int) -> dict[str, Any]:
    """The options of a run, as an options file would give them."""
    values: dict[str, Any] = copy.deepcopy(league.common)
    for block in (league.circuits[circuit], league.tasks[task], {"seed": seed}):
        merge(values, block)
    return values


def merge(values: dict[str, Any], block: Mapping[str, Any]) -> None:
    """Set in place what a block says; within a block of the same type, what it does not say stays."""
    for key, value in block.items():
        before = values.get(key)
        if isinstance(before, dict) and isinstance(value, Mapping) and _same_type(before, value):
            merge(before, value)
        else:
            values[key] = copy.deepcopy(value)


def _same_type(before: Mapping[str, Any], block: Mapping[str, Any]) -> bool:
    return not {"type"} <= before.keys() & block.keys() or before["type"] == block["type"]


def check_score(league: League, task: str, metric: str) -> None:
    """Raise OptionsError if the errors of a task are nothing that the league's score could be made of.

    Args:
        league: whose task it is.
        task: its name.
        metric: what its error is, such as ``bits_wrong``.
    """
    if league.score != "error" and metric in COUNTS:
        raise OptionsError(
            f"score: got {league.score!r}; the error of task {task!r} is {metric}, of which there is none: "
            "allowed is 'error'"
        )
    if league.score == "accuracy" and metric == "shortfall":
        raise OptionsError(
            f"score: got 'accuracy'; the error of task {task!r} is what its return lacks: allowed are 'return' and "
            "'error'"
        )


def score(league: League, outcome: Outcome) -> float | None:
    """What a run has reached; None of one that has not ended."""
    if outcome.status != "done" or not outcome.errors:
        return None
    return SCORES[league.score].of(statistics.fmean(outcome.errors[name] for name in judged_sets(league, outcome)))


def judged_sets(league: League, outcome: Outcome) -> list[str]:
    """The sets of the test whose errors decide what a run has reached."""
    names = list(outcome.errors)
    return {"last": names[-1:], "beyond": names[1:] or names, "all": names}[league.judged]


def best(league: League, scores: Sequence[float]) -> float:
    """The best of several scores."""
    known = [each for each in scores if not math.isnan(each)]
    if not known:
        return math.nan
    return max(known) if SCORES[league.score].rises else min(known)


def worst(league: League, scores: Sequence[float]) -> float:
    """The worst of several scores; one that is no number is worse than any."""
    if any(math.isnan(each) for each in scores):
        return math.nan
    return min(scores) if SCORES[league.score].rises else max(scores)


def table(league: League, outcomes: Sequence[Outcome]) -> str:
    """One Markdown table: of each task and circuit the best, the mean and the worst seed, and what others published."""
    alone = [name for name in league.published if name not in league.circuits]
    heads, rules = ["task"], ["---"]
    for circuit in league.circuits:
        heads.append(circuit)
        heads += [f"{circuit}, published"] if circuit in league.published else []
    heads += [f"{name}, published" for name in alone]
    rules += ["---:"] * (len(heads) - 1)
    lines, solved = [heads, rules], dict.fromkeys(heads[1:], 0)
    failed = [each for each in outcomes if each.problem]
    for task in league.tasks:
        line = [task]
        for head in heads[1:]:
            circuit, _, other = head.partition(",")
            if other:
                figure = league.published[circuit].get(task)
                line.append("" if figure is None else f"{figure:g}")
                solved[head] += figure is not None and _is_solved(league, figure)
                continue
            of = [each for each in outcomes if each.labels == {"task": task, "circuit": circuit}]
            scores = [found for each in of if (found := score(league, each)) is not None]
            line.append(_cell(league, scores, len(of)))
            solved[head] += bool(scores) and _is_solved(league, best(league, scores))
        lines.append(line)
    if league.solved is not None:
        lines.append([f"solved, of {len(league.tasks)}", *map(str, solved.values())])
    count = len(league.seeds)
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    where = {
        "last": "on the last set of the test",
        "beyond": "over the sets of the test beyond the training range",
        "all": "over all sets of the test",
    }[league.judged]
    best_of = f"the best of {count} seeds (their mean, the worst)" if count > 1 else "one seed"
    text = f"{' '.join(league.about.split())}\n\nMean {SCORES[league.score].name} {where}; {best_of}.\n\n{text}\n"
    for task in league.tasks:
        sets: dict[str, dict[str, None]] = {}
        for each in outcomes:
            if each.labels.get("task") == task and score(league, each) is not None:
                sets.setdefault(", ".join(judged_sets(league, each)), {})[each.labels["circuit"]] = None
        if len(sets) > 1:
            which = "; ".join(f"{', '.join(circuits)} on {names}" for names, circuits in sets.items())
            text += f"\nOf {task}, the means are over different sets of the test: {which}.\n"
    if failed:
        text += f"\n{len(failed)} failed:\n\n" + "".join(f"- {each.name}: {each.problem}\n" for each in failed)
    return text


def _is_solved(league: League, figure: float) -> bool:
    if league.solved is None or math.isnan(figure):
        return False
    return figure >= league.solved if SCORES[league.score].rises else figure <= league.solved


def _cell(league: League, scores: Sequence[float], count: int) -> str:
    if not scores:
        return ""
    digits = SCORES[league.score].digits
    text = format(best(league, scores), digits)
    if len(scores) > 1:
        text += f" ({statistics.fmean(scores):{digits}}, {worst(league, scores):{digits}})"
    return text if len(scores) == count else f"{text} of {len(scores)} done"


def _median(errors: Sequence[float]) -> float:
    """What is no number counts as the worst."""
    middle = statistics.median(math.inf if math.isnan(error) else error for error in errors)
    return middle if math.isfinite(middle) else math.nan


def write(folder: Path, league: League, outcomes: Sequence[Outcome]) -> None:
    """Leave league.md and lengths.png in a folder."""
    from .plots.lengths import lengths_figure

    replace_text(folder / "league.md", table(league, outcomes))
    drawn: dict[str, dict[str, tuple[list[str], list[float]]]] = {}
    for task in league.tasks:
        for circuit in league.circuits:
            label = {"task": task, "circuit": circuit}
            of = [each for each in outcomes if each.labels == label and each.status == "done" and each.errors]
            if of:
                sets = list(dict.fromkeys(name for each in of for name in each.errors))
                middle = [_median([each.errors[name] for each in of if name in each.errors]) for name in sets]
                drawn.setdefault(task, {})[circuit] = sets, [SCORES[league.score].of(error) for error in middle]
    if drawn:
        with replacing(folder / "lengths.png") as path:
            lengths_figure(drawn, SCORES[league.score].name).savefig(path, format="png")


def save(folder: Path, league: League) -> None:
    """Write the league, or the part of it that is run, to a folder."""
    replace_text(folder / "league.yaml", yaml.safe_dump(league.model_dump(mode="json"), sort_keys=False))
