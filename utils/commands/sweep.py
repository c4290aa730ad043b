"""``papertape sweep``: a run for every combination of some values, side by side, and what came of them in one table."""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import importlib
import itertools
import json
import math
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import yaml
from pydantic import Field, TypeAdapter, ValidationError
from tqdm import tqdm

from ...core.distributed import size_here
from ...core.install import SUBMITIT, here
from ...core.openmp import QUIET
from ...core.options import OptionsError
from .. import child_process, comparison, options
from ..files import replace_text, unlinked
from ..log import LOGGER
from ..run import RUNS, check_free, check_path, find_directory, locked, new_directory, read_summary
from ..vector_environments import cores
from . import member
from .arguments import gives, preset_name, read_arguments, split_arguments, started
from .report import FAILED, INTERRUPTED
from .train import asked_to_stop, forget

MOST = 10_000
"""Runs of a sweep."""
SEQUENCES = 256
"""Of each set of the test, where nothing else is said (main.py, which loads nothing, says so too)."""
POLL_SECONDS = 0.2
FILE = "sweep.json"

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_BRACKETS = {"[": 1, "{": 1, "(": 1, "]": -1, "}": -1, ")": -1}


class Run(NamedTuple):
    """A run of a sweep, before it has begun."""

    name: str
    labels: dict[str, str]
    """The options in which it differs from the others, but for the seed, with their values."""
    options: dict[str, Any]
    """Resolved; empty if they are wrong."""
    problem: str
    """What is wrong about its options, in a line; empty if nothing is."""
    preset: str
    test_options: list[str] = []  # a list, as in the file that tells whether a sweep has the same runs
    """``key=value`` for its test alone; those of the command line precede them."""


_RUNS = TypeAdapter(Annotated[list[Run], Field(min_length=1)])


class Sweep(NamedTuple):
    """A sweep and its folder."""

    directory: Path
    runs: list[Run]

    def folder(self, run: Run) -> Path:
        """Where a run is."""
        return self.directory / run.name


def values_of(assignment: str) -> tuple[str, list[str]]:
    """The key of ``key=value,value`` or ``key=1..10`` and its values, as they are written.

    Commas within brackets or quotation marks belong to a value.

    Raises:
        OptionsError: a range that ends before it begins, an empty value, or one that is given twice.
    """
    key, _, text = assignment.partition("=")
    values = []
    for part in _parts(text):
        found = _RANGE.fullmatch(part.strip())
        if found is None:
            values.append(part.strip())
            continue
        low, high = int(found[1]), int(found[2])
        if not 0 <= high - low < MOST:
            raise OptionsError(f"{key}: got {part}; allowed: from a number to a higher one, {MOST:,} of them at most")
        values += map(str, range(low, high + 1))
    if len(values) > 1 and "" in values:
        raise OptionsError(f"{key}: got {text!r}; expected values with a comma between them, none of them empty")
    for value, times in collections.Counter(values).items():
        if times > 1:
            raise OptionsError(f"{key}: {value} is given twice")
    return key, values


def _parts(text: str) -> Iterator[str]:
    depth, quote, part = 0, "", ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += _BRACKETS.get(character, 0)
        if character == "," and depth <= 0 and not quote:
            yield part
            part = ""
        else:
            part += character
    yield part


def plan(arguments: Sequence[str], imports: Sequence[str] = ()) -> list[Run]:
    """The runs of a sweep.

    Args:
        arguments: a preset, ``key=value``, ``key=value,value`` and ``key=1..10``.
        imports: modules to import besides those that the options name.

    Raises:
        OptionsError: the options of every run are wrong, or those of two the same; too many runs, or one and no range.
    """
    preset, assignments = split_arguments(arguments)
    axes = dict(map(values_of, assignments))
    if len(axes) < len(assignments):
        keys = [assignment.partition("=")[0] for assignment in assignments]
        raise OptionsError(f"{next(key for key in keys if keys.count(key) > 1)}: given twice")
    count = math.prod(map(len, axes.values()))
    ranged = any(_RANGE.fullmatch(part.strip()) for word in assignments for part in _parts(word.partition("=")[2]))
    if count > MOST or (count == 1 and not ranged):  # a script's seed=1..N may be of one
        raise OptionsError(
            f"sweep: got {count:,} run{'s'[: count != 1]}; allowed: up to {MOST:,}, by an option that has several "
            "values or a range, such as seed=1..10"
        )
    begun = {"plots": "off", **options.load_file(options.DEFAULT_PRESET if preset is None else preset)}
    swept = [key for key, values in axes.items() if len(values) > 1] or ["seed"]
    runs: list[Run] = []
    known: dict[str, str] = {}
    names: set[str] = set()
    for combination in itertools.product(*axes.values()):
        given = dict(zip(axes, combination, strict=True))
        labels = {key: given[key] for key in swept if key in given}
        name = re.sub(r"[^\w.=,+-]", "-", ",".join(f"{key}={value}" for key, value in labels.items()))
        if not name or len(name.encode()) > 100 or name in names:
            name = f"run-{len(runs) + 1}"
        names.add(name)
        words = [f"{key}={value}" for key, value in given.items()]
        values, problem = {}, ""
        try:
            values = started(read_arguments(words, copy.deepcopy(begun), imports)).model_dump(
                mode="json", exclude={"name"}
            )
        except OptionsError as error:
            problem = "; ".join(str(error).splitlines())
        if values and (before := known.setdefault(json.dumps(values), name)) != name:  # 1e-3 and 0.001, say
            raise OptionsError(f"sweep: {before} and {name} are the same run; leave one of them out")
        labels.pop("seed", None)
        runs.append(Run(name, labels, values, problem, preset_name(arguments)))
    check_runs(runs)
    return runs


def check_runs(runs: Sequence[Run], file: str | None = None) -> None:
    """Raise OptionsError if the options of every run are wrong.

    Args:
        runs: all of them.
        file: that says what the runs are, if one does; each problem then begins with it and the first run that has it.
    """
    if all(run.problem for run in runs):
        first: dict[str, str] = {}
        for run in runs:
            first.setdefault(run.problem, f"{file}: {run.name}: {run.problem}")
        raise OptionsError("\n".join(first if file is None else first.values()))


def is_sweep(directory: Path) -> bool:
    """Whether a folder is that of a sweep."""
    return (directory / FILE).is_file()


def read(directory: Path) -> Sweep:
    """The sweep of a folder.

    Raises:
        OptionsError: its file is damaged; see also :func:`~papertape.utils.run.check_path`.
    """
    check_path(directory, "sweep")
    try:
        runs = _RUNS.validate_python(json.loads((directory / FILE).read_text(encoding="utf-8")))
        for run in runs:
            # Another may lead out of the sweep, to the files of others.
            if run.name in ("", "..") or Path(run.name).name != run.name:
                raise ValueError(f"name: got {run.name!r}; allowed is the name of one folder")
        return Sweep(directory, runs)
    except ValidationError as error:
        problem = error.errors()[0]
        where = "".join(f"{part}: " for part in problem["loc"])
        raise OptionsError(f"{directory / FILE}: cannot be read: {where}{problem['msg']}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise OptionsError(f"{directory / FILE}: cannot be read: {error}") from error


def begin(arguments: argparse.Namespace) -> Sweep:
    """The sweep that the command line asks for: a new one, or one of the same runs that was cut off.

    Raises:
        OptionsError: see :func:`plan`, :func:`~papertape.utils.run.find_directory` and :func:`check_options_of_test`.
    """
    if arguments.resume is not None:
        if arguments.arguments:
            raise OptionsError(
                f"{arguments.arguments[0]!r}: a sweep that goes on has its options already: leave it out"
            )
        chosen = read(find_directory(arguments.resume, what="sweep", file=FILE))
        check_options_of_test(chosen.runs, arguments.test_option)
        return chosen
    name, words = split_name(arguments.arguments)
    runs = plan(words, arguments.imports)
    check_options_of_test(runs, arguments.test_option)
    return find_or_begin(runs, f"sweep-{preset_name(words)}", name)


def split_name(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The name of a sweep's folder, or None where ``name=`` gives none, and the other words.

    Raises:
        OptionsError: no name for a folder, or given twice.
    """
    named = [word for word in arguments if gives([word], "name")]
    name = read_arguments(named).name if named else None
    return name, [word for word in arguments if word not in named]


def find_or_begin(runs: Sequence[Run], kind: str, name: str | None) -> Sweep:
    """The sweep of the same runs that was cut off (or has this name), or a new one.

    Args:
        runs: of the sweep.
        kind: what a new one is called after.
        name: of its folder; None makes one up.
    """
    for path in sorted(RUNS.glob(f"*/{FILE}")) if name is None else [RUNS / name / FILE]:
        if not path.is_file():
            continue
        try:
            before = read(path.parent)
        except OptionsError:
            if name is not None:
                raise
            continue  # a sweep of another kind, or damaged: this one begins anew
        if before.runs == runs and (name is not None or not (path.parent / "table.md").is_file()):
            LOGGER.info("%s has the same runs: it goes on", before.directory)
            return before
    directory = new_directory(kind, name)
    with locked(directory):
        if name is not None:  # until here, it may be the folder of another process that has begun one of this name
            check_free(name)
        try:
            replace_text(directory / FILE, json.dumps([run._asdict() for run in runs], indent=1))
        except BaseException:
            forget(directory)
            raise
    return Sweep(directory, list(runs))


class Job(Protocol):
    """A run that is under way."""

    def ended(self) -> str | None:
        """None while it is under way; then what went wrong, in a line, or nothing."""

    def stop(self, *, at_once: bool) -> None:
        """Ask it to save and stop, or end it at once."""


class Process:
    """A run in a process of this machine, which stops when this one is gone."""

    def __init__(self, directory: Path, preset: str, sequences: int, assignments: Sequence[str], threads: int) -> None:
        """Start it; what it says goes to the file output in its folder."""
        self.output = directory / "output"
        self.stopped = False
        environment = {**os.environ, **QUIET}
        environment.setdefault("OMP_NUM_THREADS", str(threads))
        with open(self.output, "w", encoding="utf-8", opener=unlinked) as file:
            self.process = subprocess.Popen(
                child_process.command(member.main, str(directory), preset, str(sequences), *assignments),
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                env=environment,
                start_new_session=True,  # Ctrl-C is for this process, which passes it on
            )

    def ended(self) -> str | None:
        """See :class:`Job`."""
        status = self.process.poll()
        if status is None:
            return None
        if self.process.stdin is not None:
            self.process.stdin.close()
        if status in (0, INTERRUPTED):
            return ""
        if status < 0:
            asked = self.stopped or -status == signal.SIGTERM
            return "" if asked else f"was ended by {signal.Signals(-status).name}"
        said = ""
        with contextlib.suppress(OSError):
            said = self.output.read_text(encoding="utf-8", errors="replace")
        return last_error(said) or f"exit status {status}"

    def stop(self, *, at_once: bool) -> None:
        """See :class:`Job`."""
        self.stopped = True
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL if at_once else signal.SIGTERM)


def last_error(said: str) -> str:
    """What a process said last of what went wrong, in one line: all of an error's text, without where it came from."""
    lines = [line.rstrip() for line in said.splitlines() if line.strip()]
    own = [line.removeprefix("papertape: ") for line in lines if line.startswith("papertape: ")]
    traced = [number for number, line in enumerate(lines) if line.startswith("Traceback ")]
    # Below the frames, whose lines are indented, stand the type of an error and what it says.
    below = itertools.dropwhile(lambda line: line.startswith(" "), lines[traced[-1] + 1 :] if traced else [])
    return "; ".join(line.strip() for line in own or list(below) or lines[-1:])


class ClusterJob:
    """A run that was handed to a cluster."""

    def __init__(self, job: Any) -> None:
        """
        Args:
            job: of submitit.
        """
        self.job = job

    def ended(self) -> str | None:
        """See :class:`Job`."""
        if not self.job.done():
            return None
        if self.job.exception() is not None:
            return f"job {self.job.job_id}: {last_error(str(self.job.exception()))}"
        return "" if self.job.result() in (0, INTERRUPTED) else last_error(self.job.stderr() or "")

    def stop(self, *, at_once: bool) -> None:
        """See :class:`Job`."""
        self.job.cancel()


def cluster(name: str, given: Sequence[str], folder: Path, jobs: int | None) -> Any:
    """An executor of submitit.

    Args:
        name: of the kind of cluster.
        given: ``key=value`` for it.
        folder: for its files.
        jobs: runs at a time, or as many as the cluster takes.

    Raises:
        OptionsError: submitit is missing, or does not know the cluster or an option.
    """
    try:
        submitit = importlib.import_module("submitit")
    except ImportError as error:
        raise OptionsError(f"--cluster {name}: submitit is not installed; {SUBMITIT}") from error
    parameters: dict[str, Any] = {"name": "papertape"}
    for word in given:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise OptionsError(f"--cluster-option: got {word!r}; expected key=value, such as timeout_min=600")
        parameters[key] = options.parse_value(text, key)
    if jobs is not None and name == "slurm":
        parameters["slurm_array_parallelism"] = jobs
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=name)
        executor.update_parameters(**parameters)
    except Exception as error:  # submitit has several of its own
        raise OptionsError(f"--cluster {name}: {' '.join(str(error).split())}") from error
    return executor


def sweep(arguments: argparse.Namespace) -> int:
    """Train all runs that are not done, and leave a table, a CSV file and a picture."""
    check(arguments)
    chosen = begin(arguments)
    return train_and_write(chosen, arguments, comparison.table, comparison.write, "sweep")


def check(arguments: argparse.Namespace) -> None:
    """Raise OptionsError if what is said of jobs, of a cluster or of the test is wrong, or torchrun has called it."""
    if (size := size_here()) > 1:  # its runs would each wait for as many processes
        raise OptionsError(f"{arguments.command}: got {size} processes of torchrun; it starts its own: call it alone")
    if arguments.jobs is not None and arguments.jobs < 1:
        raise OptionsError(f"--jobs: got {arguments.jobs}; allowed is a whole number of at least 1")
    check_test(arguments)
    if arguments.cluster_option and not arguments.cluster:
        raise OptionsError(f"--cluster-option: got {arguments.cluster_option[0]!r} without --cluster, which it is for")
    if arguments.cluster:
        cluster(arguments.cluster, arguments.cluster_option, RUNS, arguments.jobs)


def train_and_write(
    chosen: Sweep,
    arguments: argparse.Namespace,
    table: Callable[[Sequence[comparison.Outcome]], str],
    write: Callable[[Path, Sequence[comparison.Outcome]], None],
    command: str,
) -> int:
    """Train all runs that are not done, and print what is made of them; returns the exit status.

    Args:
        chosen: the sweep.
        arguments: of the command line.
        table: of what came of all runs.
        write: leaves that in the sweep's folder.
        command: that goes on with it.
    """
    with locked(chosen.directory):
        stopped = Runner(chosen, arguments).train_all()
        again = go_on_with(command, chosen, arguments)
        outcomes = outcomes_of(chosen, arguments.sequences, arguments.test_option)
        done = sum(each.status == "done" for each in outcomes)
        if stopped:
            LOGGER.info("stopped with %d of %d runs done; go on with: %s", done, len(outcomes), again)
            return INTERRUPTED
        print(table(outcomes), end="")
        write(chosen.directory, outcomes)
    LOGGER.info("%d of %d runs done: %s", done, len(outcomes), chosen.directory)
    if done < len(outcomes):
        LOGGER.info("try the others again with: %s", again)
    return 0 if done == len(outcomes) else FAILED


def go_on_with(command: str, chosen: Sweep, arguments: argparse.Namespace) -> str:
    """What to type to go on with a sweep, in the same way and with the same test."""
    words = ["papertape", command, "--resume", str(chosen.directory)]
    if arguments.jobs is not None:
        words += ["--jobs", str(arguments.jobs)]
    if arguments.cluster:
        words += ["--cluster", arguments.cluster]
    for word in arguments.cluster_option:
        words += ["--cluster-option", word]
    if arguments.sequences != SEQUENCES:
        words += ["--sequences", str(arguments.sequences)]
    for word in arguments.test_option:
        words += ["--test-option", word]
    return here(shlex.join(words))


def check_test(arguments: argparse.Namespace) -> None:
    """Raise OptionsError if the size or the options of the test are wrong."""
    if arguments.sequences < 1:
        raise OptionsError(f"--sequences: got {arguments.sequences}; allowed is a whole number of at least 1")
    for word in arguments.test_option:
        if not re.match(r"[^=]+=", word):
            raise OptionsError(f"--test-option: got {word!r}; expected key=value, such as env.test_lengths=[50,100]")


def check_options_of_test(runs: Sequence[Run], assignments: Sequence[str]) -> None:
    """Raise OptionsError if no run can be tested with these options."""
    comparison.check_options_of_test(((run.options, run.test_options) for run in runs if not run.problem), assignments)


def outcomes_of(chosen: Sweep, sequences: int, assignments: Sequence[str]) -> list[comparison.Outcome]:
    """What became of each run of a sweep; those that are done are tested if they have not been in this way."""
    found = []
    for run in chosen.runs:
        folder = chosen.folder(run)
        problem, errors = run.problem or _problem(folder), dict[str, float]()
        summary = read_summary(folder)
        if not problem and summary and summary.done:
            errors, problem = comparison.tested(folder, sequences, [*run.test_options, *assignments])
        found.append(comparison.outcome(folder, run.name, run.labels, errors, problem))
    return found


def _problem(folder: Path) -> str:
    """What is kept of what went wrong with a run, or what keeps that from being read; empty if there is nothing."""
    try:
        return (folder / "problem").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        return str(error)


class Runner:
    """Keeps as many runs under way as there may be, until all have ended or it is asked to stop."""

    def __init__(self, chosen: Sweep, arguments: argparse.Namespace) -> None:
        """
        Args:
            chosen: the sweep.
            arguments: of the command line.
        """
        self.sweep, self.sequences, self.assignments = chosen, arguments.sequences, arguments.test_option
        self.jobs = arguments.jobs or (len(chosen.runs) if arguments.cluster else cores())
        self.executor: Any = None
        if arguments.cluster:
            folder = chosen.directory / "jobs"
            self.executor = cluster(arguments.cluster, arguments.cluster_option, folder, arguments.jobs)
        self.running: dict[str, Job] = {}
        self.stop_requests = 0

    def train_all(self) -> bool:
        """Train what is not done; whether it was asked to stop."""
        waiting = collections.deque(run for run in self.sweep.runs if not run.problem and not self._is_done(run))
        wrong = [run for run in self.sweep.runs if run.problem]
        total = len(self.sweep.runs)
        already = total - len(waiting) - len(wrong)
        LOGGER.info("%s: %d runs, %d at a time", self.sweep.directory, total, min(self.jobs, max(total, 1)))
        if already:
            LOGGER.info("done already: %d", already)
        for run in wrong:
            LOGGER.info("%s failed: %s", run.name, run.problem)
        bar = tqdm(total=total, initial=already + len(wrong), unit="run", dynamic_ncols=True, disable=None)
        passed_on = 0
        with bar, asked_to_stop(self._ask):
            while (waiting and not self.stop_requests) or self.running:
                while waiting and len(self.running) < self.jobs and not self.stop_requests:
                    run = waiting.popleft()
                    try:
                        self._start(run)
                    except OSError as error:
                        self._fail(run.name, str(error))
                        bar.update(1)
                time.sleep(POLL_SECONDS)
                # Here and not where the signal arrives, which may be while a run is being started.
                if passed_on < self.stop_requests:
                    passed_on = self.stop_requests
                    self._stop(at_once=passed_on > 1)
                self._collect(bar)
        return self.stop_requests > 0

    def _is_done(self, run: Run) -> bool:
        folder = self.sweep.folder(run)
        summary = read_summary(folder)
        return bool(summary and summary.done) and all(
            (folder / name).is_file() for name in ("options.yaml", "tested.json")
        )

    def _start(self, run: Run) -> None:
        folder = self.sweep.folder(run)
        folder.mkdir(exist_ok=True)
        if not (folder / "options.yaml").is_file():
            replace_text(folder / "options.yaml", yaml.safe_dump(run.options, sort_keys=False))
        (folder / "problem").unlink(missing_ok=True)
        assignments = [*run.test_options, *self.assignments]
        if self.executor is not None:
            self.running[run.name] = ClusterJob(
                self.executor.submit(member.Member(folder.resolve(), run.preset, self.sequences, assignments))
            )
            return
        threads = max(1, cores() // min(self.jobs, len(self.sweep.runs)))
        self.running[run.name] = Process(folder, run.preset, self.sequences, assignments, threads)

    def _collect(self, bar: Any) -> None:
        for name, job in list(self.running.items()):
            problem = job.ended()
            if problem is None:
                continue
            del self.running[name]
            folder = self.sweep.directory / name
            summary = read_summary(folder)
            if not problem and not (summary and summary.done) and not self.stop_requests:
                problem = "was stopped"
            if problem:
                self._fail(name, problem)
            elif summary and summary.done:
                result = comparison.outcome(folder, name, {}, {}, "")
                error = f", validation error {result.curve[-1][1]:.4g}" if result.curve else ""
                LOGGER.info("%s: done at step %d%s, %.0f s", name, summary.step, error, summary.seconds)
            bar.update(1)
        bar.set_postfix_str(", ".join(self.running), refresh=False)
        bar.refresh()

    def _fail(self, name: str, problem: str) -> None:
        """Say and keep what went wrong with a run; the others go on, whatever became of its folder."""
        LOGGER.info("%s failed: %s", name, problem)
        folder = self.sweep.directory / name
        try:
            folder.mkdir(exist_ok=True)
            replace_text(folder / "problem", problem)
        except OSError as error:
            LOGGER.warning("%s: what went wrong cannot be written (%s)", name, error)

    def _ask(self, number: int, frame: object) -> None:
        self.stop_requests += 1

    def _stop(self, *, at_once: bool) -> None:
        """Have the runs save and stop, or end them at once."""
        if not at_once:
            LOGGER.info("stopping %d runs after their steps; once more to stop at once", len(self.running))
        for job in self.running.values():
            job.stop(at_once=at_once)
