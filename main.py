"""Command line: what its words are, and which command they lead to."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import papertape

DEFAULT_PRESET = "ntm-copy"
OPTIONS = "PRESET | key=value"


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
    top.add_argument("--version", action="version", version=papertape.__version__)
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
    sweep.add_argument("--resume", metavar="SWEEP", help="go on with a sweep: its folder, its name, or latest")
    sweep.add_argument("--jobs", type=int, metavar="N", help="runs at a time; default: as many as there are cores")
    sweep.add_argument("--cluster", metavar="NAME", help="hand the runs to a cluster by submitit: slurm, or local")
    sweep.add_argument(
        "--cluster-option",
        action="append",
        default=[],
        metavar="key=value",
        help="for submitit, such as timeout_min=600 or slurm_partition=gpu; may be given again",
    )
    compare = commands.add_parser("compare", help="a table, a CSV file and a picture of runs that there are")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder or name, or a sweep's")
    for command in (sweep, compare):
        command.add_argument(
            "--sequences", type=int, default=256, metavar="N", help="of each set of the test (default 256)"
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
    return top


def parse_arguments(given: Sequence[str]) -> argparse.Namespace:
    """The command line, with ``key=value`` before or after options; argparse alone stops at the first option."""
    grammar = parser()
    parsed, rest = grammar.parse_known_args(given)
    if rest and (not hasattr(parsed, "arguments") or any(word.startswith("-") for word in rest)):
        from papertape.utils.commands.hints import without_dashes

        grammar.error(f"{parsed.command}: unrecognized arguments: {' '.join(rest)}{without_dashes(given)}")
    if rest:
        parsed.arguments += rest
    if parsed.command == "test" and parsed.run is None:
        grammar.error("test: RUN is missing; allowed is a run's folder, its name, or latest, or a checkpoint file")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 training failed, 2 bad input, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = parse_arguments(given or ["train"])
    # A program of its own, not a function that another one has called.
    parsed.restarts = arguments is None
    # Loaded when it is known that there is something to do: help comes at once.
    from papertape.core.distributed import rank_here
    from papertape.utils.commands import compare, report, show, sweep, test, train

    if rank_here() and parsed.command != "train":
        return 0
    commands = {
        "train": train.train,
        "test": test.test,
        "sweep": sweep.sweep,
        "compare": compare.compare,
        "runs": compare.list_runs,
        "list": show.list_entries,
        "show": show.show,
    }
    return report.run(parsed.command, lambda: commands[parsed.command](parsed))


if __name__ == "__main__":
    sys.exit(main())
