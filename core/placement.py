"""Where tensors are, and of which type: what circuits and tasks take for ``device`` and ``dtype``."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import PlainValidator


def _as_device(given: Any) -> torch.device:
    try:
        return torch.device(given)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"got {given!r}; allowed: a torch.device or its name, such as cpu or cuda:0") from error


def _as_device_or_none(given: Any) -> torch.device | None:
    return None if given is None else _as_device(given)


def _as_dtype(given: Any) -> torch.dtype | None:
    if given is None or (isinstance(given, torch.dtype) and given.is_floating_point):
        return given
    raise ValueError(f"got {given!r}; allowed: a floating type, such as torch.float32, or None")


AnyDevice = Annotated[torch.device | str | int, PlainValidator(_as_device)]
"""A device as an argument."""
AnyDeviceOrNone = Annotated[torch.device | str | int | None, PlainValidator(_as_device_or_none)]
"""The same, or None for torch's own."""
AnyDtype = Annotated[torch.dtype | None, PlainValidator(_as_dtype)]
"""A type of numbers as an argument, or None for torch's own."""
