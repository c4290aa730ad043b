"""How fast circuits run, beside a plain eager implementation, interleaved in one process.

    python benchmarks/speed.py                       # every case on the automatic backend, one thread
    python benchmarks/speed.py ntm-16 --backends native eager --threads 2
    python benchmarks/speed.py ntm-1 ntm-64 --what steps --backends auto eager
    python benchmarks/speed.py --instructions avx2   # as on a processor without AVX-512

Prints a Markdown table: medians in milliseconds and the ratio of medians. Every figure is of whole sequences: ``steps``
goes through them one step at a time, as when acting in a world, where each input depends on the last output; a
training step is forward, backward, clipping of the gradient's norm and an Adam update; clipping and Adam are PyTorch's
own, Adam in one fused kernel, and the same for all contestants. The first call, with what it takes to compile, and the
memory are measured in a process of their own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from plain import PlainCircuit, PlainDNC, PlainNTM
from torch import Tensor, nn
from torch.nn import functional

import papertape
from papertape.core.circuit import Circuit
from papertape.core.kernels.native import library


class Case(NamedTuple):
    """One row of the table."""

    kind: str
    steps: int
    batch_size: int
    input_size: int
    output_size: int
    hidden_size: int
    slots: int
    word: int
    reads: int

    def plain(self) -> PlainCircuit:
        """The implementation by the book."""
        sizes = (self.input_size, self.output_size, self.hidden_size, self.slots, self.word)
        return PlainNTM(*sizes) if self.kind == "ntm" else PlainDNC(*sizes, self.reads)

    def circuit(self, backend: str) -> Circuit:
        """The library's circuit."""
        kinds = {"ntm": papertape.NTM, "dnc": papertape.DNC}
        return kinds[self.kind](
            self.input_size,
            self.output_size,
            hidden_size=self.hidden_size,
            memory_size=self.slots,
            word_size=self.word,
            num_reads=self.reads,
            backend=backend,
        )


CASES = {
    "ntm-1": Case("ntm", 42, 1, 10, 8, 100, 128, 20, 1),
    "ntm-16": Case("ntm", 42, 16, 10, 8, 100, 128, 20, 1),
    "ntm-64": Case("ntm", 42, 64, 10, 8, 100, 128, 20, 1),
    "dnc-small-1": Case("dnc", 32, 1, 6, 5, 64, 16, 16, 4),
    "dnc-small-16": Case("dnc", 32, 16, 6, 5, 64, 16, 16, 4),
    "dnc-small-64": Case("dnc", 32, 64, 6, 5, 64, 16, 16, 4),
    "dnc-large-1": Case("dnc", 32, 1, 8, 8, 256, 256, 64, 4),
    "dnc-large-16": Case("dnc", 50, 16, 8, 8, 256, 256, 64, 4),
    "dnc-1024-short": Case("dnc", 20, 4, 8, 8, 64, 1024, 32, 4),
    "dnc-1024": Case("dnc", 50, 4, 8, 8, 64, 1024, 32, 4),
}


TURN_SECONDS = 0.1
"""How long a contestant runs before it is the next one's turn."""


def training_step(
    module: nn.Module, inputs: Tensor, targets: Tensor, *, capturable: bool = False
) -> Callable[[], None]:
    """A function that does one training step, which a CUDA graph can hold if it is to be ``capturable``."""
    optimiser = torch.optim.Adam(module.parameters(), 1e-4, fused=True, capturable=capturable)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        answered = module(inputs)
        outputs = answered if isinstance(answered, Tensor) else answered[0]
        functional.binary_cross_entropy_with_logits(outputs, targets).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 50.0)
        optimiser.step()

    return step


def forward_pass(module: nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[], None]:
    """A function that does one forward pass without gradients."""

    def step() -> None:
        with torch.no_grad():
            module(inputs)

    return step


def single_steps(module: nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[], None]:
    """A function that runs a sequence step by step without gradients."""

    def step() -> None:
        with torch.no_grad():
            if isinstance(module, PlainCircuit):
                module(inputs)  # is a loop over steps
                return
            assert isinstance(module, Circuit)
            state = module.initial_state(inputs.shape[1])
            for x in inputs:
                _, state = module.step(x, state)

    return step


def interleaved(functions: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call of each function; they take turns, round after round.

    A turn lasts ``TURN_SECONDS`` or one call, whichever is longer. Where it has several, the first is not counted: it
    finds the caches as another function has left them, which no training loop does.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            turn: list[float] = []
            while sum(turn) < 1e3 * TURN_SECONDS:
                start = time.perf_counter()
                function()
                turn.append(1e3 * (time.perf_counter() - start))
            times[name] += turn[1:] or turn
    return times


LABELS = {"train": training_step, "forward": forward_pass, "steps": single_steps}
"""What is timed."""


def peak_extra_memory(function: Callable[[], None]) -> float | None:
    """MiB that the process's resident memory rises by at most while a function runs; None where it cannot be read."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return None

    def resident() -> int:
        return int(status.read_text().split()[1]) * 4096

    before, peak, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.0005):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    function()
    done.set()
    watcher.join()
    return max(peak - before, 0) / 2**20


def case_step(
    name: str, backend: str, label: str, device: torch.device | str = "cpu"
) -> tuple[Callable[[], None], nn.Module]:
    """What one row of the table times, and the module it runs; backend ``plain`` is the implementation by the book."""
    case = CASES[name]
    torch.manual_seed(0)
    inputs = torch.rand(case.steps, case.batch_size, case.input_size, device=device)
    targets = (torch.rand(case.steps, case.batch_size, case.output_size, device=device) > 0.5).float()
    module = (case.plain() if backend == "plain" else case.circuit(backend)).to(device)
    return LABELS[label](module, inputs, targets), module


def first_call(name: str, backend: str, label: str, threads: int) -> tuple[float, float | None]:
    """Seconds and peak extra MiB of a first call; to be run in a process of its own, where nothing is warm or free."""
    torch.set_num_threads(threads)
    step, _ = case_step(name, backend, label)
    start = time.perf_counter()
    memory = peak_extra_memory(step)
    return time.perf_counter() - start, memory


TABLE_HEAD = """\
| case | what | backend | median ms | min ms | times faster than plain | first call s | extra MiB |
| --- | --- | --- | --- | --- | --- | --- | --- |"""


def print_rows(
    label: str,
    modules: Mapping[str, nn.Module],
    times: Mapping[str, Sequence[float]],
    first: Mapping[str, tuple[float, float | None]],
) -> None:
    """Print the table rows of a case: milliseconds of each backend; seconds and MiB of its first call."""
    plain = statistics.median(times["plain"])
    for backend, module in modules.items():
        median = statistics.median(times[backend])
        took = getattr(module, "chosen_backend", None) or backend
        seconds, extra = first[backend]
        print(
            f"| {label} | {took} | {median:.3f} | {min(times[backend]):.3f} | {plain / median:.2f} | "
            f"{seconds:.2f} | {'' if extra is None else f'{extra:.0f}'} |",
            flush=True,
        )


def chosen_cases(parser: argparse.ArgumentParser, names: Sequence[str]) -> list[str]:
    """The named cases, or all; an unknown one ends the program."""
    unknown = [name for name in names if name not in CASES]
    if unknown:
        parser.error(f"CASE: got {', '.join(unknown)}; allowed: {', '.join(CASES)}")
    return list(names or CASES)


def add_instructions(parser: argparse.ArgumentParser) -> None:
    """Add the switch that forces the instruction set of the native library."""
    allowed = ", ".join(library.INSTRUCTION_SETS)
    parser.add_argument("--instructions", help=f"of the native library: {allowed}; default: the processor's best")


def instructions_used(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> str:
    """The instruction set that the native library uses in this process and those below it; a wrong one is an error."""
    if arguments.instructions is not None:
        os.environ[library.FORCED] = arguments.instructions
    try:
        loaded = library.load()
    except ValueError as error:
        parser.error(str(error))
    return "no native library" if isinstance(loaded, str) else library.instructions_of(loaded)


def measure(name: str, backends: Sequence[str], rounds: int, labels: Sequence[str]) -> None:
    """Print the table rows of a case."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as fresh:
        for label in labels:
            contestants = {backend: case_step(name, backend, label) for backend in ("plain", *backends)}
            first = {
                backend: fresh.apply(first_call, (name, backend, label, torch.get_num_threads()))
                for backend in contestants
            }
            for step, _ in contestants.values():
                step()
            times = interleaved({backend: step for backend, (step, _) in contestants.items()}, rounds)
            modules = {backend: module for backend, (_, module) in contestants.items()}
            print_rows(f"{name} | {label}", modules, times, first)


def main() -> None:
    """Measure the named cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"default: all of {', '.join(CASES)}")
    parser.add_argument("--backends", nargs="+", default=["auto"])
    parser.add_argument("--what", nargs="+", choices=LABELS, default=list(LABELS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    add_instructions(parser)
    arguments = parser.parse_args()
    cases = chosen_cases(parser, arguments.cases)
    used = instructions_used(parser, arguments)
    torch.set_num_threads(arguments.threads)
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.processor() or platform.machine()}, ",
        end="",
    )
    print(f"{used}, torch {torch.__version__}, {arguments.threads} thread(s), {arguments.rounds} rounds\n")
    print(TABLE_HEAD)
    for name in cases:
        measure(name, arguments.backends, arguments.rounds, arguments.what)


if __name__ == "__main__":
    main()
