"""Compiles every Triton kernel for a GPU, on any machine: what the interpreter lets pass, the compiler does not.

    TRITON_INTERPRET=0 python compile_triton.py 80

Runs the library with a launcher that compiles instead; the argument is the compute capability. Prints one line per
kernel: name, type, bytes of shared memory. Run by test_triton_compiles.py in a process of its own, since
interpreted and compiled kernels cannot share one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from triton import compile as compile_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import papertape
from papertape.core.kernels.triton import allocation, content, links, location, recurrence, sequences, steps, writing

TYPES = {torch.float32: "fp32", torch.float64: "fp64"}

compiled: set[str] = set()
"""What each kernel was compiled with."""


def compile_instead(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """In place of ``launch``: compile the kernel as it would be launched."""
    options = {"num_warps": 4, "num_stages": 1}
    options |= {name: constants.pop(name) for name in ("num_warps", "enable_fp_fusion") if name in constants}
    signature: dict[str, str] = dict.fromkeys(kernel.arg_names, "constexpr")
    # As at a launch: of what is aligned, a thread loads several elements at once.
    aligned: dict[tuple[int], list[list[Any]]] = {}
    for index, (name, argument) in enumerate(zip(kernel.arg_names, arguments, strict=False)):
        kinds = {int: "i32", float: "fp32"}
        signature[name] = f"*{TYPES[argument.dtype]}" if isinstance(argument, Tensor) else kinds[type(argument)]
        if isinstance(argument, Tensor) and argument.data_ptr() % 16 == 0:
            aligned[index,] = [["tt.divisibility", 16]]
    key = f"{kernel.__name__} {signature} {aligned} {constants} {options}"
    if key in compiled:
        return
    compiled.add(key)
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    made = compile_kernel(source, target=target, options=options)
    assert made.asm["cubin"]
    print(kernel.__name__, TYPES[arguments[0].dtype], made.metadata.shared, flush=True)


def circuits() -> Iterator[Any]:
    """Together they launch every kernel, in both types, with every option that changes one, and where it is largest."""
    sizes = {"hidden_size": 5, "memory_size": 33, "word_size": 3, "num_reads": 2}
    for dtype in (torch.float32, torch.float64):
        yield papertape.NTM(2, 2, **sizes, num_writes=2).to(dtype)
        yield papertape.DNC(2, 2, **sizes, num_writes=2).to(dtype)
    improved = {"masked_content": True, "memory_wipe": True, "link_sharpening": True}
    yield papertape.DNC(2, 2, **improved, num_layers=2, num_writes=2, **{**sizes, "memory_size": 11})
    yield papertape.DNC(2, 2, squash="tanh", usage_gradient=True, **{**sizes, "memory_size": 11}).double()
    yield papertape.NTM(2, 2, controller="gru", num_layers=2, clip=None, masked_content=True, **sizes)
    yield papertape.NTM(2, 2, masked_content=True, **{**sizes, "memory_size": 5000})
    # The largest that one program holds.
    yield papertape.NTM(2, 2, hidden_size=256, memory_size=128, word_size=64)
    yield papertape.DNC(2, 2, hidden_size=256, memory_size=64, word_size=64)
    yield papertape.DNC(2, 2, hidden_size=128, memory_size=32, word_size=64, num_reads=1, num_writes=4)


def main() -> None:
    """Compile all."""
    for module in (allocation, content, links, location, recurrence, writing):
        module.launch = compile_instead
    for circuit in circuits():
        state = circuit.initial_state(1)
        inputs = torch.zeros(3, 1, 2, dtype=circuit.output.weight.dtype)
        run = steps.run if sequences.unavailable(circuit, state) else sequences.run
        run(circuit, inputs, state)[0].sum().backward()
        if run is sequences.run:
            with torch.no_grad():
                run(circuit, inputs, state)


if __name__ == "__main__":
    main()
