"""The base of every options model."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
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


def near(name: str, names: Iterable[str]) -> str | None:
    """The name that is most like a mistyped one, if any is like it."""
    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=NEAR)), None)
