"""How much faster several threads train than one, in turns in one process.

    python benchmarks/threads.py                  # two threads, the cases of batch 16 and above
    python benchmarks/threads.py ntm-16 --threads 4

Prints a Markdown table: medians in milliseconds of a training step as in speed.py, and the ratio of medians. Cores must
be idle. PyTorch itself uses the threads as well.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from speed import CASES, add_instructions, case_step, chosen_cases, instructions_used

CALLS = 6
"""Of each turn, of which the first is not counted: the other number of threads has left its traces."""


def in_turns(step: Callable[[], None], numbers: Sequence[int], rounds: int) -> dict[int, list[float]]:
    """Milliseconds of calls on each number of threads."""
    times: dict[int, list[float]] = {number: [] for number in numbers}
    for _ in range(rounds):
        for number in numbers:
            torch.set_num_threads(number)
            start = time.perf_counter()
            for call in range(CALLS):
                step()
                end = time.perf_counter()
                times[number] += [1e3 * (end - start)] if call else []
                start = end
    return times


def main() -> None:
    """Measure the named cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="default: all of batch 16 and above, and dnc-1024")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    add_instructions(parser)
    arguments = parser.parse_args()
    large = [name for name, case in CASES.items() if case.batch_size * case.slots >= 256 and case.batch_size > 1]
    cases = chosen_cases(parser, arguments.cases or large)
    print(f"{instructions_used(parser, arguments)}, torch {torch.__version__}\n")
    print(f"| case | one thread, ms | {arguments.threads} threads, ms | ratio of medians | of fewest |")
    print("| --- | --- | --- | --- | --- |")
    for name in cases:
        step, _ = case_step(name, "native", "train")
        one, several = in_turns(step, (1, arguments.threads), arguments.rounds).values()
        medians, fewest = [statistics.median(t) for t in (one, several)], [min(one), min(several)]
        ratio, best = medians[0] / medians[1], fewest[0] / fewest[1]
        print(f"| {name} | {medians[0]:.2f} | {medians[1]:.2f} | {ratio:.2f} | {best:.2f} |", flush=True)


if __name__ == "__main__":
    main()
