"""How the threads of OpenMP wait for each other."""

from __future__ import annotations

import os

QUIET = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
"""What tells the threads of each kind of OpenMP to sleep while they wait."""


def sleep_while_waiting() -> None:
    """Have the threads of this program sleep while they wait, unless the environment says how they are to.

    Otherwise they spin, which takes the cores from other programs and from each other. It is read when torch is loaded.
    """
    if not os.environ.keys() & QUIET.keys():
        os.environ.update(QUIET)
