"""The base of every options model."""

from __future__ import annotations

import difflib
import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import torch
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

LARGEST_SIZE = 10**7
"""Whole numbers of options without a bound of their own are at most this."""
LARGEST_STEP = 10**9
"""The same for those that count steps, which take no memory, and no time before they are reached."""
OF_TASK = ("input_size", "output_size")
"""Sizes that nobody gives in a run: they are those of its task."""
LARGEST, SMALLEST = 1e9, 1e-37
"""Magnitudes between which other numbers lie, unless they are 0: what float32 holds."""

if TYPE_CHECKING:
    AnySize = Any  # what is given may be None, what is kept is a number
else:
    AnySize = int | None
    """A size as an option of which None stands for one that the object chooses when it is built."""

NEAR = 0.7
"""Similarity of two names, from 0 to 1, from which on one is suggested for the other."""


class OptionsError(ValueError):
    """Something in the options is wrong: one line per problem, each with the path of the key."""


class ContractError(TypeError):
    """A class breaks the contract of its kind; the message names the class, what was found and what is expected."""


class Options(BaseModel):
    """Options of one component; they are checked when the object is made and never change afterwards.

    Raises:
        pydantic.ValidationError: an unknown key, a wrong type or a value out of its range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False)

    component: ClassVar[Any] = None
    """The class whose options these are."""
    own_meaning: ClassVar[frozenset[str]] = frozenset()
    """Options that are dropped when the type of their block changes, since in another type they mean something else."""

    @field_validator("*")
    @classmethod
    def _check_magnitude(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[str(info.field_name)]
        bounds = [*field.metadata, *_bounds(field.annotation)]
        bounded = any(hasattr(bound, "le") or hasattr(bound, "lt") for bound in bounds)
        above_zero = any(getattr(bound, "gt", None) == 0 for bound in bounds)
        for number in _flat(value):
            if isinstance(number, float) and number and not SMALLEST <= abs(number) <= LARGEST:
                zero = "" if above_zero else "0, or "
                raise ValueError(f"got {number}; allowed: {zero}from {SMALLEST:g} to {LARGEST:g} in magnitude")
            if isinstance(number, int) and not bounded and abs(number) > LARGEST_SIZE:
                whose = "; in a run it follows from the options of env" if info.field_name in OF_TASK else ""
                raise ValueError(f"got {number}; allowed: at most {LARGEST_SIZE}{whose}")
        return value

    kept: ClassVar[frozenset[str]] = frozenset({"type"})
    """Options that must not change when a run is resumed: other values would not fit what was learned, or do nothing.
    All others may, and hold from then on."""

    def refused(self, before: Mapping[str, Any]) -> Iterator[str]:
        """One line for each option that has changed and must not change when a run is resumed.

        Args:
            before: the run's options so far, as plain values.
        """
        now = self.model_dump(mode="json")
        for name in filter(before.__contains__, type(self).model_fields):  # in their order, at every run
            block = getattr(self, name)
            if name in self.kept and before[name] != now[name]:
                yield refusal(name, before[name], now[name])
            elif isinstance(block, Options) and isinstance(before[name], Mapping):
                yield from (f"{name}.{line}" for line in block.refused(before[name]))


def _bounds(annotation: Any) -> Iterator[Any]:
    """Those of what is in lists and mappings, which their own annotations give."""
    for said in getattr(annotation, "__metadata__", ()):
        yield from said.metadata if isinstance(said, FieldInfo) else [said]
    for part in get_args(annotation):
        yield from _bounds(part)


def _flat(value: Any) -> Iterator[Any]:
    """What is in lists in lists, one by one."""
    if isinstance(value, list | tuple):
        for part in value:
            yield from _flat(part)
    else:
        yield value


def refusal(path: str, before: Any, now: Any) -> str:
    """The message for an option that must not change when a run is resumed."""
    return f"{path}: {before!r} -> {now!r}; a run that goes on keeps it (start=RUN begins another with its weights)"


def near(name: str, names: Iterable[str]) -> str | None:
    """The name that is most like a mistyped one, in capitals or not, if any is like it."""
    known = {other.casefold(): other for other in names}
    return next((known[other] for other in difflib.get_close_matches(name.casefold(), known, n=1, cutoff=NEAR)), None)


def check_sizes(*, at_least: int = 1, **sizes: int) -> None:
    """Raise ValueError naming the first size that is not a whole number of at least ``at_least``."""
    if torch.compiler.is_compiling():
        return  # to ask for the number of a size that a compiler leaves open would settle it
    for name, size in sizes.items():
        try:
            allowed = not isinstance(size, bool) and operator.index(size) >= at_least
        except TypeError:
            allowed = False
        if not allowed:
            raise ValueError(f"{name}: got {size!r}; allowed is a whole number of at least {at_least}")


def check_taken(function: Callable[..., Any], sizes: Mapping[str, Any]) -> None:
    """Raise ValueError naming the first size that a part's ``initial_state`` has no argument for, and those it has."""
    if not sizes or torch.compiler.is_compiling():
        return
    first, *others = inspect.signature(function).parameters.values()
    taken = [other.name for other in others if other.kind is not other.VAR_POSITIONAL]
    if any(other.kind is other.VAR_KEYWORD for other in others):
        return
    for name, size in sizes.items():
        if name not in taken:
            raise ValueError(f"{name}: got {size}; allowed beside {first.name}: {', '.join(taken) or 'nothing'}")


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError if the value is none of the allowed ones, naming the argument, the value and the choices."""
    if value not in allowed:
        raise ValueError(f"{name}: got {value!r}; allowed: {', '.join(allowed)}")


def a_block(given: Any, names: Iterable[str]) -> str:
    """What is said where a block was expected, with an example that is what was meant if that can be guessed."""
    known = list(names)
    example = given if given in known else known[0] if known else None
    such = f", such as {{type: {example}}}; allowed: {', '.join(known)}" if example else ""
    return f"expected a block with a type{such}"
