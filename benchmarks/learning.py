"""How soon and how well a preset learns, over several seeds: ``papertape sweep``, with one thread for each run.

    python benchmarks/learning.py ntm-copy --seeds 10 --processes 2 --final "env.test_lengths=[10,20,30,50,80,100,120]"
    python benchmarks/learning.py ntm-copy --seeds 10 --processes 2 agent.target_error_beyond=0.3

The first stops and chooses its best weights by the training range alone, the second by longer validation sequences,
too.

Prints, over the seeds, median, quartiles and worst of the sequences seen until the validation error on the training
range fell under 0.1 and under 0.01 and stayed there to the end, of the time, and of the error on every set of the test.
The weights tested are those of the best checkpoint, which ``papertape test`` takes too. Test sequences decide nothing
in training. Each seed has a row in runs.csv, in the sweep's folder; the same words again go on with what was cut off.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

from papertape.main import main as papertape


def main() -> int:
    """Train the seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("assignments", nargs="*", metavar="key=value")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--sequences", type=int, default=256, help="of each set of the final test")
    parser.add_argument("--final", action="append", default=[], metavar="key=value", help="only for the final test")
    parser.add_argument("--import", action="append", default=[], dest="imports", metavar="MODULE")
    arguments = parser.parse_intermixed_args()
    print(f"{time.strftime('%Y-%m-%d')}, {arguments.preset} {' '.join(arguments.assignments)}, ", end="")
    print(
        f"{arguments.processes} process(es) of {arguments.threads} thread(s), torch {torch.__version__}\n", flush=True
    )
    seeds = f"seed={arguments.first_seed}..{arguments.first_seed + arguments.seeds - 1}"
    sweep = ["sweep", arguments.preset, *arguments.assignments, seeds, f"threads={arguments.threads}"]
    sweep += ["--jobs", str(arguments.processes), "--sequences", str(arguments.sequences)]
    sweep += [word for module in arguments.imports for word in ("--import", module)]
    return papertape([*sweep, *(word for option in arguments.final for word in ("--test-option", option))])


if __name__ == "__main__":
    sys.exit(main())
