"""The base of every options model."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable, Mapping
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

NEAR = 0.7
"""How much alike two names are, from 0 to 1, for one to be suggested for the other."""


class OptionsError(ValueError):
    """Something in the options is wrong: one line per problem, each with the path of the key."""


class Options(BaseModel):
    """Options of one component; they are checked when the object is made and never change afterwards.

    Raises:
        pydantic.ValidationError: an unknown key, a wrong type or a value out of its range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False)

    own_meaning: ClassVar[frozenset[str]] = frozenset()
    """Options whose values mean something else in another type of the same block, which does not take them over."""

    settings_of: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """By option, those that set up what it names, and which another name does not take over."""


def near(name: str, names: Iterable[str]) -> str | None:
    """The name that is most like a mistyped one, if any is like it."""
    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=NEAR)), None)


def check_sizes(*, at_least: int = 1, **sizes: int) -> None:
    """Raise ValueError naming the first size that is not a whole number of at least ``at_least``."""
    for name, size in sizes.items():
        try:
            allowed = not isinstance(size, bool) and operator.index(size) >= at_least
        except TypeError:
            allowed = False
        if not allowed:
            raise ValueError(f"{name}: got {size!r}; allowed is a whole number of at least {at_least}")


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError if the value is none of the allowed ones, naming the argument, the value and the choices."""
    if value not in allowed:
        raise ValueError(f"{name}: got {value!r}; allowed: {', '.join(allowed)}")
