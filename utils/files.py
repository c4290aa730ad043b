"""Files that are at every moment either the old ones or the new ones, whatever kills the process that writes them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
from collections.abc import Iterator
from pathlib import Path

PART = ".part"
"""Suffix of files that are not whole yet."""


def unlinked(path: str, flags: int) -> int:
    """An opener for :func:`open` that follows no link: in a folder that somebody else made, one may lead to any file.

    Raises:
        OSError: the file is a link, or cannot be opened; names it.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OSError(f"{path}: is a symbolic link, which nothing is written through; remove it first") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to, in the same folder, which takes the place of ``path`` at the end of the block.

    Raises:
        OSError: the disk is full or not writable; names the file. The old one is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        temporary.unlink(missing_ok=True)
        # A new file, which whoever writes to the path then opens: it is no link that somebody has left there.
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        yield temporary
        _reach_disk(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # what fails as it is written, and not as it is opened, does not say where
        raise
    # The rename itself must reach the disk.
    _reach_disk(path.parent)


def replace_text(path: Path, text: str) -> None:
    """Write a text file; see :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, all of it or nothing.

    Raises:
        OSError: the disk is full or not writable, or the file is a link.
    """
    descriptor = unlinked(str(path), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        size = os.fstat(descriptor).st_size
        content = f"{line}\n".encode()
        try:
            if os.write(descriptor, content) < len(content):
                raise OSError(f"{path.name}: no room for a whole line")
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lock(path: Path) -> Iterator[str]:
    """Within the block a lock file is this process's alone; yields who holds it otherwise, or an empty text.

    The lock is the kernel's: it ends with the process, however that ends, and processes that it starts have no part in
    it. A file that is left behind locks nothing.

    Raises:
        OSError: the file cannot be made, or is a link.
    """
    with open(path, "a+", encoding="utf-8", opener=unlinked) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            yield file.read() or "another process"
            return
        with contextlib.suppress(OSError):  # of a full disk; unbuffered, or closing the file would try again
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"process {os.getpid()} on {platform.node()}".encode())
        yield ""


def clear_parts(directory: Path) -> None:
    """Remove what killed writers have left in a folder and in those below it, but not in runs, which do so themselves.

    What another process of this machine is writing, such as a test of the run, is left alone.
    """
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            if not (path / "lock").exists():
                clear_parts(path)
        elif is_part(path) and not _is_written(path):
            path.unlink(missing_ok=True)


def is_part(path: Path) -> bool:
    """Whether a file is what a writer writes to before it is whole."""
    return path.name.startswith(".") and path.name.endswith(PART)


def _is_written(part: Path) -> bool:
    """Whether the process that began this file is another one that lives."""
    number = part.name.removesuffix(PART).rpartition(".")[2]
    if not number.isdecimal() or int(number) == os.getpid():  # in a container every program may have the same number
        return False
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _reach_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
