"""``papertape show`` and ``papertape list``: options, and what they can name."""

from __future__ import annotations

import argparse
import contextlib

import torch
import yaml

from ...core import registry
from ...envs.images import DataError
from .. import factory, options
from ..options_help import help_text
from .arguments import read_arguments


def show(arguments: argparse.Namespace) -> int:
    """Print options, fully resolved, or what each of them is."""
    chosen = read_arguments(arguments.arguments, imports=arguments.imports)
    print(help_text(chosen) if arguments.help_options else resolved(chosen))
    return 0


def resolved(chosen: factory.RunOptions) -> str:
    """Options as YAML; beside what is found out on the machine stands what that is."""
    text = yaml.safe_dump(chosen.model_dump(mode="json"), sort_keys=False)
    if chosen.threads == "auto":
        with contextlib.suppress(ValueError, OSError, ImportError, DataError):  # without its data, say
            with contextlib.closing(factory.build_task(chosen, torch.device("cpu"))) as env:
                count = factory.count_threads(chosen, env)
            text = text.replace("threads: auto", f"threads: auto  # {count} here", 1)
    return text.rstrip("\n")


def list_entries(arguments: argparse.Namespace) -> int:
    """Print presets, leagues and everything that options can name."""
    registry.import_modules(arguments.imports)
    files = {"presets": options.descriptions(), "leagues": options.descriptions(options.LEAGUES)}
    for title, table in {**files, **factory.entries()}.items():
        print(f"{title}:")
        width = max(map(len, table), default=0)
        for name, description in table.items():
            print(f"  {name:{width}} {description}".rstrip())
    return 0
