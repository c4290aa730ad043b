"""Between a run and the process that draws it: settings and messages one way, lines for the log the other way."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import sys
import threading
from typing import IO, Any, NamedTuple

ORPHAN_SECONDS = 20.0
"""How long the process may take to finish when the run has died."""


class Settings(NamedTuple):
    """What the run says at the start; see :class:`~papertape.utils.sinks.Plotter`."""

    directory: str
    title: str
    mode: str
    hostname: str
    port: int
    data: str | None
    user: str | None
    password_file: str | None
    retry: float
    parent: int


def say(kind: str, text: str = "") -> None:
    """Send a line to the run: ``info`` and ``warning`` go to its log."""
    # A run that is gone does not listen; the last pictures are drawn all the same.
    with contextlib.suppress(OSError):
        # In one piece: another thread may have something to say at the same time.
        sys.stdout.write(f"{kind}: {' '.join(text.split())}\n")
        sys.stdout.flush()


def read_messages(pipe: IO[bytes], messages: queue.Queue[tuple[str, Any]]) -> None:
    """Move messages from the run's pipe to a short queue, until the run closes it or dies."""
    try:
        while True:
            message = pickle.load(pipe)
            messages.put(message)
            if message[0] == "close":
                return
    except (EOFError, OSError, pickle.UnpicklingError):
        timer = threading.Timer(ORPHAN_SECONDS, os._exit, (1,))
        timer.daemon = True
        timer.start()
        messages.put(("close", None))
