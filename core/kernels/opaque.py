"""What torch.compile leaves alone; loading this loads all of the compiler, so it is only done while that is at work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


@torch.compiler.disable  # type: ignore[untyped-decorator,unused-ignore]
def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function gives, run as it is."""
    return function(*arguments)
