"""Where tensors are, and of which type: what circuits and tasks take for ``device`` and ``dtype``; what is drawn there.

Torch has a function for each kind of device; these are for any.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import torch
from pydantic import PlainValidator
from torch import Tensor


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


def moved(part: Any, device: torch.device) -> Any:
    """Plain data, states among them, with its tensors on a device: a checkpoint is read to another as a rule."""
    if isinstance(part, Tensor):
        return part.to(device)
    if isinstance(part, Mapping):
        return {name: moved(inner, device) for name, inner in part.items()}
    if isinstance(part, tuple) and hasattr(part, "_fields"):
        return type(part)(*(moved(inner, device) for inner in part))
    return type(part)(moved(inner, device) for inner in part) if isinstance(part, list | tuple) else part


def lower_type(device: torch.device) -> torch.dtype | None:
    """The type that ``torch.autocast`` gives to matrix products on a device now; None where it is not switched on."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def random_state(device: torch.device) -> Tensor | None:
    """The state of torch's global generator on a device; None where that is the one of the CPU, or there is none."""
    if device.type in ("cpu", "meta"):
        return None
    state: Tensor = torch.get_device_module(device.type).get_rng_state(device)
    return state


def set_random_state(device: torch.device, state: Tensor | None) -> None:
    """Set it to what :func:`random_state` gave."""
    if state is not None:
        torch.get_device_module(device.type).set_rng_state(state, device)


@contextlib.contextmanager
def random_apart(device: torch.device) -> Iterator[None]:
    """Within the block numbers may be drawn from torch's global generators, of the CPU and of a device; after it these
    are as they were.
    """
    cpu, own = torch.default_generator.get_state(), random_state(device)
    try:
        yield
    finally:
        torch.default_generator.set_state(cpu)
        set_random_state(device, own)


def seed_all(device: torch.device, seed: int) -> None:
    """Seed torch's global generators of the CPU and of a device."""
    torch.default_generator.manual_seed(seed)
    if device.type not in ("cpu", "meta"):
        set_random_state(device, torch.Generator(device).manual_seed(seed).get_state())


@contextlib.contextmanager
def seeded_apart(device: torch.device, seed: int) -> Iterator[None]:
    """Within the block what is drawn from torch's global generators depends on a seed alone; after it these are as they
    were.
    """
    with random_apart(device):
        seed_all(device, seed)
        yield


def take_up(generator: torch.Generator, state: Tensor) -> bool:
    """Let a generator go on from the state of another.

    Kinds of devices draw different numbers and keep different states. A generator of another kind than the one whose
    state it is begins anew, from a seed that this state decides.

    Returns:
        Whether it is of the same kind, and draws the same numbers.
    """
    state = state.cpu()
    if len(state) == len(generator.get_state()):
        generator.set_state(state)
        return True
    generator.manual_seed(int.from_bytes(hashlib.sha256(bytes(state.tolist())).digest()[:4], "big"))
    return False
