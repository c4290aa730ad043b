"""Finds the compiled library that this processor can run, and mirrors the structures of its C interface."""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import itertools
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...options import check_choice
from .identity import SOURCE, build_identity

FOLDER = Path(__file__).parent
VARIANTS = ("_baseline", "_avx2", "_avx512")
"""The same source for more and more instruction sets; the index is what ``processor_level`` counts."""

INSTRUCTION_SETS = tuple(variant.removeprefix("_") for variant in VARIANTS)
"""Names of the instruction sets. ``baseline`` is what every processor of a kind has: SSE2, or NEON on 64-bit ARM."""

FORCED = "PAPERTAPE_NATIVE"
"""Environment variable that names the instruction set to use instead of the best; read when the library is loaded."""

MOST_LEAVES = 6
MOST_STATES = 128
"""Of an automaton, as in source/controller.h."""


PARTS = (
    *("keys", "strengths", "gate", "shift", "sharpness", "mask", "erase", "add", "read_keys", "read_strengths"),
    *("write_keys", "write_strengths", "free_gates", "allocation_gates", "write_gates", "read_modes"),
    *("read_mask", "write_mask", "link_powers"),
    *("words", "moves"),
)
"""The parts of an interface vector that the library knows."""

CONTROLLERS = {"lstm": 0, "gru": 1, "feedforward": 2, "rnn": 3, "automaton": 6}
"""The number of each controller in source/controller.h."""
RELU_RNN = 4
"""There, that of ``rnn`` with relu."""
GIVEN = 5
"""There, that of hidden vectors which a controller made before."""


class Places(ctypes.Structure):
    """Where the parts of the interface vector begin, -1 for none; mirrors ``Places`` in source/sequence.h."""

    _fields_ = [(name, ctypes.c_int64) for name in PARTS]


@functools.cache
def places(*parts: tuple[str, int]) -> Places:
    """Where parts of these names and sizes begin, in their order."""
    begins = itertools.accumulate((size for _, size in parts), initial=0)
    absent = dict.fromkeys(PARTS, -1)
    return Places(**absent | {name: begin for (name, _), begin in zip(parts, begins, strict=False)})


class Problem(ctypes.Structure):
    """Sizes, options and constants of the equations; mirrors ``Problem`` in source/sequence.h."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in (
                *("steps", "batch", "inputs", "hidden", "layers", "slots", "word", "reads", "writes", "interface"),
                *("outputs", "controller", "threads", "members", "training", "keep_every", "block"),
                *("shift_range", "squash", "masked_content", "memory_wipe", "link_sharpening", "usage_gradient"),
                *("states", "given_columns", "last_columns"),
            )
        ),
        ("places", Places),
        *(
            (name, ctypes.c_double)
            for name in (
                *("clip", "norm_epsilon", "usage_epsilon", "sharpen_epsilon", "mask_min", "temperature", "sharpening"),
                "output_clip",
            )
        ),
    ]


class Layer(ctypes.Structure):
    """Addresses of the weights of one layer of the controller; mirrors ``Layer`` in source/sequence.h."""

    _fields_ = [
        (name, ctypes.c_void_p) for name in ("input_weight", "input_bias", "recurrent_weight", "recurrent_bias")
    ]


class Tensors(ctypes.Structure):
    """Addresses of all tensors of a call; mirrors ``Tensors`` in source/sequence.h."""

    _fields_ = [
        ("inputs", ctypes.c_void_p),
        ("layers", ctypes.POINTER(Layer)),
        *((name, ctypes.c_void_p) for name in ("interface_weight", "interface_bias", "output_weight", "output_bias")),
        *((name, ctypes.c_void_p) for name in ("features", "outputs", "hidden", "cell", "reads")),
        ("state", ctypes.c_void_p * MOST_LEAVES),
        *((name, ctypes.c_void_p) for name in ("last_hidden", "last_cell", "last_reads")),
        ("last_state", ctypes.c_void_p * MOST_LEAVES),
        *((name, ctypes.c_void_p) for name in ("records", "saved")),
        *((name, ctypes.c_void_p) for name in ("d_features", "d_last_hidden", "d_last_cell", "d_last_reads")),
        ("d_last_state", ctypes.c_void_p * MOST_LEAVES),
        *((name, ctypes.c_void_p) for name in ("d_hidden", "d_cell", "d_reads")),
        ("d_state", ctypes.c_void_p * MOST_LEAVES),
        ("d_inputs", ctypes.c_void_p),
        ("d_layers", ctypes.POINTER(Layer)),
        *((name, ctypes.c_void_p) for name in ("d_interface_weight", "d_interface_bias")),
    ]

    def give(self, **tensors: Tensor | None) -> None:
        """Set the addresses of tensors, which the caller keeps alive."""
        for name, tensor in tensors.items():
            setattr(self, name, address(tensor))

    def give_layers(self, name: str, weights: Sequence[Tensor | None]) -> None:
        """Set the addresses of all layers' weights, four of each layer, or of their gradients."""
        count = len(Layer._fields_)
        layers = (Layer * (len(weights) // count))()
        for index, layer in enumerate(layers):
            for field, tensor in zip(Layer._fields_, weights[count * index :], strict=False):
                setattr(layer, field[0], address(tensor))
        setattr(self, name, layers)  # keeps them alive

    def give_leaves(self, name: str, leaves: Iterable[Tensor | None]) -> None:
        """Set the addresses of a state's leaves."""
        field = getattr(self, name)
        for index, leaf in enumerate(leaves):
            field[index] = address(leaf)


def _open(variant: str) -> ctypes.CDLL | None:
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = FOLDER / (variant + suffix)
        if path.exists():
            if _cut_short(path):
                raise OSError(f"{path}: the file is cut short")
            return ctypes.CDLL(str(path))
    return None


def _cut_short(path: Path) -> bool:
    """Whether a file lacks the end that its ELF header tells of; to load it would end the process, by a bus error."""
    with path.open("rb") as file:
        header = file.read(64)
    if header[:6] != b"\x7fELF\2\1" or len(header) < 64:  # of another system, or not even that
        return False
    (sections,) = struct.unpack_from("<Q", header, 40)
    size, count = struct.unpack_from("<HH", header, 58)
    return path.stat().st_size < sections + size * count


@functools.cache
def load() -> ctypes.CDLL | str:
    """The library for the best instruction set that the processor has, or why there is none.

    Raises:
        ValueError: :data:`FORCED` names another instruction set, which is unknown, not built, or not this processor's.
    """
    forced = os.environ.get(FORCED)
    if not forced:
        return load_variant(None)
    check_choice(FORCED, forced, INSTRUCTION_SETS)
    loaded = load_variant(forced)
    if isinstance(loaded, str):
        raise ValueError(f"{FORCED}: got {forced!r}; {loaded}")
    return loaded


@functools.cache
def load_variant(name: str | None) -> ctypes.CDLL | str:
    """The library for an instruction set, or for the best one that the processor has (None), or why there is none."""
    again = "`pip install -e .` in a clone of the repository builds it where there is a C++ compiler"
    try:
        baseline = _open(VARIANTS[0])
        if baseline is None:
            return f"the native library is not built; {again}"
        runs = VARIANTS[: baseline.processor_level() + 1]
        if name is not None and f"_{name}" not in runs:
            return f"this processor allows {', '.join(variant.removeprefix('_') for variant in runs)}"
        # A variant that the compiler could not build is passed over, unless it is asked for.
        wanted = reversed(runs) if name is None else (f"_{name}",)
        library = next((found for variant in wanted if (found := _open(variant)) is not None), None)
        if library is None:
            return f"the native library is not built for {name}; {again}"
        library.build_identity.restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:  # a damaged file; one of another library, which lacks these functions
        return f"the native library does not load ({error}); {again}"
    if SOURCE.is_dir() and library.build_identity().decode() != build_identity():
        return f"the native library was built from other sources; {again}"
    return library


def instructions_of(library: ctypes.CDLL) -> str:
    """The name of the instruction set that a library is for."""
    return Path(library._name).name.partition(".")[0].removeprefix("_")


def identity() -> str:
    """What tells the library that :func:`load` gives from others: its instruction set and the sources it is built from.

    It has been loaded.
    """
    loaded = load()
    assert not isinstance(loaded, str), loaded
    return f"{instructions_of(loaded)} {loaded.build_identity().decode()}"


def sizes(library: ctypes.CDLL, accessor: str, problem: Problem, dtype: torch.dtype) -> tuple[int, int]:
    """Elements of the records, and of the saved memories and links."""
    out = (ctypes.c_int64 * 2)()
    getattr(library, f"{accessor}_{type_name(dtype)}_sizes")(ctypes.byref(problem), out)
    return out[0], out[1]


def call(library: ctypes.CDLL, accessor: str, direction: str, problem: Problem, dtype: torch.dtype, x: Tensors) -> None:
    """Run ``forward`` or ``backward``.

    Raises:
        MemoryError: no room for the scratch memory.
    """
    function = getattr(library, f"{accessor}_{type_name(dtype)}_{direction}")
    if function(ctypes.byref(problem), ctypes.byref(x)):
        raise MemoryError(f"native backend: no memory for the scratch space of the {direction} pass")


def address(tensor: Tensor | None) -> int | None:
    """Where a contiguous tensor lies, or null."""
    return None if tensor is None else tensor.data_ptr()


def type_name(dtype: torch.dtype) -> str:
    """How the library's functions name a type."""
    return "float32" if dtype == torch.float32 else "float64"
