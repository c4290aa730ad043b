"""Errors for options that are not allowed: one line each, with the path, what was given and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from .component import kind_of, options_of
from .options import Options, OptionsError, near
from .registry import entries, lookup

LONGEST = 60
"""Characters of a value that are shown."""
PLAIN = {
    "invalid_key": "a valid string",
    "string_too_short": "{min_length} or more characters",
    "string_pattern_mismatch": "text that matches {pattern}",
    "too_short": "{min_length} or more entries",
    "too_long": "up to {max_length} entries",
}
"""What is allowed, where pydantic says so in words of its own."""


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
        value, what, context = problem["input"], problem["type"], problem.get("ctx", {})
        key = path[-1:] == ["[key]"] or what == "invalid_key"
        if key:  # the path is that of what it is a key of
            path = path[: -1 if what == "invalid_key" else -2]
            value = problem["loc"][len(path)]
        where = ".".join(part for part in (prefix, *path) if part)
        if what == "extra_forbidden":
            lines.append(f"{where}: unknown option; {_meant(path, given, model, prefix, kind)}")
        elif what == "missing":
            lines.append(f"{where}: missing")
        elif what == "value_error":
            message = str(context["error"])
            named = where and re.match(r"[a-z_0-9.]+: ", message)
            lines.append(f"{where}.{message}" if named else f"{where}: {message}" if where else message)
        elif what == "is_instance_of":
            lines.append(f"{where}: got a {type(value).__name__}; expected a {context['class']}")
        else:
            said = PLAIN[what].format(**context) if what in PLAIN else problem["msg"].removeprefix("Input should be ")
            below = f"{where}: " if where else ""
            lines.append(f"{below}got {'the key ' if key else ''}{_short(value)}; allowed: {said}")
    return lines


def _meant(path: Sequence[str], given: Any, model: type[Options], prefix: str, kind: str | None) -> str:
    """What an unknown option may have meant: one of another block or of another type of its own, or a similar name."""
    whole = (model, given) if model.component is None else None
    """Of a run, whose options have paths; the arguments of a constructor have names alone."""
    known: type[Options] | None = model
    for part in path[:-1]:
        if part.isdecimal():  # in a list, for which one alone may stand
            given = given[int(part)] if isinstance(given, list) else given
        else:
            kind = kind_of(known.model_fields[part]) if known and part in known.model_fields else None
            given = given.get(part) if isinstance(given, Mapping) else None
        known = model_named(kind, given)
        prefix = f"{prefix}.{part}" if prefix else part
    name = path[-1]
    value = given.get(name) if isinstance(given, Mapping) else None
    below = f"{prefix}." if prefix else ""
    if whole and known and (found := places(known, given, name, value, below)):
        return f"did you mean {_either(found)}?"
    if kind:
        having = [other for other, entry in entries(kind).items() if name in options_of(entry).model_fields]
        if having:
            return f"{prefix}.type {' or '.join(having)} has it"
    if known is None:
        return "no such option"
    meant = near(name, known.model_fields)
    if meant:
        return f"did you mean {below + meant if whole else meant!r}?"
    if whole:
        similar = near(name, {place.rpartition(".")[2] for place in places(*whole)})
        if found := places(*whole, name, value) or (places(*whole, similar, value) if similar else []):
            return f"did you mean {_either(found)}?"
    names = [other for other in known.model_fields if other != "type"]
    return f"known here: {', '.join(names) or 'none'}"


def _either(paths: Sequence[str]) -> str:
    return " or ".join(map(repr, paths))


def model_named(kind: str | None, block: Any) -> type[Options] | None:
    """The options of the component that raw values name, if they name one."""
    name = block if isinstance(block, str) else block.get("type") if isinstance(block, Mapping) else None
    try:
        return options_of(lookup(kind, name)) if kind and isinstance(name, str) else None
    except OptionsError:
        return None  # What is wrong about it is for the validation to say.


def places(model: type[Options], given: Any, name: str | None = None, value: Any = None, prefix: str = "") -> list[str]:
    """Paths of the options of a name in the blocks that are chosen.

    Args:
        model: of the options that the search begins with.
        given: their raw values.
        name: of the options; None takes all.
        value: that the option is to have: a block is one only if there is something of that name to choose.
        prefix: of the paths.
    """
    found: list[str] = []
    for field_name, field in model.model_fields.items():
        kind, path = kind_of(field), f"{prefix}{field_name}"
        if name in (None, field_name) and field_name != "type" and (not kind or value in (None, *entries(kind))):
            found.append(path)
        if kind is None:
            continue
        block = given.get(field_name) if isinstance(given, Mapping) else None
        if block is None and not field.is_required():
            block = field.get_default(call_default_factory=True)
        if name == "type" and value in entries(kind):
            found.append(f"{path}.type")
        inner = model_named(kind, block)
        if inner is not None:
            found += places(inner, block, name, value, f"{path}.")
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
