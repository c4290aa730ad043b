"""How fast circuits run on a GPU, beside a plain eager implementation, interleaved in one process.

    python benchmarks/gpu.py                                  # every case of speed.py, eager and triton
    python benchmarks/gpu.py ntm-16 dnc-large-16 --backends triton --rounds 100
    python benchmarks/gpu.py dnc-small-1 --device cpu --backends eager --rounds 1     # does the script run?

Prints a Markdown table: medians in milliseconds and the ratio of medians. Every figure is of whole sequences and waits
until the GPU is done; a training step is forward, backward, clipping of the gradient's norm and an Adam update.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from speed import CASES, Case, forward_pass, interleaved, training_step
from torch import nn

WARM_UPS = 5
"""Calls before the clock starts: kernels are compiled in the first, graphs recorded in the third."""


def waiting(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """The function, and what it started on the device."""

    def run() -> None:
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def measure(name: str, case: Case, backends: Sequence[str], rounds: int, device: torch.device) -> None:
    """Print the table rows of a case."""
    torch.manual_seed(0)
    inputs = torch.rand(case.steps, case.batch_size, case.input_size, device=device)
    targets = (torch.rand(case.steps, case.batch_size, case.output_size, device=device) > 0.5).float()
    for label, make in (("train", training_step), ("forward", forward_pass)):
        modules: dict[str, nn.Module] = {"plain": case.plain().to(device)} | {
            backend: case.circuit(backend).to(device) for backend in backends
        }
        functions: dict[str, Callable[[], None]] = {}
        first: dict[str, float] = {}
        memory: dict[str, float] = {}
        for backend, module in modules.items():
            functions[backend] = waiting(make(module, inputs, targets), device)
            start = time.perf_counter()
            functions[backend]()
            first[backend] = time.perf_counter() - start
            for _ in range(WARM_UPS - 1):
                functions[backend]()
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
                before = torch.cuda.memory_allocated(device)
                functions[backend]()
                memory[backend] = (torch.cuda.max_memory_allocated(device) - before) / 2**20
        times = interleaved(functions, rounds)
        plain = statistics.median(times["plain"])
        for backend, module in modules.items():
            median = statistics.median(times[backend])
            took = getattr(module, "chosen_backend", None) or backend
            extra = f"{memory[backend]:.0f}" if backend in memory else ""
            print(
                f"| {name} | {label} | {took} | {median:.3f} | {min(times[backend]):.3f} | {plain / median:.2f} | "
                f"{first[backend]:.2f} | {extra} |",
                flush=True,
            )


def main() -> None:
    """Measure the named cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"default: all of {', '.join(CASES)}")
    parser.add_argument("--backends", nargs="+", default=["eager", "triton"])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.cases if name not in CASES]
    if unknown:
        parser.error(f"CASE: got {', '.join(unknown)}; allowed: {', '.join(CASES)}")
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.exit(1, "no CUDA device here: this times the GPU (benchmarks/speed.py times the CPU)\n")
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    print(f"{time.strftime('%Y-%m-%d')}, {place}, torch {torch.__version__}, {arguments.rounds} rounds\n")
    print("| case | what | backend | median ms | min ms | times faster than plain | first call s | extra MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.cases or CASES:
        measure(name, CASES[name], arguments.backends, arguments.rounds, device)


if __name__ == "__main__":
    main()
