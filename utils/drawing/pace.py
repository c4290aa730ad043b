"""How often and how much the process may draw, so that training has the rest of the machine."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from .pipe import say

POLL_SECONDS = 0.5
"""From one check to the next while waiting."""


class Schedule:
    """Says when something is due: a given time after the last time, or later if it is held back."""

    def __init__(self, seconds: float) -> None:
        """
        Args:
            seconds: from one time to the next, and to the first.
        """
        self.seconds = seconds
        self.put_off()

    def put_off(self) -> None:
        """Due ``seconds`` from now."""
        self.due_at = time.monotonic() + self.seconds

    def due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() >= self.due_at


class Budget:
    """Lets this process work on a fifth of one core, so that training has the rest."""

    def __init__(self) -> None:
        """Nothing is spent yet."""
        self.free_at = 0.0
        self.failed: set[str] = set()

    def left(self) -> bool:
        """Whether there is something to spend."""
        return time.monotonic() >= self.free_at

    @contextlib.contextmanager
    def spend(self, what: str) -> Iterator[None]:
        """Do some work; the next waits four times as long as it kept the core busy.

        An error costs one warning and does not stop the rest.
        """
        start = time.thread_time()
        try:
            yield
        except Exception as error:
            if what not in self.failed:
                say("warning", f"{what} could not be drawn: {type(error).__name__}: {error}")
            self.failed.add(what)
        finally:
            self.free_at = max(self.free_at, time.monotonic()) + 4 * (time.thread_time() - start)
