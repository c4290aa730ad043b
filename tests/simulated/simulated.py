"""A device that is not the CPU, wherever there is a compiler: see ``simulated_device.cpp``.

``load()`` builds it and makes it known to torch as ``simulated``, for good, in this process.
"""

from __future__ import annotations

import functools
import types
from pathlib import Path
from typing import Any

import torch


@functools.cache
def load(folder: Path) -> types.ModuleType:
    """Build the extension in a folder, once in a process, and register the device.

    Raises:
        RuntimeError: it cannot be built, or another backend is registered.
    """
    from torch.utils import cpp_extension

    torch.utils.rename_privateuse1_backend("simulated")
    extension = cpp_extension.load(
        "simulated_device", str(Path(__file__).with_name("simulated_device.cpp")), build_directory=str(folder)
    )
    module = types.ModuleType("torch.simulated")
    count = 8
    functions = {
        "is_available": lambda: True,
        "device_count": lambda: count,
        "current_device": extension.current_device,
        "set_device": extension.set_device,
        "device": _Device,
        "_is_in_bad_fork": lambda: False,
        "manual_seed_all": lambda seed: [extension.default_generator(i).manual_seed(seed) for i in range(count)],
        "get_rng_state": lambda device=-1: extension.default_generator(_index(device)).get_state(),
        "set_rng_state": lambda state, device=-1: extension.default_generator(_index(device)).set_state(state),
        "get_amp_supported_dtype": lambda: [torch.bfloat16, torch.float16],
        "float64": extension.float64,
    }
    for name, function in functions.items():
        setattr(module, name, function)
    torch._register_device_module("simulated", module)
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    return module


class _Device:
    """Within the block, the device of this index is the one that ``simulated`` stands for."""

    def __init__(self, device: torch.device | str | int) -> None:
        self.index = _index(device)

    def __enter__(self) -> None:
        self.before = torch.simulated.current_device()
        torch.simulated.set_device(self.before if self.index < 0 else self.index)

    def __exit__(self, *_: Any) -> None:
        torch.simulated.set_device(self.before)


def _index(device: torch.device | str | int) -> int:
    if isinstance(device, int):
        return device
    index = torch.device(device).index
    return -1 if index is None else index
