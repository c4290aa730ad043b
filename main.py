"""Command line: parse, build, run."""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

import papertape
from papertape.agents.learning import TrainingError
from papertape.core import distributed, registry
from papertape.core.agent import Agent
from papertape.core.distributed import FirstProcessError, LostProcessError, Processes
from papertape.core.kernels.dispatch import BackendError
from papertape.core.options import ContractError, OptionsError
from papertape.core.task import Task
from papertape.envs.images import DataError
from papertape.utils import factory, options
from papertape.utils.log import LOGGER, log_to
from papertape.utils.options_help import help_text
from papertape.utils.run import (
    Run,
    find_checkpoint,
    find_directory,
    find_launch,
    has_checkpoint,
    load_agent_state,
    locked,
    new_directory,
    read_options,
)

QUIET = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
"""What tells the threads of each kind of OpenMP to sleep while they wait."""
DEFAULT_PRESET = "ntm-copy"
ERRORS = (*(ValueError, OSError, ImportError, ContractError, BackendError, DataError, TrainingError, LostProcessError),)
"""What is said in one line."""


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(
        prog="papertape", description="Train and watch circuits that read and write an external memory."
    )
    importing = argparse.ArgumentParser(add_help=False)
    importing.add_argument(
        "--import",
        action="append",
        default=[],
        dest="imports",
        metavar="MODULE",
        help="a module that registers what options name; may be given again",
    )
    top.add_argument("--version", action="version", version=papertape.__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser("train", parents=[importing], help="train a preset, or go on with a run")
    train.add_argument("arguments", nargs="*", metavar="PRESET | key=value", help=f"default preset: {DEFAULT_PRESET}")
    train.add_argument("--resume", metavar="RUN", help="go on with a run: its folder, its name, or latest")
    test = commands.add_parser(
        "test", parents=[importing], help="test a run on sequences of their own; writes pictures and an animation"
    )
    test.add_argument("run", nargs="?", metavar="RUN", help="a run's folder, its name, or latest")
    test.add_argument("arguments", nargs="*", metavar="key=value")
    test.add_argument("--checkpoint", choices=("best", "latest"), help="default: best, or latest if there is none")
    commands.add_parser("list", parents=[importing], help="show presets and everything that options can name")
    show = commands.add_parser("show", parents=[importing], help="print options, fully resolved")
    show.add_argument("arguments", nargs="*", metavar="PRESET | key=value", help=f"default preset: {DEFAULT_PRESET}")
    show.add_argument(
        "--help-options",
        action="store_true",
        help="what each of them is: type, default, what is allowed, a line of help",
    )
    return top


def parse_arguments(given: Sequence[str]) -> argparse.Namespace:
    """The command line, with ``key=value`` before or after options; argparse alone stops at the first option."""
    grammar = parser()
    parsed, rest = grammar.parse_known_args(given)
    if rest and (not hasattr(parsed, "arguments") or any(word.startswith("-") for word in rest)):
        grammar.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.arguments += rest
    if parsed.command == "test" and parsed.run is None:
        grammar.error("test: RUN is missing; allowed is a run's folder, its name, or latest")
    return parsed


def read_arguments(
    arguments: Sequence[str], values: dict[str, Any] | None = None, imports: Sequence[str] = ()
) -> factory.RunOptions:
    """Options from an optional preset followed by ``key=value``; ``values`` stand in for the preset.

    Args:
        arguments: the preset and ``key=value``.
        values: of a run that there is, or None.
        imports: modules to import besides those that the options name.

    Raises:
        OptionsError: lists every problem.
    """
    assignments = list(arguments)
    if values is None:
        named = bool(assignments) and "=" not in assignments[0]
        values = options.load_file(assignments.pop(0) if named else DEFAULT_PRESET)
    # What they name is there for the others.
    options.override(values, [assignment for assignment in assignments if _gives([assignment], "imports")])
    named_there = values.get("imports")
    modules = [*(named_there if isinstance(named_there, list) else []), *imports]
    if modules:
        values["imports"] = list(dict.fromkeys(modules))
        registry.import_modules(values["imports"])
    others = [assignment for assignment in assignments if not _gives([assignment], "imports")]
    for line in options.override(values, others):
        LOGGER.info("%s", line)
    return factory.parse(values)


@contextlib.contextmanager
def stop_on_signal(agent: Agent) -> Iterator[None]:
    """Within the block, Ctrl-C and SIGTERM ask the agent to stop after its step; a second one stops at once."""

    def ask(number: int, frame: object) -> None:
        if agent.stop_requested:
            raise KeyboardInterrupt
        agent.stop_requested = True
        LOGGER.info("stopping after this step; once more to stop at once")

    old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def read_saved_arguments(arguments: Sequence[str], saved: dict[str, Any], imports: Sequence[str]) -> factory.RunOptions:
    """Options of a run with ``key=value`` over them; a device that is not here (it may be another machine) is auto.

    Raises:
        OptionsError: lists every problem.
    """
    values = copy.deepcopy(saved)
    if not _gives(arguments, "device"):
        try:
            factory.resolve_device(str(saved.get("device", "auto")))
        except OptionsError as error:
            LOGGER.info("%s; takes auto", error)
            values["device"] = "auto"
    return read_arguments(arguments, values, imports)


def _gives(arguments: Sequence[str], key: str) -> bool:
    return any(assignment.startswith(f"{key}=") for assignment in arguments)


def forget(directory: Path) -> None:
    """Remove the folder of a run that did not begin, and the one it is in if that is empty then."""
    shutil.rmtree(directory)
    with contextlib.suppress(OSError):
        directory.parent.rmdir()


class Start(NamedTuple):
    """What a run begins with."""

    chosen: factory.RunOptions
    directory: Path | None = None
    """Of the run that goes on; None for a new one."""
    goes_on: bool = False
    """Whether that run has a checkpoint to go on from."""
    any_backend: bool = False
    """Whether the backend was chosen on what may have been another machine: if it cannot run here, auto stands in."""
    changes: tuple[str, ...] = ()
    """Options that are not those of the run so far."""


def choose(arguments: argparse.Namespace, held: contextlib.ExitStack) -> Start:
    """Options and folder of a run from the command line; torchrun's restarts find the run that they have begun.

    Args:
        arguments: of ``train``.
        held: takes the lock of a run that goes on.

    Raises:
        OptionsError: lists every problem.
    """
    if arguments.resume:
        directory = find_directory(arguments.resume)
        held.enter_context(locked(directory))
        return choose_resumed(arguments.arguments, directory, arguments.imports)
    chosen = read_arguments(arguments.arguments, imports=arguments.imports)
    launched = distributed.launch()
    begun = find_launch(launched) if launched else None
    if begun:
        held.enter_context(locked(begun))
        before = factory.parse(read_options(begun))
        if _same(chosen, before):
            return Start(before, begun, has_checkpoint(begun))
    if chosen.start:
        # Recorded as the file that it is: the latest run will be another one soon.
        chosen = chosen.model_copy(update={"start": str(find_checkpoint(chosen.start))})
    return Start(chosen)


def choose_resumed(arguments: Sequence[str], directory: Path, imports: Sequence[str] = ()) -> Start:
    """Options of a run that goes on, from its folder and ``key=value``.

    Options that may change hold from here on; those that a run keeps (:attr:`Options.kept`) are refused.

    Args:
        arguments: ``key=value``.
        directory: of the run.
        imports: modules to import besides those of the run.

    Raises:
        OptionsError: lists every problem, or an option is given that a run keeps from its beginning.
    """
    saved = read_options(directory)
    chosen = read_saved_arguments(arguments, saved, imports)
    if chosen.start != saved.get("start"):
        raise OptionsError(f"start: got {chosen.start!r}; a run that goes on has weights of its own, leave it out")
    goes_on = has_checkpoint(directory)
    if goes_on and (lines := list(chosen.refused(saved))):
        raise OptionsError("\n".join(lines))
    changes = factory.differences(saved, chosen.model_dump(mode="json"))
    said = tuple(f"{path}: {before!r} -> {after!r}" for path, before, after in changes)
    return Start(chosen, directory, goes_on, any_backend=not _gives(arguments, "backend"), changes=said)


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
    return given == kept


def train(arguments: argparse.Namespace) -> int:
    """Train a preset, or go on with a run; under torchrun, together with other processes."""
    with distributed.join() as processes, contextlib.ExitStack() as held:
        begin = processes.share(lambda: choose(arguments, held))
        # Built and loaded before the first folder is made: bad input leaves nothing behind.
        parts = prepare(begin, processes)
        use_threads(begin.chosen, parts.env, may_restart=arguments.restarts and processes.size == 1)
        with contextlib.closing(parts.env):
            if processes.first:
                fit(parts, begin, held)
            else:
                with stop_on_signal(parts.agent):
                    parts.agent.fit()
    return 0


def use_threads(chosen: factory.RunOptions, env: Task, *, may_restart: bool) -> None:
    """Calculate with as many threads as a run wants; several of them sleep while they wait for each other.

    Spinning, as they do otherwise, takes the cores from whoever else works here, themselves included. What says so is
    read when torch is loaded, so this program starts again, with the same process number.
    """
    count = factory.count_threads(chosen, env)
    if may_restart and count > 1 and not os.environ.keys() & QUIET.keys():
        env.close()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **QUIET})
    torch.set_num_threads(count)


def show(chosen: factory.RunOptions) -> None:
    """Print options, fully resolved."""
    text = yaml.safe_dump(chosen.model_dump(mode="json"), sort_keys=False)
    if chosen.threads == "auto":
        with contextlib.suppress(ValueError, OSError, ImportError, DataError):  # without its data, say
            with contextlib.closing(factory.build_env(chosen.env, torch.device("cpu"))) as env:
                count = factory.count_threads(chosen, env)
            text = text.replace("threads: auto", f"threads: auto  # {count} here", 1)
    print(text, end="")


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
    if processes.size > 1:
        state = processes.share_state(agent.state_dict)
        if not processes.first:
            agent.load_state_dict(state)
    return parts


def fit(parts: factory.Parts, begin: Start, held: contextlib.ExitStack) -> None:
    """Let the agent learn, and record it in the run's folder, whose lock ``held`` keeps."""
    agent, chosen, resumed = parts.agent, begin.chosen, begin.directory
    directory = resumed or new_directory()
    with contextlib.ExitStack() as undone:
        if not resumed:
            undone.callback(forget, directory)
            held.enter_context(locked(directory))
        run = undone.enter_context(Run(directory, chosen, parts.circuit))
        run.write_options(agent.step)
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
            run.forget_after(agent.step)
        with stop_on_signal(agent):
            agent.fit()
        if agent.stop_requested:
            LOGGER.info("stopped at step %d; go on with: papertape train --resume %s", agent.step, directory)
        else:
            LOGGER.info("done at step %d; look closer with: papertape test %s", agent.step, directory)


def test(arguments: argparse.Namespace) -> int:
    """Test a run on the sets of the test stream."""
    directory = find_directory(arguments.run)
    chosen = read_saved_arguments(arguments.arguments, read_options(directory), arguments.imports)
    names = (arguments.checkpoint,) if arguments.checkpoint else ("best", "latest")
    state = load_agent_state(directory, names)
    parts = build(chosen, resumed=True, any_backend=not _gives(arguments.arguments, "backend"))
    use_threads(chosen, parts.env, may_restart=arguments.restarts)
    parts.agent.load_state_dict(state)
    tested = directory / "test"
    tested.mkdir(exist_ok=True)
    recorded = Run(tested, chosen, title=f"{directory.name}_test", gif=True)
    with log_to(tested / "log"), contextlib.closing(parts.env), recorded as run:
        parts.agent.recorder = run
        LOGGER.info("test of %s at step %d", directory, parts.agent.step)
        parts.agent.test()
        LOGGER.info("pictures: %s", tested / "plots")
    return 0


def list_entries() -> int:
    """Print presets and everything that options can name."""
    for title, table in {"presets": options.preset_descriptions(), **factory.entries()}.items():
        print(f"{title}:")
        for name, description in table.items():
            print(f"  {name:23} {description}".rstrip())
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 training failed, 2 bad input, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = parse_arguments(given or ["train"])
    # A program of its own, not a function that another one has called.
    parsed.restarts = arguments is None
    first = distributed.rank_here() == 0
    if not first and parsed.command != "train":
        return 0
    try:
        terminal = log_to("terminal") if first else contextlib.nullcontext()
        with terminal, factory.memory_errors(parsed.command, TrainingError):
            if parsed.command == "train":
                return train(parsed)
            if parsed.command == "test":
                return test(parsed)
            if parsed.command == "list":
                registry.import_modules(parsed.imports)
                return list_entries()
            chosen = read_arguments(parsed.arguments, imports=parsed.imports)
            if parsed.help_options:
                print(help_text(chosen))
            else:
                show(chosen)
            return 0
    except FirstProcessError:
        return 2
    except (
        ValueError,
        OSError,
        ImportError,
        ContractError,
        BackendError,
        DataError,
        TrainingError,
        LostProcessError,
    ) as error:
        who = "papertape" if first else f"papertape, process {distributed.rank_here()}"
        print("\n".join(f"{who}: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return 1 if isinstance(error, (TrainingError, LostProcessError)) else 2
    except KeyboardInterrupt:
        print("papertape: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
