"""How fast circuits run on a GPU, beside a plain eager implementation, interleaved in one process.

    python benchmarks/gpu.py                                  # every case of speed.py, eager and triton
    python benchmarks/gpu.py ntm-16 dnc-large-16 --backends triton --rounds 100
    python benchmarks/gpu.py dnc-small-1 --device cpu --backends eager --rounds 1     # does the script run?

Prints a Markdown table: medians in milliseconds and the ratio of medians. Every figure is of whole sequences and waits
until the GPU is done; a training step is forward, backward, clipping of the gradient's norm and an Adam update.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from speed import CASES, TABLE_HEAD, case_step, chosen_cases, interleaved, print_rows
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


def measure(name: str, backends: Sequence[str], rounds: int, device: torch.device) -> None:
    """Print the table rows of a case."""
    for label in ("train", "forward"):
        modules: dict[str, nn.Module] = {}
        functions: dict[str, Callable[[], None]] = {}
        first: dict[str, tuple[float, float | None]] = {}
        for backend in ("plain", *backends):
            step, modules[backend] = case_step(name, backend, label, device)
            function = functions[backend] = waiting(step, device)
            start = time.perf_counter()
            function()
            seconds = time.perf_counter() - start
            for _ in range(WARM_UPS - 1):
                function()
            memory = None
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
                before = torch.cuda.memory_allocated(device)
                function()
                memory = (torch.cuda.max_memory_allocated(device) - before) / 2**20
            first[backend] = seconds, memory
        print_rows(f"{name} | {label}", modules, interleaved(functions, rounds), first)


def main() -> None:
    """Measure the named cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"default: all of {', '.join(CASES)}")
    parser.add_argument("--backends", nargs="+", default=["eager", "triton"])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    cases = chosen_cases(parser, arguments.cases)
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.exit(1, "no CUDA device here: this times the GPU (benchmarks/speed.py times the CPU)\n")
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    print(f"{time.strftime('%Y-%m-%d')}, {place}, torch {torch.__version__}, {arguments.rounds} rounds\n")
    print(TABLE_HEAD)
    for name in cases:
        measure(name, arguments.backends, arguments.rounds, device)


if __name__ == "__main__":
    main()
