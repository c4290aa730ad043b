"""Everything that is to be known of a GPU, in one run of nine minutes, as a section of Markdown.

    python benchmarks/gpu_report.py                                # writes gpu_report.md as it goes
    python benchmarks/gpu_report.py --minutes 4 --parts agreement speed --out short.md
    python benchmarks/gpu_report.py --device cpu --quick           # does the script run? (in CI)

Each row is written as soon as it is known, so that a run that is cut off loses nothing. A part stops when its share of
the time is up. Rows are computed in a process of their own: one that fails, crashes or hangs costs its row, which then
says why, and a fresh process begins with the next.

A machine without a package index that has torch, Triton, pytest and hypothesis needs the wheels that gpu_wheels.py
gathers. The package itself needs no installation: ``PYTHONPATH=.typing python benchmarks/gpu_report.py`` in the root.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, cast

SHARES = {"tests": 25, "agreement": 20, "training": 8, "learning": 15, "speed": 22, "population": 5, "profile": 5}
"""Parts in their order, with the time of each in hundredths; what one leaves goes to those after it."""

ROW, TEXT, DONE = "#row ", "#text ", "#done"
"""How the process that computes says that it begins a row, with its number and the seconds that it may take; a line of
the report; and that the row is written. What else it prints is told only if it dies."""

SICK = 3
"""Exit status of a process in which nothing can run any more, as after a fault on the GPU."""


def supervise(command: Callable[[int], Sequence[str]], write: Callable[[str], None], end: float) -> None:
    """Run the process that computes rows, and again after each row that it did not survive.

    Args:
        command: runs the process, told how many rows it is to leave out.
        write: takes each line of the report.
        end: moment (of ``time.monotonic``) at which all is over.
    """
    begun = 0
    while True:
        before = begun
        process = subprocess.Popen(
            command(begun), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        lines: queue.Queue[str | None] = queue.Queue()
        reader = threading.Thread(target=_pass_on, args=(cast("IO[str]", process.stdout), lines), daemon=True)
        reader.start()
        row, limit, last, killed = "", end, "it said nothing", ""
        try:
            while True:
                try:
                    line = lines.get(timeout=max(0.05, min(limit, end) - time.monotonic()))
                except queue.Empty:
                    killed = "the time was up" if time.monotonic() >= end else "it took too long"
                    break
                if line is None:
                    break
                if line.startswith(ROW):
                    number, seconds, row = line.removeprefix(ROW).split(" ", 2)
                    begun, limit = int(number), time.monotonic() + float(seconds)
                elif line.startswith(TEXT):
                    write(line.removeprefix(TEXT))
                elif line == DONE:
                    row, limit = "", end
                else:
                    last = line or last
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with all that it started
        status = process.wait()
        reader.join(5)  # at once, now that nobody can write any more
        if row:
            write(f"| {row} | {killed or f'the process ended ({status}): {last}'} |")
        if killed == "the time was up":
            write("\nCut off here: the time was up.")
            return
        if not row and not killed and status != SICK:
            if status != 0:
                write(f"\nThe process ended ({status}): {last}")
            return
        if begun == before:  # it would end in the same way again
            write(f"\nThe process ended ({status}) before a row: {last}")
            return


def _pass_on(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    with stream:
        for line in stream:
            lines.put(line.rstrip("\n"))
    lines.put(None)


def main() -> None:
    """Write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="for all together (default: 9)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="a few small rows of each part")
    parser.add_argument("--parts", nargs="+", choices=list(SHARES), default=list(SHARES))
    parser.add_argument("--out", type=Path, default=Path("gpu_report.md"), help="(default: gpu_report.md)")
    arguments = parser.parse_args()
    start = time.monotonic()
    rows = Path(__file__).with_name("gpu_rows.py")
    if arguments.device.startswith("cpu"):
        os.environ["TRITON_INTERPRET"] = "1"
    with arguments.out.open("w", encoding="utf-8") as file:

        def write(line: str) -> None:
            print(line, flush=True)
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

        whole, passed = sum(SHARES[part] for part in arguments.parts), 0
        parts = []
        for part in arguments.parts:
            passed += SHARES[part]
            parts.append(f"{part}={start + 60 * arguments.minutes * passed / whole:.3f}")
        given = [str(rows), "--device", arguments.device, *(["--quick"] if arguments.quick else [])]
        write(f"## GPU, {time.strftime('%Y-%m-%d')}\n\n`{shlex.join(['python', *sys.argv])}`\n")
        supervise(
            lambda begun: [sys.executable, "-u", *given, "--skip", str(begun), *parts],
            write,
            start + 60 * arguments.minutes,
        )
        write(f"\n{time.monotonic() - start:.0f} s in all.")


if __name__ == "__main__":
    main()
