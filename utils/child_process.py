"""Command lines that start a Python process which runs one function of this package without importing torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The child's package is this one without its __init__, which would import torch: seconds and 200 MB for nothing.
# Nor is the working directory searched for modules, as `python -c` would do.
BOOT = """
import importlib, sys, types
sys.path[:] = [path for path in sys.path if path]
package = types.ModuleType("papertape")
package.__path__ = [sys.argv[1]]
sys.modules["papertape"] = package
getattr(importlib.import_module(sys.argv[2]), sys.argv[3])(*sys.argv[4:])
"""


def command(function: Callable[..., Any], *arguments: str) -> list[str]:
    """The command line that calls a function in a process of its own.

    Args:
        function: takes strings; its module must be called ``papertape.…`` and must not import torch.
        arguments: what it is called with.
    """
    root = Path(__file__).parent.parent
    return [sys.executable, "-c", BOOT, str(root), function.__module__, function.__name__, *arguments]
