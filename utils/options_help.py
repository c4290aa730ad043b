"""What each option of a run is, from where it is declared: type, default, what is allowed, and its line of help."""

from __future__ import annotations

import collections.abc
import json
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from pydantic.fields import FieldInfo

from ..core.component import kind_of
from ..core.options import Options
from ..core.registry import entries

WIDTH = 100
"""Columns of the text."""
_BOUNDS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}
_LENGTHS = {"min_length": "at least {} of them", "max_length": "at most {} of them"}
_NAMES = {int: "whole number", float: "number", str: "word", bool: "true or false", type(None): "null", Any: "anything"}


class OptionHelp(NamedTuple):
    """One option of a run."""

    path: str
    type: str
    default: str
    """As YAML has it; empty where it must be given."""
    here: str
    """What the run has."""
    allowed: str
    """Bounds and choices; empty where all of the type is."""
    help: str


def options_help(options: Options, path: str = "") -> Iterator[OptionHelp]:
    """Each option of a block and of the blocks within it, in order.

    Args:
        options: of the block; the components that they name are those whose options follow.
        path: of the block.
    """
    for name, field in type(options).model_fields.items():
        where, value = f"{path}.{name}" if path else name, getattr(options, name)
        if name == "type":
            continue  # said in the line of the block
        kind = kind_of(field)
        allowed = ", ".join(entries(kind)) if kind else allowed_of(field)
        usual = field.get_default(call_default_factory=True)
        default = "" if field.is_required() else _plain(usual)
        here = default if usual == value else _plain(value)
        yield OptionHelp(where, _type_of(field, kind), default, here, allowed, field.description or "")
        for block in value if isinstance(value, list) else [value]:
            if isinstance(block, Options):
                yield from options_help(block, where)


def _type_of(field: FieldInfo, kind: str | None) -> str:
    if kind:
        return f"{kind}, by its name or as a block" + (
            " or null" if type(None) in typing.get_args(field.annotation) else ""
        )
    return named(field.annotation)


def named(annotation: Any) -> str:
    """A type in words."""
    if annotation in _NAMES:
        return _NAMES[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return named(arguments[0])
    if origin is Literal:
        return "one of a few"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(named, arguments)))
    if origin in (list, collections.abc.Sequence):
        return f"list of: {named(arguments[0])}"
    if origin is tuple:
        return f"list of: {', '.join(named(argument) for argument in arguments if argument is not ...)}"
    if origin in (dict, collections.abc.Mapping):
        return f"mapping from {named(arguments[0])} to {named(arguments[1])}"
    return str(getattr(annotation, "__name__", annotation))


def _plain(value: Any) -> str:
    """A value as YAML has it; of a block, its type."""
    if isinstance(value, Options):
        return str(getattr(value, "type", "a block"))
    if isinstance(value, list) and any(isinstance(part, Options) for part in value):
        return ", ".join(map(_plain, value))
    return value if isinstance(value, str) else json.dumps(value, default=str)


def allowed_of(field: FieldInfo) -> str:
    """Bounds and choices of an option, those of what is in its lists as well."""
    said = [*_bounds(field.metadata, _LENGTHS | _BOUNDS if _is_list(field.annotation) else _BOUNDS)]
    said += _within(field.annotation)
    return ", ".join(dict.fromkeys(said))


def _is_list(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (list, tuple, dict)


def _within(annotation: Any) -> Iterator[str]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        yield ", ".join("null" if choice is None else str(choice) for choice in arguments)
        return
    if origin is typing.Annotated:
        bounds = [bound for part in arguments[1:] for bound in getattr(part, "metadata", [part])]
        yield from _bounds(bounds, _LENGTHS | _BOUNDS if _is_list(arguments[0]) else _BOUNDS)
        yield from _within(arguments[0])
        return
    for argument in arguments:
        yield from _within(argument)


def _bounds(metadata: Any, words: Mapping[str, str]) -> Iterator[str]:
    for bound in metadata:
        for name, text in words.items():
            limit = getattr(bound, name, None)
            if limit is not None:
                yield text.format(limit)


def help_text(options: Options) -> str:
    """All options of a run as text, each with what is known of it."""
    lines = []
    for option in options_help(options):
        said = [option.type, f"default {option.default}" if option.default else "must be given"]
        if option.here != option.default:
            said.append(f"here {option.here}")
        if option.allowed:
            said.append(f"allowed: {option.allowed}")
        text = f"{option.path}: {'; '.join(said)}"
        lines += textwrap.wrap(text, WIDTH, subsequent_indent="    ", break_on_hyphens=False)
        lines += textwrap.wrap(option.help, WIDTH, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)
