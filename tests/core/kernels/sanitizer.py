"""What Triton's interpreter cannot see of a kernel: checks like those of NVIDIA's compute-sanitizer.

The interpreter runs the programs of a launch one after another, and each operation of a program on whole blocks at
once. On a GPU programs run in any order, and the threads of a program wait for each other only at barriers. Reported is

- a race inside a program: an element is loaded after it was stored, stored after it was loaded, or stored twice with
  different values, with no ``tl.debug_barrier()`` between. Which thread has which element of a block is up to the
  compiler, for every operation anew, and of a block smaller than the program several threads have each. One case is
  allowed: a block that is loaded once and then stored, changed, to the very same pointers. The thread that stores an
  element has loaded it, or was given it by one that has. What was loaded must serve nothing else, since another thread
  may load it so late that it is changed already: it turns into NaN;
- a conflict between programs: one loads or stores what another stores;
- a place outside the tensor that its pointer came from, each of which gets a range of addresses of its own; and a
  tensor that is not contiguous, since kernels are told no strides;
- a load of what nobody wrote since ``torch.empty`` and its like.

Atomic operations are refused: the kernels have none.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import triton
from torch import Tensor
from triton.runtime import interpreter

TRITON = str(Path(triton.__file__).parent)

RANGE = 1 << 40
"""Bytes between the addresses that two tensors get, each in the middle of its range."""

POISON = {torch.float32: (torch.int32, 0x7FC0DEAD), torch.float64: (torch.int64, 0x7FF8DEADDEADDEAD)}
"""What new memory is filled with, as an integer of its size: a NaN whose bits no other has."""

SEVERAL = -1


class Shadow:
    """A storage, and what one launch did to each of its elements. All numbers begin with 1; 0 is none."""

    def __init__(self, tensor: Tensor) -> None:
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        integer, self.poison = POISON[tensor.dtype]
        whole = tensor.detach().as_strided((size,), (1,), 0)
        self.values, self.bits = whole.numpy(), whole.view(integer).numpy()
        # An epoch lies between two barriers. SEVERAL programs may have loaded an element, and in an epoch blocks.
        self.store_epoch, self.store_program, self.store_line = np.zeros((3, size), np.int64)
        self.load_epoch, self.load_program, self.load_line, self.load_block = np.zeros((4, size), np.int64)


class Sanitizer:
    """Stands between the interpreter and memory."""

    def __init__(self) -> None:
        self.findings: set[str] = set()

    def start_launch(self, kernel: str, tensors: dict[str, Tensor]) -> None:
        """A kernel begins; these are its tensors, in the order of its arguments."""
        self.kernel, self.names, self.tensors = kernel, list(tensors), list(tensors.values())
        self.epoch = self.program = self.addressed = 0
        self.numbers: dict[Any, int] = {}
        self.loaded: dict[int, Any] = {}
        places = [tensor.untyped_storage().data_ptr() for tensor in self.tensors]
        shadows = {place: Shadow(tensor) for place, tensor in zip(places, self.tensors, strict=True)}
        self.shadows = [shadows[place] for place in places]
        for name, tensor in tensors.items():
            if not tensor.is_contiguous():
                self.findings.add(f"{kernel}: {name} is not contiguous")

    def next_address(self) -> int:
        """Where the kernel is told that its next tensor is."""
        self.addressed += 1
        return self.addressed * RANGE - RANGE // 2

    def start_program(self) -> None:
        """A program begins."""
        self.program += 1
        self.barrier()

    def barrier(self) -> None:
        """All threads of the program have come this far."""
        self.epoch += 1
        self.loaded.clear()

    def load(self, pointers: Any, mask: Any, other: Any, dtype: Any) -> Any:
        """In place of the interpreter's."""
        what, shadow, at, mask, line, block = self._find(pointers, mask)
        now, last, writer = self.epoch, shadow.store_line[at], shadow.store_program[at]
        self._report(shadow.bits[at] == shadow.poison, f"{what}: {{}} loads what nobody wrote", line)
        raced = shadow.store_epoch[at] == now
        self._report(raced, f"{what}: {{}} loads without a barrier what {{}} stored", line, last)
        others = (writer != 0) & (writer != self.program)
        self._report(others, f"{what}: {{}} loads what {{}} stores in another program", line, last)

        reader = shadow.load_program[at]
        shadow.load_program[at] = np.where((reader == 0) | (reader == self.program), self.program, SEVERAL)
        shadow.load_block[at] = np.where(shadow.load_epoch[at] == now, SEVERAL, block)
        shadow.load_epoch[at], shadow.load_line[at] = now, line
        result = np.array(np.broadcast_to(other, pointers.shape), dtype)
        result[mask] = shadow.values[at]
        self.loaded[block] = result
        return result

    def store(self, pointers: Any, values: Any, mask: Any) -> None:
        """In place of the interpreter's."""
        what, shadow, at, mask, line, block = self._find(pointers, mask)
        values = np.broadcast_to(values, pointers.shape)[mask].astype(shadow.values.dtype)
        bits = values.view(shadow.bits.dtype)
        now, last, load_line = self.epoch, shadow.store_line[at], shadow.load_line[at]
        raced = (shadow.store_epoch[at] == now) & (shadow.bits[at] != bits)
        self._report(raced, f"{what}: {{}} stores without a barrier where {{}} stored", line, last)
        raced = (shadow.load_epoch[at] == now) & (shadow.load_block[at] != block)
        self._report(raced, f"{what}: {{}} stores without a barrier where {{}} loaded", line, load_line)
        for program, place in ((shadow.store_program[at], last), (shadow.load_program[at], load_line)):
            others = (program != 0) & (program != self.program)
            self._report(others, f"{what}: {{}} stores what {{}} uses in another program", line, place)

        shadow.store_epoch[at], shadow.store_program[at], shadow.store_line[at] = now, self.program, line
        shadow.values[at] = values
        self._report(shadow.bits[at] != bits, f"{what}: {{}} stores different values in one place", line)
        if block in self.loaded:
            self.loaded.pop(block).fill(np.nan)

    def atomic_rmw(self, *_: Any) -> Any:
        """Never: sums in any order do not repeat bit for bit."""
        raise NotImplementedError("the kernels have no atomic operations")

    atomic_cas = atomic_rmw

    def _find(self, pointers: Any, mask: Any) -> tuple[str, Shadow, Any, Any, int, int]:
        """Kernel and tensor, its shadow, elements in there, mask of those inside; numbers of the line and the block."""
        frame = sys._getframe(2)
        while frame.f_code.co_filename.startswith(TRITON):
            assert frame.f_back is not None
            frame = frame.f_back
        line = self._number((frame.f_code.co_filename, frame.f_lineno))
        index = int(pointers.flat[0]) // RANGE
        what, tensor = f"{self.kernel}: {self.names[index]}", self.tensors[index]
        at = (pointers.astype(np.int64) - (index * RANGE + RANGE // 2)) // tensor.element_size()
        mask = np.broadcast_to(mask, pointers.shape)
        inside = (at >= 0) & (at < tensor.numel())
        self._report(mask & ~inside, f"{what}: {{}} reaches outside", line)
        mask = mask & inside
        places = tensor.storage_offset() + at[mask]
        return what, self.shadows[index], places, mask, line, self._number((index, mask.shape, places.tobytes()))

    def _number(self, thing: Any) -> int:
        return self.numbers.setdefault(thing, len(self.numbers) + 1)

    def _report(self, wrong: Any, text: str, *lines: Any) -> None:
        if wrong.any():
            numbered = list(self.numbers)
            first = [numbered[(line if isinstance(line, int) else line[wrong][0]) - 1] for line in lines]
            self.findings.add(text.format(*(f"{Path(file).name}:{number}" for file, number in first)))


def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Of ``torch.empty`` or its like: what it makes is filled with poison."""

    @functools.wraps(make)
    def made(*arguments: Any, **options: Any) -> Tensor:
        tensor = make(*arguments, **options)
        if tensor.dtype in POISON and tensor.device.type == "cpu":
            integer, poison = POISON[tensor.dtype]
            tensor.detach().view(integer).fill_(poison)
        return tensor

    return made


@contextmanager
def sanitized() -> Iterator[None]:
    """Checks every kernel that the interpreter runs within.

    Raises:
        AssertionError: at the end, with all findings.
    """
    sanitizer = Sanitizer()
    call, convert = interpreter.GridExecutor.__call__, interpreter._implicit_cvt
    set_program = interpreter.InterpreterBuilder.set_grid_idx

    def launch(executor: Any, *arguments: Any, **constants: Any) -> None:
        named = zip(executor.arg_names, arguments, strict=False)
        tensors = {name: argument for name, argument in named if isinstance(argument, Tensor)}
        sanitizer.start_launch(executor.fn.__name__, tensors)
        call(executor, *arguments, **constants)

    def convert_argument(argument: Any) -> Any:
        converted = convert(argument)
        if isinstance(argument, Tensor):
            converted.handle.data = np.array([sanitizer.next_address()], np.uint64)
        return converted

    def start_program(builder: Any, *indices: int) -> None:
        set_program(builder, *indices)
        sanitizer.start_program()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_interpreter", sanitizer)
        patch.setattr(interpreter, "_implicit_cvt", convert_argument)
        patch.setattr(interpreter.GridExecutor, "__call__", launch)
        patch.setattr(interpreter.InterpreterBuilder, "set_grid_idx", start_program)
        patch.setattr(interpreter.InterpreterBuilder, "create_barrier", lambda _: sanitizer.barrier())
        for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
            patch.setattr(owner, name, poisoned(getattr(owner, name)))
        yield
    assert not sanitizer.findings, "\n".join(sorted(sanitizer.findings))
