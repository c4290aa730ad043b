"""Errors for options that are not allowed: one line each, with the path, what was given and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from .component import kind_of, options_of
from .options import Options, near
from .registry import entries, lookup

LONGEST = 60
"""Characters of a value that are shown."""


def explain(
    error: ValidationError, given: Mapping[str, Any], model: type[Options], prefix: str = "", kind: str | None = None
) -> list[str]:
    """One line per problem.

    Args:
        error: from pydantic.
        given: the values that were validated.
        model: what they were validated by.
        prefix: path of the block; empty for the arguments of a constructor.
        kind: of the component that the block describes, to say which other type has an option that this one lacks.
    """
    lines = []
    for problem in error.errors(include_url=False):
        path = [str(part) for part in problem["loc"]]
        where = ".".join(part for part in (prefix, *path) if part)
        value, what, context = problem["input"], problem["type"], problem.get("ctx", {})
        if what == "extra_forbidden":
            lines.append(f"{where}: unknown option; {_meant(path, given, model, prefix, kind)}")
        elif what == "missing":
            lines.append(f"{where}: missing")
        elif what == "value_error":
            message = str(context["error"])
            below = where and re.match(r"[a-z_0-9.]+: ", message)
            lines.append(f"{where}.{message}" if below else f"{where}: {message}" if where else message)
        elif what == "is_instance_of":
            lines.append(f"{where}: got a {type(value).__name__}; expected a {context['class']}")
        else:
            message = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
            lines.append(f"{where}: got {_short(value)}; allowed: {message}")
    return lines


def a_block(given: Any, names: Iterable[str]) -> str:
    """What is said where a block was expected, with an example that is what was meant if that can be guessed."""
    known = list(names)
    example = given if given in known else known[0] if known else None
    return "expected a block with a type" + (f", such as {{type: {example}}}" if example else "")


def _meant(path: Sequence[str], given: Any, model: type[Options], prefix: str, kind: str | None) -> str:
    """What an unknown option may have meant: one that another type of its block has, or one with a similar name."""
    known: type[Options] | None = model
    for part in path[:-1]:
        kind = kind_of(known.model_fields[part]) if known and part in known.model_fields else None
        given = given.get(part) if isinstance(given, Mapping) else None
        known = options_of(lookup(kind, given["type"])) if kind and isinstance(given, Mapping) else None
        prefix = f"{prefix}.{part}" if prefix else part
    if kind:
        having = [name for name, entry in entries(kind).items() if path[-1] in options_of(entry).model_fields]
        if having:
            return f"{prefix}.type {' or '.join(having)} has it"
    if known is None:
        return "no such option"
    meant = near(path[-1], known.model_fields)
    names = [name for name in known.model_fields if name != "type"]
    return f"did you mean {meant!r}?" if meant else f"known here: {', '.join(names) or 'none'}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
