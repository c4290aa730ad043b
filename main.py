"""Command line: what can be said, and how it ends. What takes long to load is loaded once that is clear."""

from __future__ import annotations

import argparse
import gc
import io
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DEFAULT_PRESET = "ntm-copy"
OPTIONS = "PRESET | key=value"
STOPPING = (signal.SIGINT, signal.SIGTERM)
PORT = 8097
"""Of the page, where nothing else is said (utils/visdom_server.py says so too)."""
PRINTING = ("runs", "list", "show")
"""Commands that do nothing else."""


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
        help="a module, or the path of its file, that registers what options name; may be given again",
    )
    top.add_argument("--version", action="version", version=_version())
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser("train", parents=[importing], help="train a preset, or go on with a run")
    train.add_argument("arguments", nargs="*", metavar=OPTIONS, help=f"default preset: {DEFAULT_PRESET}")
    train.add_argument("--resume", metavar="RUN", help="go on with a run: its folder, its name, or latest")
    test = commands.add_parser(
        "test", parents=[importing], help="test a run on sequences of their own; writes pictures and an animation"
    )
    test.add_argument(
        "run",
        nargs="?",
        metavar="RUN",
        help="a run's folder, its name, or latest, a checkpoint file, or a trained circuit of the package",
    )
    test.add_argument("arguments", nargs="*", metavar="key=value")
    test.add_argument("--checkpoint", choices=("best", "latest"), help="default: best, or latest if there is none")
    sweep = commands.add_parser(
        "sweep",
        parents=[importing],
        help="train a preset with every combination of some values, side by side",
        description="Trains a run for every combination of values (seed=1..10 circuit.type=ntm,dnc); leaves a table, a "
        "CSV file and a picture of the curves. The same words again go on with a sweep that was cut off.",
    )
    sweep.add_argument("arguments", nargs="*", metavar="PRESET | key=value,value | key=1..10")
    league = commands.add_parser(
        "league",
        parents=[importing],
        help="train every circuit of a league on every task; one table, with published figures beside",
        description="Trains a run for every task, circuit and seed of a league (a YAML file, or one of the package's); "
        "leaves one table with published figures beside ours, and a picture of what is reached on each set of the "
        "test. The same words again go on with a league that was cut off.",
    )
    league.add_argument("arguments", nargs="*", metavar="LEAGUE | key=value", help="key=value is for all runs")
    league.add_argument("--tasks", metavar="NAME,NAME", help="of the league; default: all")
    league.add_argument("--circuits", metavar="NAME,NAME", help="of the league; default: all")
    league.add_argument("--seeds", metavar="1..10", help="default: those of the league")
    for command, what in ((sweep, "sweep"), (league, "league")):
        command.add_argument(
            "--resume", metavar=what.upper(), help=f"go on with a {what}: its folder, its name, or latest"
        )
        command.add_argument(
            "--jobs", type=_whole, metavar="N", help="runs at a time; default: as many as there are cores"
        )
        command.add_argument(
            "--cluster", metavar="NAME", help="hand the runs to a cluster by submitit: slurm, or local"
        )
        command.add_argument(
            "--cluster-option",
            action="append",
            default=[],
            metavar="key=value",
            help="for submitit, such as timeout_min=600 or slurm_partition=gpu; may be given again",
        )
    compare = commands.add_parser("compare", help="a table, a CSV file and a picture of runs that there are")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder or name, or a sweep's")
    for command in (sweep, league, compare):
        command.add_argument(
            "--sequences", type=_whole, default=256, metavar="N", help="of each set of the test (default 256)"
        )
        command.add_argument(
            "--test-option",
            action="append",
            default=[],
            metavar="key=value",
            help="an option for the test alone, such as env.test_lengths=[50,100]; may be given again",
        )
    commands.add_parser("runs", help="the runs that there are: preset, step, error, when")
    commands.add_parser("list", parents=[importing], help="show presets and everything that options can name")
    show = commands.add_parser("show", parents=[importing], help="print options, fully resolved")
    show.add_argument("arguments", nargs="*", metavar=OPTIONS, help=f"default preset: {DEFAULT_PRESET}")
    show.add_argument(
        "--help-options",
        action="store_true",
        help="what each of them is: type, default, what is allowed, a line of help",
    )
    page = commands.add_parser("page", help="show the plots of all runs in a browser; started if it is not there")
    page.add_argument(
        "action",
        nargs="?",
        default="start",
        choices=("start", "stop", "fetch"),
        help="stop: the servers that runs have started on this machine; fetch: the scripts that the page needs",
    )
    page.add_argument(
        "--port", type=_port, help=f"where the server listens (default: {PORT}; stop without it ends all of them)"
    )
    return top


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed is a whole number of at least 1") from None


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: 1 to 65535")
    return int(text)


def parse_arguments(given: Sequence[str]) -> argparse.Namespace:
    """The command line, with ``key=value`` before or after options; argparse alone stops at the first option."""
    grammar = parser()
    parsed, rest = grammar.parse_known_args(given)
    if rest and (not hasattr(parsed, "arguments") or any(word.startswith("-") for word in rest)):
        from papertape.utils.commands.hints import without_dashes

        grammar.error(f"{parsed.command}: unrecognized arguments: {' '.join(rest)}{without_dashes(given)}")
    if rest:
        parsed.arguments += rest
    if parsed.command == "page" and parsed.action == "fetch" and parsed.port is not None:
        grammar.error(f"page: --port: got {parsed.port}; allowed with start and stop: fetch needs no server")
    if parsed.command == "test" and parsed.run is None:
        grammar.error("test: RUN is missing; allowed is a run's folder, its name, or latest, or a checkpoint file")
    return parsed


def _version() -> str:
    try:
        import papertape
    except ModuleNotFoundError:  # says so when there is more to do than this
        return "not installed"
    return papertape.__version__


def page(action: str, port: int | None) -> int:
    """Show, start or stop the page that all runs share, or fetch its scripts; returns the exit status."""
    from papertape.core import install
    from papertape.utils import visdom_files, visdom_server

    if action == "stop":
        stopped = visdom_server.stop(port=port)
        nothing = "no page is running" if port is None else f"no page is running at port {port}"
        print(f"stopped at port {', '.join(map(str, stopped))}" if stopped else nothing)
        return 0
    missing = bool(visdom_files.missing_files())  # or there is no visdom
    if action == "fetch":
        return 0 if visdom_files.fetch_and_say() else 2
    server = visdom_server.Server("localhost", port or PORT)
    if problem := server.ensure():
        raise OSError(problem)
    print(
        f"{server.url} shows the newest run and lists the others; it ends with: {install.here('papertape page stop')}"
    )
    if missing:
        print(
            f"it is empty until its scripts are there: {install.here('papertape page fetch')} says what is in the way"
        )
    return 0


def _open_what_is_closed() -> None:
    """Have stdin, stdout and stderr that are closed lead nowhere, here and in processes that this one starts.

    Python sets them to None then, and a file that is opened later would get the number of one of them.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # the lowest that is free: its own
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8"))


def _on_signals(act: Callable[[int], Any]) -> None:
    """Have something done when this process is asked to stop; those that fork from it just end."""
    process = os.getpid()
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as it is for a shell's programs in the background
            signal.signal(number, lambda number, _: act(number) if os.getpid() == process else os._exit(128 + number))
    # They have waited where this program was started in place of another.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def _on_output(command: str) -> None:
    """Have the output go through where it cannot be shown, and what only prints end without a word once nobody reads.

    Args:
        command: what is done.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if command in PRINTING:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def _end(number: int) -> None:
    """Leave at once: modules that are being loaded may take an exception for a failure of theirs."""
    os.write(2, b"papertape: interrupted\n")
    os._exit(128 + number)


def _interrupt(number: int) -> None:
    raise KeyboardInterrupt(number)


def _not_installed(name: str) -> str:
    """What to do where a package is missing."""
    root = Path(__file__).absolute().parent
    program = root / ".venv" / "bin" / "papertape"
    if program.is_file():
        what = f"Papertape is set up beside it: call {os.path.relpath(program)} instead"
    elif (root / "bootstrap.py").is_file():
        what = f"python3 {os.path.relpath(root / 'bootstrap.py')} train sets everything up"
    else:  # installed; it is on no package index
        what = f"{shlex.quote(sys.executable)} -m pip install . in a clone of Papertape installs all that it needs"
    return f"{name} is not installed for {sys.executable}; {what}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 failed or not saved, 2 bad input, 130 interrupted.

    Args:
        arguments: None takes those of this program, which then is one of its own and not a function that another has
            called.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    _open_what_is_closed()
    if arguments is None:
        _on_signals(_end)
    parsed = parse_arguments(given or ["train"])
    try:
        if parsed.command == "page":
            return page(parsed.action, parsed.port)
        if arguments is None:
            from papertape.core import openmp

            openmp.sleep_while_waiting()
            _on_output(parsed.command)
            gc.disable()  # none of what is loaded is garbage; looking for some takes a fifth of the start
        from papertape.core.distributed import rank_here
        from papertape.utils.commands import compare, league, report, show, sweep, test, train

        if arguments is None:
            gc.freeze()
            gc.enable()
    except ModuleNotFoundError as error:
        print(f"papertape: {_not_installed(str(error.name))}", file=sys.stderr)
        return 2
    except (OSError, RuntimeError) as error:
        print(f"papertape: {error}", file=sys.stderr)
        return 2
    commands = {
        "train": train.train,
        "test": test.test,
        "sweep": sweep.sweep,
        "league": league.league,
        "compare": compare.compare,
        "runs": compare.list_runs,
        "list": show.list_entries,
        "show": show.show,
    }
    try:
        if arguments is None:
            _on_signals(_interrupt)
        if rank_here() and parsed.command != "train":
            return 0
        status = report.run(parsed.command, lambda: commands[parsed.command](parsed))
    except KeyboardInterrupt as interrupt:
        print("papertape: interrupted", file=sys.stderr)
        status = 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
    if arguments is None:
        _on_signals(lambda _: os._exit(status))  # it is over, whatever Python still clears away
    return status


if __name__ == "__main__":
    sys.exit(main())
