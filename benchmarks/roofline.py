"""How near the native backend comes to what this machine can do: operations and bytes counted, ceilings measured.

    python benchmarks/roofline.py
    python benchmarks/roofline.py ntm-16 --rounds 41 --instructions avx2

Counts the floating-point operations of a training step (forward, backward and what the backward pass computes again)
and the bytes that it has to move between the cache of a core and what lies beyond; measures, on one thread, how many
fused multiply-adds the processor does at most (a loop of nothing else, compiled here), how fast PyTorch's matrix
products are, and the bandwidths of the caches and of the main memory; and says what share of these the library's part
of a training step reaches. A multiplication and an addition are two operations; an exponential, a logarithm, a root or
a division counts as 20.
"""

from __future__ import annotations

import argparse
import ctypes
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from speed import CASES, Case, add_instructions, chosen_cases, instructions_used, training_step

from papertape.core.kernels.native import library
from papertape.core.kernels.native.sequence import keep_every

FLOAT = 4
"""Bytes."""

FUNCTION = 20
"""Operations of an elementwise function: polynomials of degree 5 to 9, and what surrounds them."""

SPIN = """
typedef float vector __attribute__((vector_size(BYTES)));
float spin(long rounds) {
    vector x[12], total = {};
    for (int i = 0; i < 12; i++) x[i] = total + (float)i;
    for (long k = 0; k < rounds; k++) { BODY }
    for (int i = 0; i < 12; i++) total += x[i];
    return total[0];
}
"""


class Work(NamedTuple):
    """What a training step has to do."""

    products: float
    """Operations in products with the weights, whose gradients included."""
    memory: float
    """Operations on memory and links."""
    functions: float
    """Operations in elementwise functions."""
    bytes: float
    """To and from whatever lies beyond the cache of a core: records and stored memories and links, written and read."""


def count(case: Case) -> Work:
    """Operations and bytes of a training step, LSTM controller, one write head."""
    slots, word, hidden, reads = case.slots, case.word, case.hidden_size, case.reads
    row_steps, apart = case.steps * case.batch_size, keep_every(case.slots)
    cells = slots * word
    heads = reads + 1
    dynamic = case.kind == "dnc"
    interface = word * reads + 3 * word + 5 * reads + 3 if dynamic else heads * (word + 6) + 2 * word
    weights = 4 * hidden * (hidden + reads * word + case.input_size) + interface * hidden
    # Each weight: once forward, once for the gradient of what goes in, once for its own.
    products = 3 * 2 * weights
    # Lookups: a product per head and the norm; write: 4 operations per cell; reads: a product per head.
    forward = cells * (2 * heads + 2 + 4 + 2 * reads)
    # Gradients of both factors of each product; of the write 9; the memories written again from the stored ones.
    backward = cells * (4 * heads + 2 + 9 + 4 * reads + 4 * (apart - 1) / apart)
    functions = slots * (heads * 2 + 2)  # softmax and cosines, norms
    if dynamic:
        again = (apart + 1) / 2  # updates since the links were stored, on average
        forward += slots * slots * (4 * again + 4 * reads)
        backward += slots * slots * (4 * again + 8 * reads + 8)
    else:
        functions += slots * heads * 3  # a logarithm, an exponential, again a logarithm on the way back
    functions = FUNCTION * (functions + 6 * hidden)
    record = 4 * hidden + hidden + interface + slots * (3 * heads + 1)
    if dynamic:
        record += slots * (2 + 2 + 2 * reads + 1)
    stored = (cells + (slots * slots if dynamic else 0)) / apart
    # The link matrix and its gradient are passed over at every step, and stay in no cache of a core.
    passes = slots * slots * (1 + 1 + 2) if dynamic else 0
    moved = FLOAT * (2 * record + 2 * stored + passes)
    return Work(*(row_steps * each for each in (products, forward + backward, functions, moved)))


def fastest(function: Callable[[], object], seconds: float = 0.3) -> float:
    """Seconds of the fastest of many calls: a ceiling is what the machine does when nothing else runs."""
    best, calls, end = float("inf"), 0, time.perf_counter() + seconds
    while calls < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        function()
        best, calls = min(best, time.perf_counter() - start), calls + 1
    return best


def multiply_add_ceiling() -> float | None:
    """Operations per second of 12 independent chains of fused multiply-adds; None without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    loaded = library.load()
    assert not isinstance(loaded, str)
    # Bytes of the vectors that the library uses.
    width = {"baseline": 16, "avx2": 32, "avx512": 64}[library.instructions_of(loaded)]
    body = "".join(f"x[{i}] = x[{i}] * 0.999f + 0.001f;" for i in range(12))
    with tempfile.TemporaryDirectory() as folder:
        source, built = Path(folder, "spin.c"), Path(folder, "spin.so")
        source.write_text(SPIN.replace("BODY", body).replace("BYTES", str(width)))
        subprocess.run([compiler, "-O3", "-march=native", "-w", "-shared", "-fPIC", source, "-o", built], check=True)
        spin = ctypes.CDLL(str(built)).spin
        return 1_000_000 * 12 * (width // FLOAT) * 2 / fastest(lambda: spin(ctypes.c_long(1_000_000)))


def product_ceiling() -> float:
    """Operations per second of PyTorch's square matrix products, the largest over some sizes."""
    best = 0.0
    for size in (256, 512, 1024):
        a, b = torch.rand(size, size), torch.rand(size, size)
        best = max(best, 2 * size**3 / fastest(partial(torch.mm, a, b, out=torch.empty(size, size))))
    return best


def bandwidth(kibibytes: int) -> float:
    """Bytes per second, read and written, of a product with a number over so many KiB."""
    x = torch.rand(kibibytes * 1024 // FLOAT // 2)
    out = torch.zeros_like(x)
    return 2 * FLOAT * x.numel() / fastest(lambda: torch.mul(x, 1.5, out=out))


def library_seconds(case: Case, rounds: int) -> tuple[float, float]:
    """Median and fewest seconds that a training step spends inside the library, forward and backward."""
    spent: list[float] = []
    plain_call = library.call

    def timed(*arguments: Any) -> None:
        start = time.perf_counter()
        plain_call(*arguments)
        spent.append(time.perf_counter() - start)

    torch.manual_seed(0)
    inputs = torch.rand(case.steps, case.batch_size, case.input_size)
    targets = (torch.rand(case.steps, case.batch_size, case.output_size) > 0.5).float()
    step = training_step(case.circuit("native"), inputs, targets)
    with mock.patch.object(library, "call", timed):
        for _ in range(rounds + 3):
            step()
    steps = sorted(forward + backward for forward, backward in zip(spent[6::2], spent[7::2], strict=True))
    return steps[len(steps) // 2], steps[0]


def main() -> None:
    """Print the ceilings, and for each case the counts and the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="default: ntm-16 dnc-large-16")
    parser.add_argument("--rounds", type=int, default=21)
    add_instructions(parser)
    arguments = parser.parse_args()
    names = chosen_cases(parser, arguments.cases or ["ntm-16", "dnc-large-16"])
    used = instructions_used(parser, arguments)
    if isinstance(library.load(), str):
        parser.error(str(library.load()))
    torch.set_num_threads(1)
    blas, adds = product_ceiling(), multiply_add_ceiling()
    peak = adds or blas
    near, middle, far = bandwidth(512), bandwidth(8192), bandwidth(262_144)
    print(f"Ceilings of one thread with {used}, each the fastest of many runs:")
    print(f"  fused multiply-adds     {'no C compiler' if adds is None else f'{adds / 1e9:7.1f} G operations/s'}")
    print(f"  PyTorch's products      {blas / 1e9:7.1f} G operations/s")
    print(f"  512 KiB, 8 MiB, 256 MiB {near / 1e9:7.1f} {middle / 1e9:7.1f} {far / 1e9:7.1f} GB/s")
    for name in names:
        work, (median, best) = count(CASES[name]), library_seconds(CASES[name], arguments.rounds)
        operations = work.products + work.memory + work.functions
        print(f"{name}: {1e3 * median:.2f} ms in the library per training step (median), {1e3 * best:.2f} ms (fastest)")
        print(f"  products with weights {work.products / 1e6:8.1f} M operations")
        print(f"  memory and links      {work.memory / 1e6:8.1f} M operations")
        print(f"  functions             {work.functions / 1e6:8.1f} M operations")
        print(f"  moved                 {work.bytes / 1e6:8.1f} MB, {operations / work.bytes:.1f} operations per byte")
        print(f"  reached               {operations / best / 1e9:8.1f} G operations/s (fastest)")
        for what, floor in (("operations", operations / peak), ("bytes from 8 MiB", work.bytes / middle)):
            share = 100 * floor / best
            print(f"  floor by {what:16} {1e3 * floor:8.2f} ms, {share:.0f} % of the fastest")


if __name__ == "__main__":
    main()
