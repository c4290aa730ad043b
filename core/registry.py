"""The registry: every env, circuit, controller, … that options can name, ours and everyone's alike."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

from .options import OptionsError, near

KINDS = (
    "env",
    "circuit",
    "controller",
    "accessor",
    "agent",
    "strategy",
    "fitness",
    "curriculum",
    "optimiser",
    "plasticity",
    "sink",
)
"""What can be registered."""

ENTRY_POINTS = "papertape"
"""Group of entry points by which an installed package names its modules that register something."""

Target = TypeVar("Target", bound=Callable[..., Any])

_entries: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}


@overload
def register(kind: str, name: str) -> Callable[[Target], Target]: ...
@overload
def register(kind: str, name: str, target: Target) -> Target: ...
def register(kind: str, name: str, target: Target | None = None) -> Target | Callable[[Target], Target]:
    """Give a class (a fitness may be a function) the name by which options choose it; also as a decorator.

    Args:
        kind: one of :data:`KINDS`.
        name: such as ``my-memory``.
        target: what is registered; None returns a decorator.

    Raises:
        ValueError: an unknown kind, or a name that is not one word or is taken.
        TypeError: a class lacks what its kind must have; names it and what is expected.
    """
    if target is None:
        return lambda decorated: register(kind, name, decorated)
    _check_kind(kind)
    if not isinstance(name, str) or not name or any(character in name for character in " .=\n"):
        raise ValueError(f"name: got {name!r}; allowed is a word such as 'my-{kind}'")
    label = _label(target)
    if not callable(target):
        raise TypeError(f"{kind} {name!r}: got a {type(target).__name__}; expected a class or a function")
    contract = _contracts.get(kind)
    if contract is not None and isinstance(target, type) and not issubclass(target, contract):
        raise TypeError(f"{kind} {name!r}: {label} is no {contract.__name__}; expected a class that inherits from it")
    if inspect_abstract := getattr(target, "__abstractmethods__", None):
        missing = ", ".join(sorted(inspect_abstract))
        raise TypeError(f"{kind} {name!r}: {label} lacks {missing}")
    other = _entries[kind].get(name)
    # The same class again, from a module that is loaded anew, takes its own place.
    if other is not None and _label(other) != label:
        raise ValueError(f"{kind} {name!r}: is taken by {_label(other)}; {label} needs another")
    _entries[kind][name] = target
    return target


def _label(target: Any) -> str:
    """Module and name of a class or function; what it is of anything else that can be called."""
    return f"{getattr(target, '__module__', '?')}.{getattr(target, '__qualname__', target)}"


_contracts: dict[str, type] = {}


def contract(kind: str) -> Callable[[Target], Target]:
    """Decorator: the base class that everything registered of a kind inherits from."""
    _check_kind(kind)

    def keep(cls: Target) -> Target:
        _contracts[kind] = cls  # type: ignore[assignment]
        return cls

    return keep


def contract_of(kind: str) -> type:
    """The base class of a kind."""
    return _contracts[kind]


def entries(kind: str) -> Mapping[str, Any]:
    """All that is registered of a kind by its name, in their order, that of installed packages too."""
    _check_kind(kind)
    load_entry_points()
    return dict(sorted(_entries[kind].items()))


def lookup(kind: str, name: Any) -> Any:
    """What is registered under a name.

    Raises:
        OptionsError: nothing is; with the nearest name and all that are allowed.
    """
    _check_kind(kind)
    if isinstance(name, str):
        if name not in _entries[kind]:
            load_entry_points()
        if name in _entries[kind]:
            return _entries[kind][name]
    meant = near(name, _entries[kind]) if isinstance(name, str) else None
    hint = f"did you mean {meant!r}? " if meant else ""
    raise OptionsError(f"{kind}: got {name!r}; {hint}allowed: {', '.join(sorted(_entries[kind]))}")


def name_of(target: Any) -> str | None:
    """The name that a class is registered under, if any."""
    for names in _entries.values():
        for name, entry in names.items():
            if entry is target:
                return name
    return None


def import_modules(names: Iterable[str]) -> None:
    """Import modules that register something.

    Args:
        names: of modules, which are also looked for in the working directory, or paths of ``.py`` files, whose folder
            is then among those that Python looks in.

    Raises:
        OptionsError: a module cannot be imported; says which and why.
    """
    for name in names:
        file = Path(name).resolve() if name.endswith(".py") else None
        folder, module = (str(file.parent), file.stem) if file else (os.getcwd(), name)
        if file and not file.is_file():
            raise OptionsError(
                f"imports: {name!r} cannot be imported: there is no such file; if it lies elsewhere now, give its path "
                "(--import on the command line, imports= of load_circuit)"
            )
        if folder not in sys.path:
            sys.path.append(folder)
        try:
            found = importlib.import_module(module)
        except (Exception, SystemExit) as error:
            raise OptionsError(f"imports: {name!r} cannot be imported: {type(error).__name__}: {error}") from error
        place = getattr(found, "__file__", None)
        if file and (place is None or Path(place).resolve() != file):
            raise OptionsError(
                f"imports: {name!r} cannot be imported: the name {module!r} is that of {place or 'a module of Python'}"
            )


def placed(names: Iterable[Any], folder: Path) -> list[Any]:
    """Names of modules as they are, and paths of files, relative to a folder, as they are from everywhere."""
    return [
        str((folder / name).resolve()) if isinstance(name, str) and name.endswith(".py") else name for name in names
    ]


_loaded_entry_points: set[str] = set()


def load_entry_points() -> None:
    """Import what installed packages name under the group ``papertape``, once.

    Raises:
        OptionsError: an entry point cannot be imported; says whose and why.
    """
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        if point.value in _loaded_entry_points:
            continue
        _loaded_entry_points.add(point.value)
        try:
            point.load()
        except (Exception, SystemExit) as error:
            source = point.dist.name if point.dist else "an installed package"
            raise OptionsError(f"entry point {point.name!r} of {source}: {type(error).__name__}: {error}") from error


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}; allowed: {', '.join(KINDS)}")
