"""A run of a sweep, in a process of its own: train, then test the best weights."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from ...core.options import OptionsError
from ..comparison import errors_on_test
from ..run import read_summary
from . import report
from .train import train

WAIT_SECONDS = 120
"""So long a run whose former process is still about to stop is waited for."""


class Member:
    """Trains and tests a run; what is handed to a cluster, where its exit status is its result."""

    def __init__(self, directory: Path, preset: str, sequences: int, assignments: Sequence[str]) -> None:
        """
        Args:
            directory: of the run, with its options.
            preset: what the run is called after.
            sequences: of each set of the test.
            assignments: ``key=value`` for the test alone.
        """
        self.directory, self.preset = directory, preset
        self.sequences, self.assignments = sequences, list(assignments)

    def __call__(self) -> int:
        """Go on with the run until it is done or is asked to stop; the exit status."""
        return report.run("train", self._work)

    def checkpoint(self) -> object:
        """What submitit calls before a cluster's time is up: the same again goes on from the run's checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _work(self) -> int:
        summary = read_summary(self.directory)
        if not (summary and summary.done):
            status = self._train()
            summary = read_summary(self.directory)
            if status or not (summary and summary.done):
                return status
        errors_on_test(self.directory, self.sequences, self.assignments)
        return 0

    def _train(self) -> int:
        given = argparse.Namespace(resume=str(self.directory), arguments=[], imports=[], preset=self.preset)
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                return train(given)
            except OptionsError as error:
                if "is in progress" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(0.5)


def stop_with_parent() -> None:
    """Ask this process to stop when the one that started it is gone: its end of the standard input is closed then."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main(directory: str, preset: str, sequences: str, *assignments: str) -> None:
    """Entry of the process of a run; see :class:`Member`."""
    stop_with_parent()
    sys.exit(Member(Path(directory), preset, int(sequences), assignments)())
