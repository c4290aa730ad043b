"""The user's home folder, which not everybody has: a container may run programs for a user that it does not know."""

from __future__ import annotations

from pathlib import Path


def home(*others: str) -> Path:
    """The user's home folder.

    Args:
        others: environment variables that make it unnecessary.

    Raises:
        OSError: there is none; says what to set.
    """
    try:
        return Path.home()
    except RuntimeError as error:
        raise OSError(f"there is no home folder; set {' or '.join(('HOME', *others))}") from error


def expanded(path: str) -> Path:
    """A path in which ``~`` and ``~user`` at the beginning stand for home folders.

    Raises:
        OSError: there is no such folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise OSError(f"{Path(path).parts[0]} is nobody's home folder here") from error
