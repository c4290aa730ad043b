"""``papertape train``: a new run, or one that goes on."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from ...agents.learning import LearningAgent
from ...core import distributed, install
from ...core.agent import Agent
from ...core.distributed import Processes
from ...core.kernels.dispatch import BackendError
from ...core.options import OptionsError
from .. import factory
from ..log import LOGGER, log_to
from ..options import DEFAULT_PRESET
from ..run import (
    Run,
    check_free,
    find_directory,
    find_launch,
    has_checkpoint,
    load_agent_state,
    load_saved,
    locked,
    new_directory,
    read_options,
    summarised,
)
from .arguments import gives, preset_name, read_arguments, read_saved_arguments, started
from .report import FAILED

STOPPING = (signal.SIGINT, signal.SIGTERM)
"""Signals that ask a run to stop."""


@contextlib.contextmanager
def asked_to_stop(act: Callable[[int, object], None]) -> Iterator[None]:
    """Within the block, Ctrl-C and SIGTERM call a function with the number of the signal and the frame.

    A signal that is ignored, as Ctrl-C is for a shell's programs in the background, stays so.
    """
    heard = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    old = {number: signal.signal(number, act) for number in heard}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def stop_on_signal(agent: Agent) -> contextlib.AbstractContextManager[None]:
    """Within the block, Ctrl-C and SIGTERM ask the agent to stop after its step; a second one stops at once."""

    def ask(number: int, frame: object) -> None:
        if agent.stop_requested:
            raise KeyboardInterrupt
        agent.stop_requested = True
        LOGGER.info("stopping after this step; once more to stop at once")

    return asked_to_stop(ask)


def forget(directory: Path) -> None:
    """Remove the folder of a run that did not begin, and the one it is in if that is empty then."""
    shutil.rmtree(directory)
    with contextlib.suppress(OSError):
        directory.parent.rmdir()


class Start(NamedTuple):
    """How a run starts: its options and its folder."""

    chosen: factory.RunOptions
    directory: Path | None = None
    """Of the run that is resumed; None for a new one."""
    goes_on: bool = False
    """Whether that run has a checkpoint to resume from."""
    any_backend: bool = False
    """Whether the backend may have been chosen on another machine: if it cannot run here, auto takes its place."""
    before: Mapping[str, Any] | None = None
    """Options of the run so far, as plain values; None for a new one."""
    preset: str = DEFAULT_PRESET
    """What a new run is called after."""

    @property
    def changes(self) -> list[str]:
        """A line for each option that differs from those of the run so far."""
        return self.changes_since(self.before)

    def changes_since(self, before: Mapping[str, Any] | None) -> list[str]:
        """A line for each option that differs from others, given as plain values."""
        if before is None:
            return []
        found = factory.differences(before, self.chosen.model_dump(mode="json"))
        return [f"{path}: {was!r} -> {now!r}" for path, was, now in found]


def choose(arguments: argparse.Namespace, held: contextlib.ExitStack) -> Start:
    """Options and folder of a run from the command line; torchrun's restarts find the run that they have begun.

    Args:
        arguments: of ``train``.
        held: takes the lock of a run that is resumed.

    Raises:
        OptionsError: lists every problem.
    """
    if arguments.resume is not None:
        directory = find_directory(arguments.resume)
        held.enter_context(locked(directory))
        begun = choose_resumed(arguments.arguments, directory, arguments.imports)
        return begun._replace(preset=getattr(arguments, "preset", begun.preset))
    chosen = read_arguments(arguments.arguments, imports=arguments.imports)
    launched = distributed.launch()
    found = find_launch(launched) if launched else None
    if found:
        held.enter_context(locked(found))
        before = factory.parse(read_options(found))
        if _same(chosen, before):
            return Start(before, found, has_checkpoint(found))
    chosen = started(chosen)
    if chosen.name:
        check_free(chosen.name)
    return Start(chosen, preset=preset_name(arguments.arguments))


def choose_resumed(arguments: Sequence[str], directory: Path, imports: Sequence[str] = ()) -> Start:
    """Options of a run that is resumed, from its folder and ``key=value``.

    Changed options hold from here on; those that must not change (:attr:`Options.kept`) are refused. What has changed
    is told by the checkpoint, under whose options the run came so far: options.yaml may have been edited since, or be
    of a start that was killed before it saved anything.

    Args:
        arguments: ``key=value``.
        directory: of the run.
        imports: modules to import besides those of the run.

    Raises:
        OptionsError: lists every problem; also options that must not change.
    """
    saved = read_options(directory)
    chosen = read_saved_arguments(arguments, saved, imports)
    if chosen.name is not None:
        raise OptionsError(f"name: got {chosen.name!r}; a run that goes on keeps its folder, leave it out")
    goes_on = has_checkpoint(directory)
    before = (load_saved(directory).options if goes_on else None) or saved
    if chosen.start != before.get("start"):
        raise OptionsError(f"start: got {chosen.start!r}; a run that goes on has weights of its own, leave it out")
    if goes_on and (lines := list(chosen.refused(before))):
        raise OptionsError("\n".join(lines))
    return Start(chosen, directory, goes_on, any_backend=not gives(arguments, "backend"), before=before)


def build(chosen: factory.RunOptions, *, resumed: bool, any_backend: bool) -> factory.Parts:
    """What a run is made of; see :class:`Start` for ``any_backend``."""
    try:
        return factory.build(chosen, resumed=resumed)
    except BackendError as error:
        if not any_backend:
            raise
        LOGGER.info("%s; takes auto", error)
        return factory.build(chosen.model_copy(update={"backend": "auto"}), resumed=resumed)


def _same(chosen: factory.RunOptions, before: factory.RunOptions) -> bool:
    """Whether options are those of a run that has begun, apart from what was looked up when it began."""
    given, kept = chosen.model_dump(), before.model_dump()
    for values in (given, kept):
        values.pop("start")
        values.pop("name")
    return given == kept


def train(arguments: argparse.Namespace) -> int:
    """Train a preset, or resume a run; under torchrun, together with other processes."""
    with distributed.join() as processes, contextlib.ExitStack() as held:
        begin = processes.share(lambda: choose(arguments, held))
        # Built and loaded before the first folder is made: bad input leaves nothing behind.
        parts = prepare(begin, processes)
        torch.set_num_threads(factory.count_threads(begin.chosen, parts.env))
        with contextlib.closing(parts.env):
            if processes.first:
                return 0 if fit(parts, begin, held) else FAILED
            with stop_on_signal(parts.agent):
                parts.agent.fit()
    return 0


def prepare(begin: Start, processes: Processes) -> factory.Parts:
    """What a run is made of, with its agent in the state that it begins with, the same in all processes."""
    # A first state that comes from a file is read by the first process alone.
    parts = build(begin.chosen, resumed=begin.goes_on or not processes.first, any_backend=begin.any_backend)
    agent = parts.agent
    agent.join(processes)
    if begin.goes_on and begin.directory and processes.first:
        state = load_agent_state(begin.directory)
        try:
            agent.load_state_dict(state)
        except ValueError as error:
            if not begin.changes:
                raise
            raise OptionsError(f"{', '.join(begin.changes)}; the run cannot go on with that: {error}") from error
        if isinstance(agent, LearningAgent):
            judge_best(agent, begin)
            # Whether the target is reached is looked at again.
            if _concern(begin.changes, (*judging(agent), "agent.target_error", "agent.confirmation_")):
                agent.forget_validation()
    if processes.size > 1:
        state = processes.share_state(agent.state_dict)
        if not processes.first:
            agent.load_state_dict(state)
    return parts


def judging(agent: LearningAgent) -> tuple[str, ...]:
    """How options begin that what validation finds depends on."""
    return ("env.", "circuit.", "precision", *(f"agent.{name}" for name in agent.judging))


def judge_best(agent: LearningAgent, begin: Start) -> None:
    """Let a run that goes on with other options know how good the best weights so far are.

    Those of a killed process may be of a later step than the run goes on from, and of other options than both. Without
    a change it comes to them again.
    """
    assert begin.directory is not None
    changes, decisive = begin.changes, judging(agent)
    try:
        best, options = load_saved(begin.directory, ("best",))
        later = best["step"] > agent.step
        if later:
            changes = [*changes, *begin.changes_since(options)]
        if _concern(changes, decisive):
            agent.judge_anew(best)
    except ValueError as error:  # there are none, or they cannot be read
        if _concern(changes, decisive):
            LOGGER.info("%s; the next weights that are judged are the best", error)
            agent.judge_anew(None)
        return
    if later and changes:
        LOGGER.info("the best weights are those of step %d, which it had come to before", best["step"])
        if not _concern(changes, decisive):
            agent.best_error = best["best_error"]


def _concern(changes: Sequence[str], beginnings: tuple[str, ...]) -> bool:
    """Whether any of the changed options begins in one of these ways."""
    return any(change.startswith(beginnings) for change in changes)


def fit(parts: factory.Parts, begin: Start, held: contextlib.ExitStack) -> bool:
    """Let the agent learn, and record it in the run's folder, whose lock ``held`` keeps; whether it is all saved."""
    agent, chosen, resumed = parts.agent, begin.chosen, begin.directory
    directory = resumed or new_directory(begin.preset, chosen.name)
    with contextlib.ExitStack() as undone:
        if not resumed:
            held.enter_context(locked(directory))
            # Until here, it may be the folder of another process that has begun a run of this name meanwhile.
            if chosen.name:
                check_free(chosen.name)
            undone.callback(forget, directory)
        run = undone.enter_context(Run(directory, chosen, parts.circuit, task=parts.env))
        run.write_options(agent.step, begin.before)
        undone.pop_all()
    with log_to(directory / "log"), run, run.launched(distributed.launch()):
        agent.recorder = run
        if resumed and not begin.goes_on:
            LOGGER.info("run %s has no checkpoint yet: it starts from the beginning", directory)
        else:
            LOGGER.info("run %s%s", directory, f" goes on at step {agent.step}" if resumed else "")
        for change in begin.changes:
            LOGGER.info("%s", change)
        if chosen.start and not begin.goes_on:
            LOGGER.info("starts with the weights of %s", chosen.start)
        if agent.processes.size > 1:
            LOGGER.info("%d processes share the work", agent.processes.size)
        description = f"{factory.describe(parts)}\n  {torch.get_num_threads()} CPU thread(s)"
        LOGGER.info("%s", description)
        run.text("options", yaml.safe_dump(chosen.model_dump(mode="json"), sort_keys=False))
        run.text("circuit", f"{description}\n\n{parts.circuit}")
        if resumed:
            run.forget_after(agent.step, validated=not agent.owes_validation)
            (directory / "problem").unlink(missing_ok=True)  # that a sweep has kept of an earlier start
        with stop_on_signal(agent), summarised(directory, begin.preset, agent, run):
            agent.fit()
        if agent.stop_requested or not run.saved:
            hint = install.here(f"papertape train --resume {shlex.quote(str(directory))}")
            what = "stopped" if agent.stop_requested else "not saved"
            why = f": {run.unsaved}" if run.unsaved else ""
            LOGGER.info("%s at step %d%s; go on with: %s", what, agent.step, why, hint)
        else:
            hint = install.here(f"papertape test {shlex.quote(str(directory))}")
            LOGGER.info("done at step %d; look closer with: %s", agent.step, hint)
    return run.saved
