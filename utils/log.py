"""Log lines: to the terminal, above the progress bar, and to a file of the run."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from .files import append_line, unlinked

LOGGER = logging.getLogger("papertape")


class _TerminalHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        # RuntimeError: this line is about a signal, which has come while a line before it was being written.
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            tqdm.write(self.format(record), file=sys.stderr)


class _FileHandler(logging.FileHandler):
    """A log file that a full disk silences: the terminal still shows every line."""

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: what is there already stays; a line that was cut off is ended.
        """
        if path.exists() and path.read_bytes()[-1:] not in (b"", b"\n"):
            append_line(path, "")
        super().__init__(path, encoding="utf-8")

    def _open(self) -> io.TextIOWrapper:
        return open(self.baseFilename, "a", encoding="utf-8", opener=unlinked)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (name given by logging)
        """Drop the line."""

    def close(self) -> None:
        """Close the file; what the disk did not take is dropped."""
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def log_to(target: Path | Literal["terminal"]) -> Iterator[None]:
    """Within the block, lines of the ``papertape`` loggers go to the terminal or to a file."""
    handler: logging.Handler
    if target == "terminal":
        handler = _TerminalHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    else:
        handler = _FileHandler(target)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level, propagate = LOGGER.level, LOGGER.propagate
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    LOGGER.addHandler(handler)
    try:
        yield
    finally:
        LOGGER.setLevel(level)
        LOGGER.propagate = propagate
        LOGGER.removeHandler(handler)
        handler.close()
