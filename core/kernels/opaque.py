"""A call that torch.compile does not look into; importing this imports the compiler, so only do it while compiling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


@torch.compiler.disable  # type: ignore[untyped-decorator,unused-ignore]
def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the function as it is."""
    return function(*arguments)
