"""What a part of a circuit was built with: all that a kernel must know of it, and may not pass over."""

from __future__ import annotations

import functools
import inspect
from typing import Any

NOT_KEPT = "not kept as an attribute of that name"
"""Stands for the value of an option that cannot be asked for any more."""


@functools.cache
def _option_names(cls: Any, base: type) -> tuple[str, ...]:
    """The arguments of the constructors of a class and of all that it is made of, down to ``base``."""
    names: dict[str, None] = {}
    for part in cls.__mro__:
        if issubclass(part, base) and "__init__" in vars(part):
            _, *arguments = inspect.signature(vars(part)["__init__"]).parameters.values()
            names |= {
                option.name: None
                for option in arguments
                if option.kind not in (option.VAR_POSITIONAL, option.VAR_KEYWORD)
            }
    return tuple(names)


def specification(part: Any, base: type) -> dict[str, Any]:
    """Every option of a part by name, with its value now: whatever a constructor takes, a subclass's own included.

    Args:
        part: keeps each option as an attribute of the same name.
        base: where its options begin.
    """
    cls: Any = type(part)
    return {name: getattr(part, name, NOT_KEPT) for name in _option_names(cls, base)}
