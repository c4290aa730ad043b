"""The base of every options model: unknown keys, wrong types and impossible values are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """Options of one component; declared beside its class, read from one block of a YAML file.

    Values are checked when the object is made and never change afterwards.

    Raises:
        pydantic.ValidationError: an unknown key, a wrong type or a value out of its range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False)

    own_meaning: ClassVar[frozenset[str]] = frozenset()
    """Options whose values mean something else in another type of the same block, which does not take them over."""

    settings_of: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """By option, those that set up what it names, and which another name does not take over."""
