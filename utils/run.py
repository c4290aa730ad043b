"""A run on disk: options, log, metrics, checkpoints and pictures in one folder."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import torch
import yaml
from pydantic import BeforeValidator, Field, TypeAdapter
from torch import Tensor
from tqdm import tqdm

from ..core import install
from ..core.agent import Agent
from ..core.circuit import Circuit
from ..core.env import Batch
from ..core.options import OptionsError
from ..core.recorder import Chart, Recorder
from ..core.task import Task
from ..core.trace import Trace
from . import checkpoint
from .files import append_line, clear_parts, is_part, lock, replace_text
from .options import load_file
from .plots import episode_from
from .sinks import Sinks

if TYPE_CHECKING:
    from .factory import RunOptions

logger = logging.getLogger(__name__)

RUNS = Path("runs")
"""Where runs are kept, below the working directory."""

TO_GO_ON_FROM = ("latest", "best")
"""Checkpoints that a run resumes from: the first one that exists. Early on there may be a best and no latest."""

POSTFIX_SECONDS = 0.5
"""The numbers beside the progress bar change at most this often."""


def new_directory(preset: str, name: str | None = None, root: Path = RUNS) -> Path:
    """Make the folder of a new run, ``<preset>_<yymmddHHMMSS>``, or of that name.

    Raises:
        OptionsError: the name is taken; see also :func:`check_path`.
    """
    check_path(root)
    root.mkdir(parents=True, exist_ok=True)
    if name is not None:
        check_free(name, root)
        (root / name).mkdir(exist_ok=True)
        return root / name
    plain = re.sub(r"[^A-Za-z0-9.-]+", "-", preset).strip(".-") or "run"
    stamped = f"{plain}_{time.strftime('%y%m%d%H%M%S')}"
    for suffix in itertools.count(1):
        directory = root / (stamped if suffix == 1 else f"{stamped}-{suffix}")
        try:
            directory.mkdir()
        except FileExistsError:
            continue
        return directory
    raise AssertionError("itertools.count ended")


def check_path(path: Path, option: str = "run") -> None:
    """Raise OptionsError if a path is none that files could hold, which are UTF-8, nor the page."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError as error:
        said = f"{option}: got {str(path.absolute())!r}; allowed is a path that can be written as UTF-8"
        raise OptionsError(said) from error


def check_free(name: str, root: Path = RUNS) -> None:
    """Raise OptionsError if something of that name is there already."""
    if (root / name).is_dir() and all(map(_comes_first, (root / name).iterdir())):
        return  # of what was killed as it began
    if (root / name).exists():
        go_on = f", --resume {root / name} goes on with it" if (root / name / "options.yaml").is_file() else ""
        raise OptionsError(f"name: got {name!r}; {root / name} is there already{go_on}; give another name, or none")


def _comes_first(path: Path) -> bool:
    """Whether something in the folder of a run is there before its options are, and has nothing to lose."""
    empty = path.name == "plots" and not any(path.iterdir())
    return path.name == "lock" or empty or is_part(path)


def title_of(directory: Path) -> str:
    """What a run is called among all others: by its folder, after the sweep or league that it is one of."""
    directory = directory.absolute()
    one_of_many = (directory.parent / "sweep.json").is_file()
    return f"{directory.parent.name}_{directory.name}" if one_of_many else directory.name


LARGEST = 2**63
"""No count comes to this; what does is damaged, and may be more than a float holds."""

Count = Annotated[int, Field(lt=LARGEST)]


def _listed(names: Any) -> Any:
    return [names] if isinstance(names, str) else names


Names = Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_listed)]
"""Some names; runs of earlier versions have kept one alone."""


class Summary(NamedTuple):
    """What is to be known of a run without building it; summary.json in its folder."""

    preset: str
    metric: str
    """Of the error, such as bits_wrong."""
    trained_on: Names
    """The validation sets that make up the training range, such as length 1-20."""
    answers_per_step: Count | None
    """Sequences that are answered in a step; None of an agent that does not learn."""
    step: Count
    seconds: float
    """Of training, up to where it last stopped, or to the last checkpoint where it was killed."""
    bad_steps: Count
    done: bool
    """Whether there is nothing left to learn: the target is reached, or the steps are used up."""


_SUMMARY = TypeAdapter(Summary)


def read_summary(directory: Path) -> Summary | None:
    """The summary of a run; None if it has none that can be read."""
    try:
        return _SUMMARY.validate_json((directory / "summary.json").read_bytes())
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def summarised(directory: Path, preset: str, agent: Agent, run: Run) -> Iterator[None]:
    """Within the block, in which an agent learns, the run has a summary; after it, one that says how far it came.

    With each checkpoint it is written anew: a run that is killed goes on with the seconds until then.

    Args:
        directory: of the run.
        preset: what the run began with; one that goes on keeps what its summary says.
        agent: that learns.
        run: records it; one whose last checkpoint could not be written is not done.
    """
    before, started = read_summary(directory), time.monotonic()
    task = agent.env

    def write(done: bool) -> None:
        summary = Summary(
            preset=before.preset if before else preset,
            metric=task.error_metric,
            trained_on=tuple(task.training_range("validation")),
            answers_per_step=getattr(agent, "answers_per_step", None),
            step=agent.step,
            seconds=round((before.seconds if before else 0.0) + time.monotonic() - started, 3),
            bad_steps=int(getattr(agent, "bad_steps", 0)),
            done=done,
        )
        try:
            replace_text(directory / "summary.json", json.dumps(summary._asdict(), indent=1))
        except OSError as error:
            run.warn_once("summary.json", error)

    write(done=False)
    run.after_checkpoint = lambda: write(done=False)
    try:
        yield
    except BaseException:
        write(done=False)
        raise
    write(done=run.saved and not agent.stop_requested)


def find_directory(name: str, root: Path = RUNS, *, what: str = "run", file: str = "options.yaml") -> Path:
    """The folder of a run given by its path, its name below ``runs/``, or ``latest``.

    Args:
        name: what is given.
        root: where runs are kept.
        what: ``sweep``, say, where something else that is kept there is meant.
        file: by which it is known.

    Raises:
        OptionsError: no such run; see also :func:`check_path`.
    """
    found = sorted((path.parent for path in root.glob(f"*/{file}")), key=trained_at)
    if name == "latest" and found:
        check_path(found[-1], what)
        return found[-1]
    for directory in (Path(name), root / name) if name else ():
        if (directory / file).is_file():
            check_path(directory, what)
            return directory
        if what == "run" and (directory / "sweep.json").is_file():
            kind = "league" if (directory / "league.yaml").is_file() else "sweep"
            raise OptionsError(
                f"run: got {name!r}, which is a {kind}; allowed is one of its runs, in its folder; all go on with: "
                f"{install.here(f'papertape {kind} --resume {name}')}"
            )
    newest = ", ".join(path.name for path in found[-5:]) or f"(there are no {what}s in {root}/)"
    older = f", or one of {len(found) - 5} older ones" if len(found) > 5 else ""
    raise OptionsError(f"{what}: got {name!r}; allowed is the path of a {what}'s folder, or one of: {newest}{older}")


def trained_at(directory: Path) -> float:
    """When a run or a sweep last came further; long ago for one that is just going. A test changes nothing here."""
    times = [0.0]
    for name in ("options.yaml", "metrics.jsonl", "summary.json", "sweep.json", "table.md"):
        with contextlib.suppress(OSError):
            times.append((directory / name).stat().st_mtime)
    return max(times)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Within the block, only this process may write into the folder of a run.

    What a killed one has left half written is cleared away.

    Raises:
        OptionsError: another process is training this run.
    """
    with lock(directory / "lock") as holder:
        if holder:
            raise OptionsError(
                f"run: {directory} is in progress ({holder} writes into it); stop that first, or begin another run"
            )
        clear_parts(directory)
        yield


def find_launch(name: str, root: Path = RUNS) -> Path | None:
    """The folder of the unfinished run that the torchrun launch of this name began."""
    for path in sorted(root.glob("*/launch")):
        with contextlib.suppress(OSError):  # of a run that has just ended
            if path.read_text(encoding="utf-8") == name and (path.parent / "options.yaml").is_file():
                return path.parent
    return None


def find_checkpoint(name: str, root: Path = RUNS) -> Path:
    """The checkpoint file of that path, or the best (if there is none, the latest) of a run.

    Args:
        name: a file, or a run as in :func:`find_directory`.
        root: where runs are kept.

    Raises:
        OptionsError: no such file and no such run, or the run has no checkpoint.
    """
    if Path(name).is_file():
        return Path(name)
    try:
        directory = find_directory(name, root)
    except OptionsError as error:
        raise OptionsError(str(error).replace("run: ", "start: ", 1) + ", or a checkpoint file") from error
    for path in (directory / "checkpoints" / "best.pt", directory / "checkpoints" / "latest.pt"):
        if path.is_file():
            return path
    raise OptionsError(f"start: got {name!r}; {directory} has no checkpoint")


class Run(Recorder):
    """Writes what an agent reports into a folder, to visdom and beside a progress bar; a failing disk stops nothing."""

    def __init__(
        self,
        directory: Path,
        options: RunOptions,
        circuit: Circuit | None = None,
        *,
        task: Task | None = None,
        title: str | None = None,
        gif: bool = False,
    ) -> None:
        """
        Args:
            directory: an existing folder.
            options: of the run; saved with every checkpoint.
            circuit: of the run; its sizes are saved with every checkpoint, so that it can be built without the env.
            task: of the run, which knows what the channels of inputs and outputs are, and what the error of a set is;
                without one, no errors are logged.
            title: name of the visdom environment; None takes :func:`title_of` the folder.
            gif: also write each episode as an animation of the memory at work.
        """
        self.directory = directory
        self.options = options
        self.sizes = {"input_size": circuit.input_size, "output_size": circuit.output_size} if circuit else {}
        self.channels = (tuple(task.input_channels()), tuple(task.output_channels())) if task else ((), ())
        self.error_metric = task.error_metric if task else None
        self.gif = gif
        (directory / "plots").mkdir(exist_ok=True)
        self.sinks = Sinks(
            options.plots,
            directory,
            title or title_of(directory),
            hostname=options.visdom_host,
            port=options.visdom_port,
            user=options.visdom_user,
            password_file=options.visdom_password_file,
        )
        self.wants_episodes = self.sinks.wants_pictures
        self._bar: tqdm[Any] | None = None
        self._postfix_due = 0.0
        self._shown: dict[str, float] = {}
        self._failed: dict[str, str] = {}
        """What could not be written, and why."""
        self.after_checkpoint: Callable[[], None] = lambda: None
        """Called when a checkpoint was saved."""

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish the pictures and the progress bar."""
        if self._bar is not None:
            self._bar.close()
        self.sinks.close()

    def warn_once(self, what: str, error: Exception) -> None:
        """Say that something cannot be written, the first time."""
        if what not in self._failed:
            self._failed[what] = str(error)
            logger.warning("%s cannot be written (%s); the run goes on without it", what, error)

    @contextlib.contextmanager
    def launched(self, name: str | None) -> Iterator[None]:
        """Within the block, and after an error or a kill has ended it, :func:`find_launch` finds this run."""
        path = self.directory / "launch"
        if name is not None:
            replace_text(path, name)
        yield
        path.unlink(missing_ok=True)

    def write_options(self, step: int = 0, before: Mapping[str, Any] | None = None) -> None:
        """Write options.yaml, resolved; other options until this step are kept as options-until-<step>.yaml.

        Args:
            step: of the run.
            before: its options until then, as plain values; None if it has none.

        Raises:
            OSError: the folder cannot be written.
        """
        path, kept = self.directory / "options.yaml", self.directory / f"options-until-{step}.yaml"
        # The folder has the name: a run that begins with this file gets another one.
        now = self.options.model_dump(mode="json", exclude={"name"})
        # Those of a run that came no further than where it began leave no trace in its state: the earlier ones stay.
        if before not in (None, now) and not kept.exists():
            replace_text(kept, yaml.safe_dump(before, sort_keys=False))
        text = yaml.safe_dump(now, sort_keys=False)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            replace_text(path, text)

    def message(self, text: str) -> None:
        """One line for a person, to the log."""
        logger.info("%s", text)
        self.sinks.message(text)

    def text(self, name: str, text: str) -> None:
        """A text, such as the run's options, to the sinks."""
        self.sinks.text(name, text)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append a row to the curves, and to metrics.jsonl if it :func:`is_kept`; what was judged is logged, too."""
        row = {"step": step} | {name: value if math.isfinite(value) else None for name, value in values.items()}
        try:
            if is_kept(step, values, getattr(self.options.agent, "log_every", 1)):
                append_line(self.directory / "metrics.jsonl", json.dumps(row))
        except OSError as error:
            self.warn_once("metrics.jsonl", error)
        self.sinks.metrics(step, values)
        judged: dict[str, list[str]] = {}
        for name, value in values.items():
            of_set, _, metric = name.rpartition("/")
            kind, _, label = of_set.partition("/")
            # What has more parts, such as the accuracy of each class, is for the curves; only sets have errors.
            if kind in ("validation", "test") and f"{of_set}/{self.error_metric}" in values and metric != "loss":
                judged.setdefault(f"{kind}, {metric.replace('_', ' ')}", []).append(f"{label}: {value:.4g}")
        for metric, numbers in judged.items():
            logger.info("step %d, %s: %s", step, metric, ", ".join(numbers))

    def forget_after(self, step: int, *, validated: bool = True) -> None:
        """Drop rows of metrics.jsonl after a step, from which the run resumes.

        Args:
            step: whose own rows stay.
            validated: whether that step's validation does so, too; it goes where it will be made again.
        """
        path = self.directory / "metrics.jsonl"
        if not path.exists():
            return
        kept = [row for row in read_metrics(path) if row["step"] <= step]
        if not validated:
            kept = [row for row in kept if row["step"] < step or not any(map(_is_validation, row))]
        replace_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        for row in kept:
            values = {name: math.nan if value is None else value for name, value in row.items() if name != "step"}
            self.sinks.metrics(row["step"], values)

    def progress(self, step: int, total: int | None, values: Mapping[str, float]) -> None:
        """Move the progress bar."""
        if self._bar is None:
            self._bar = tqdm(total=total, initial=step - 1, unit="step", dynamic_ncols=True, disable=None)
        self._shown |= values
        now = time.monotonic()
        if now >= self._postfix_due:
            self._postfix_due = now + POSTFIX_SECONDS
            shown = {name: f"{value:.4g}" for name, value in self._shown.items() if name not in HIDDEN_VALUES}
            self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._bar.n)

    def episode(self, step: int, name: str, batch: Batch, outputs: Tensor, trace: Trace) -> None:
        """Draw one answered sequence."""
        episode = episode_from(name, batch, outputs, trace, *self.channels)
        self.sinks.episode(step, name, episode)
        if self.gif and not episode.examples and (episode.seen or episode.pictures):
            self.sinks.animation(name, episode)

    def chart(self, step: int, name: str, chart: Chart) -> None:
        """Draw plain data."""
        self.sinks.chart(step, name, chart)

    @property
    def saved(self) -> bool:
        """Whether the last checkpoint to resume from was written, and the one of the best weights."""
        return not self.unsaved

    @property
    def unsaved(self) -> str:
        """What keeps the run from being :attr:`saved`; empty if nothing does."""
        failed = [(what, why) for what, why in self._failed.items() if what.startswith("checkpoint ")]
        return "; ".join(f"{what} cannot be written ({why})" for what, why in failed)

    def checkpoint(self, name: str, state: Mapping[str, Any]) -> bool:
        """Save the agent's state and the run's options; when the disk fails, the last checkpoint stays as it is.

        Returns:
            Whether it was saved.
        """
        content = {
            "options": self.options.model_dump(mode="json", exclude={"name"}),
            "sizes": self.sizes,
            "agent": dict(state),
        }
        folder = self.directory / "checkpoints"
        try:
            folder.mkdir(exist_ok=True)
            checkpoint.save(folder / f"{name}.pt", content)
        except OSError as error:
            self.warn_once(f"checkpoint {name}", error)
            return False
        self._failed.pop(f"checkpoint {name}", None)
        self.after_checkpoint()
        return True


HIDDEN_VALUES = ("objective", "gradient_norm", "learning_rate", "bad_steps")
"""Numbers that the progress bar leaves to the curves."""


EVERY_ROW = 2048
"""So many rows of training are kept at first."""


def is_kept(step: int, values: Mapping[str, float], log_every: int) -> bool:
    """Whether a row goes to metrics.jsonl: all do that hold more than training's own numbers, or at other steps.

    Of training, the first :data:`EVERY_ROW` do, then every second one until there were twice as many, then every
    fourth, and so on: a million rows leave 11,000. That depends on the step alone, so that a run that was stopped and
    goes on keeps the same ones.

    Args:
        step: of the row.
        values: by name.
        log_every: steps from one row of training to the next.
    """
    number, between = divmod(step, log_every)
    if between or not all(name.startswith("train/") for name in values):
        return True
    return number % 2 ** max(0, number.bit_length() - EVERY_ROW.bit_length() + 1) == 0


def _is_validation(name: str) -> bool:
    return name.startswith("validation/")


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a metrics.jsonl; one that a killed process or a failing disk left damaged is left out."""
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):  # also a number of too many digits, brackets too deep
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int) and all(map(_is_plain, row.values())):
                yield row


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < LARGEST)


def read_options(directory: Path) -> dict[str, Any]:
    """The options of a run: those that it was last started with, or that somebody has written there since.

    Raises:
        OptionsError: the file is missing or damaged.
    """
    return load_file(str(directory / "options.yaml"))


def has_checkpoint(directory: Path) -> bool:
    """Whether a run has a checkpoint to resume from, one of :data:`TO_GO_ON_FROM`."""
    return any((directory / "checkpoints" / f"{name}.pt").exists() for name in TO_GO_ON_FROM)


class Saved(NamedTuple):
    """What a checkpoint holds of a run."""

    agent: dict[str, Any]
    """The agent's state."""
    options: dict[str, Any] | None
    """Those under which it came to this state, as plain values; None where they were not saved."""


def load_agent_state(
    directory: Path, names: tuple[str, ...] = TO_GO_ON_FROM, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """The agent's state; see :func:`load_saved`."""
    return load_saved(directory, names, device).agent


def load_saved(directory: Path, names: tuple[str, ...] = TO_GO_ON_FROM, device: torch.device | str = "cpu") -> Saved:
    """What the first of the named checkpoints that exists holds.

    Raises:
        checkpoint.CheckpointError: none exists, or it cannot be read.
    """
    for name in names:
        path = directory / "checkpoints" / f"{name}.pt"
        if path.exists():
            content = checkpoint.load(path, device)
            if "agent" not in content:
                raise checkpoint.CheckpointError(f"{path}: holds no agent's state")
            return Saved(content["agent"], content.get("options"))
    raise checkpoint.CheckpointError(f"{directory / 'checkpoints'}: holds none of {', '.join(names)}.pt")
