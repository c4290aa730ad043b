"""How a command ends: an exit status, and what went wrong in a line for each problem."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable

from ...agents.learning import TrainingError
from ...core import distributed
from ...core.distributed import FirstProcessError, LostProcessError
from ...core.kernels.dispatch import BackendError
from ...core.options import ContractError
from ...core.world import WorldError
from ...envs.images import DataError
from .. import factory
from ..log import log_to

FAILED, WRONG, INTERRUPTED = 1, 2, 130
"""Exit statuses besides 0: training failed, bad input, interrupted."""
BROKEN = (TrainingError, LostProcessError, WorldError)
"""What goes wrong although the input is good."""
SAID = (ValueError, OSError, ImportError, ContractError, BackendError, DataError, *BROKEN)
"""What is said in a line for each problem; anything else is a bug, with a traceback."""


def run(what: str, command: Callable[[], int]) -> int:
    """Run a command, whose log lines go to the terminal; its exit status, or that of its error.

    Args:
        what: the command's name, for running out of memory.
        command: gives its exit status.
    """
    first = distributed.rank_here() == 0
    try:
        terminal = log_to("terminal") if first else contextlib.nullcontext()
        with terminal, factory.memory_errors(what, TrainingError):
            return command()
    except FirstProcessError:
        return WRONG
    except BrokenPipeError:  # nobody reads what is printed; nor shall it be flushed at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except SAID as error:
        who = "papertape" if first else f"papertape, process {distributed.rank_here()}"
        print("\n".join(f"{who}: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return FAILED if isinstance(error, BROKEN) else WRONG
    except KeyboardInterrupt as interrupt:
        print("papertape: interrupted", file=sys.stderr)
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
