"""What was meant by words of the command line that are not understood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...core.explain import places
from ...core.options import OptionsError
from .. import factory, options
from .arguments import is_assignment


def without_dashes(given: Sequence[str]) -> str:
    """What to type in place of options of a run that were given with dashes, such as ``--lr 3e-3``; empty if none was.

    Args:
        given: all words of the command line.
    """
    named = [word for word in given[1:2] if not word.startswith("-") and not is_assignment(word)]
    try:
        values = options.load_file(named[0] if named else options.DEFAULT_PRESET)
    except OptionsError:
        values = options.load_file(options.DEFAULT_PRESET)
    meant = []
    for place, word in enumerate(given):
        if not word.startswith("-"):
            continue
        name, equals, value = word.lstrip("-").replace("-", "_").partition("=")
        if equals:
            value = word.partition("=")[2]
        elif place + 1 < len(given) and not given[place + 1].startswith("--"):
            value = given[place + 1]
        last = name.rpartition(".")[2]
        paths = [path for path in places(factory.RunOptions, values, last, value) if f".{path}".endswith(f".{name}")]
        if paths and value:
            listed = isinstance(_option(values, paths[0]), list) and not value.startswith("[")
            meant.append(f"{paths[0]}=[{value}]" if listed else f"{paths[0]}={value}")
    return f"; options of a run have no dashes: {' '.join(meant)}" if meant else ""


def _option(values: Mapping[str, Any], path: str) -> Any:
    """What an option is in these options, as plain data; None where that cannot be said."""
    try:
        found: Any = factory.parse(dict(values)).model_dump(mode="json")
        for name in path.split("."):
            found = found[name]
    except (OptionsError, KeyError, TypeError):
        return None
    return found
