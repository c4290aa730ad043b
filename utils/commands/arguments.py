"""Options of a run from the words of the command line: a preset and ``key=value``."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...core import registry
from ...core.options import OptionsError
from .. import factory, options
from ..log import LOGGER
from ..run import check_path, find_checkpoint


def is_assignment(word: str) -> bool:
    """Whether a word is ``key=value``, and not the path of a file: that of a run of a sweep has ``=`` in it as well."""
    key, equals, _ = word.partition("=")
    return bool(equals) and "/" not in key


def split_arguments(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The preset, or None where none is given, and each ``key=value``.

    Raises:
        OptionsError: there is a second word that is no ``key=value``.
    """
    words = [word for word in arguments if not is_assignment(word)]
    if words[1:]:
        raise OptionsError(
            f"{words[1]!r}: expected key=value, such as agent.lr=3e-4; the preset is {words[0]!r}, and a run has one"
        )
    return (words[0] if words else None), [word for word in arguments if is_assignment(word)]


def preset_name(arguments: Sequence[str]) -> str:
    """What a run that begins with these words is called after: its preset, or the file in place of one."""
    preset, _ = split_arguments(arguments)
    return Path(options.DEFAULT_PRESET if preset is None else preset).stem


def read_arguments(
    arguments: Sequence[str], values: dict[str, Any] | None = None, imports: Sequence[str] = ()
) -> factory.RunOptions:
    """Options from an optional preset and ``key=value``; ``values`` stand in for the preset.

    Args:
        arguments: the preset and ``key=value``.
        values: of a run that there is, or None.
        imports: modules to import besides those that the options name.

    Raises:
        OptionsError: lists every problem.
    """
    preset, assignments = split_arguments(arguments)
    if values is None:
        values = options.load_file(options.DEFAULT_PRESET if preset is None else preset)
    elif preset is not None:
        raise OptionsError(
            f"{preset!r}: expected key=value, such as agent.lr=3e-4; a run that there is has its preset already: leave "
            "it out"
        )
    # What they name is there for the others.
    options.override(values, [assignment for assignment in assignments if gives([assignment], "imports")])
    named_there = values.get("imports")
    modules = registry.placed(named_there if isinstance(named_there, list) else [], Path.cwd())
    given = list(dict.fromkeys(registry.placed(imports, Path.cwd())))
    # A file that is given takes the place of a module of its name, which may have been on another machine.
    files = {Path(name).stem for name in given if name.endswith(".py")}
    modules = [name for name in modules if not (isinstance(name, str) and Path(name).name.removesuffix(".py") in files)]
    modules += [name for name in given if name not in modules]
    if modules:
        values["imports"] = modules
        registry.import_modules(name for name in modules if isinstance(name, str))
    others = [assignment for assignment in assignments if not gives([assignment], "imports")]
    for line in options.override(values, others):
        LOGGER.info("%s", line)
    return factory.parse(values)


def started(chosen: factory.RunOptions) -> factory.RunOptions:
    """Options of a run to begin, with ``start`` as the file that it is: the latest run will be another one soon, and a
    run may go on from another folder.

    Raises:
        OptionsError: see :func:`find_checkpoint` and :func:`~papertape.utils.run.check_path`.
    """
    if not chosen.start:
        return chosen
    file = find_checkpoint(chosen.start).absolute()
    check_path(file, "start")
    return chosen.model_copy(update={"start": str(file)})


def read_saved_arguments(arguments: Sequence[str], saved: dict[str, Any], imports: Sequence[str]) -> factory.RunOptions:
    """Options of a run, changed by ``key=value``; a device that this machine lacks becomes auto.

    Raises:
        OptionsError: lists every problem.
    """
    values = copy.deepcopy(saved)
    if not gives(arguments, "device"):
        try:
            factory.resolve_device(str(saved.get("device", "auto")))
        except OptionsError as error:
            LOGGER.info("%s; takes auto", error)
            values["device"] = "auto"
    return read_arguments(arguments, values, imports)


def gives(arguments: Sequence[str], key: str) -> bool:
    """Whether one of them sets this key."""
    return any(assignment.startswith(f"{key}=") for assignment in arguments)
