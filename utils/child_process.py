"""Command lines that start a Python process which runs one function of this package."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The child's package is this one, wherever this process has found it. The working directory is not searched for
# modules, as `python -c` and `python -m` would do: a copy.py there would take the place of Python's own.
BOOT = """
import sys
sys.path[:] = [path for path in sys.path if path]
import importlib.util
spec = importlib.util.spec_from_file_location("papertape", sys.argv[1] + "/__init__.py")
package = sys.modules["papertape"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
getattr(importlib.import_module(sys.argv[2]), sys.argv[3])(*sys.argv[4:])
"""


def command(function: Callable[..., Any], *arguments: str) -> list[str]:
    """The command line that calls a function in a process of its own.

    Args:
        function: takes strings; its module must be called ``papertape.…``.
        arguments: what it is called with.
    """
    root = Path(__file__).parent.parent
    return [sys.executable, "-c", BOOT, str(root), function.__module__, function.__name__, *arguments]
