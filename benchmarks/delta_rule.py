"""How much faster the delta rule is in chunks, and in C++, than step by step: one training step, forward and backward.

    python benchmarks/delta_rule.py
    python benchmarks/delta_rule.py --chunks 16 32 64 --steps 1024 --batch 4 --device cuda

Prints a Markdown table. ``memory`` is the accessor, which makes keys, values, gates and queries by a linear layer;
``circuit`` a circuit with a short convolution before it and an output layer. Milliseconds are medians. Step by step and
in chunks take turns, so that both meet the same load; on a CPU it is the time that the process has run. What runs
step by step and in chunks is plain PyTorch; a chunk of ``native`` is the native backend, on a CPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import torch

import papertape
from papertape.core.accessors import Accessor, DeltaAccessor
from papertape.core.kernels.native.delta import delta_rule

Chunk = int | Literal["native"] | None
"""Steps of a chunk; None step by step."""


def memory(options: argparse.Namespace) -> Callable[[Chunk], None]:
    """A training step of the accessor, by steps or in chunks of some size."""
    accessor = DeltaAccessor(options.hidden, **rule(options)).to(options.device)
    hidden = torch.randn(options.steps, options.batch, options.hidden, device=options.device, requires_grad=True)

    def train(chunk: Chunk) -> None:
        accessor.chunk_size = chunk if isinstance(chunk, int) else 1
        run: Any = DeltaAccessor.run if chunk else Accessor.run
        state = accessor.begin(
            accessor.initial_state(options.batch), options.steps, delta_rule if chunk == "native" else None
        )
        reads, _ = run(accessor, hidden, state)
        reads.square().mean().backward()

    return train


def circuit(options: argparse.Namespace) -> Callable[[Chunk], None]:
    """The same of a circuit."""
    built = papertape.MemoryCircuit(
        options.hidden,
        options.hidden,
        controller={"type": "convolution", "hidden_size": options.hidden},
        accessor={"type": "delta", **rule(options)},
        read_feedback=False,
        backend="eager",
        device=options.device,
    )
    inputs = torch.randn(options.steps, options.batch, options.hidden, device=options.device)

    def train(chunk: Chunk) -> None:
        built.accessor.chunk_size = chunk if isinstance(chunk, int) else 1
        built.backend = "native" if chunk == "native" else "eager"
        if chunk:
            outputs, _ = built(inputs)
        else:
            state, answers = built.initial_state(options.batch), []
            for x in inputs:
                y, state = built.step(x, state)
                answers.append(y)
            outputs = torch.stack(answers)
        outputs.square().mean().backward()

    return train


def rule(options: argparse.Namespace) -> dict[str, Any]:
    """Options of the accessor."""
    return {
        "num_heads": options.heads,
        "key_size": options.size,
        "value_size": options.size,
        "num_rules": options.rules,
        "decay": options.decay,
    }


def milliseconds(train: Callable[[Chunk], None], chunk: Chunk, device: str) -> float:
    """Time of one training step."""
    if device == "cpu":
        start = time.process_time()
        train(chunk)
        return 1e3 * (time.process_time() - start)
    torch.cuda.synchronize()
    start = time.perf_counter()
    train(chunk)
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=256, help="of time")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--size", type=int, default=32, help="of keys and of values")
    parser.add_argument("--hidden", type=int, default=64, help="channels of what goes in")
    parser.add_argument("--rules", type=int, default=1, help="delta rules of a step")
    parser.add_argument("--decay", action="store_true")
    parser.add_argument("--chunks", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--native", action=argparse.BooleanOptionalAction, help="default: on a CPU")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print("| | chunk | step by step, ms | in chunks, ms | times faster |\n| --- | --- | --- | --- | --- |")
    native = options.device == "cpu" if options.native is None else options.native
    chunks: list[Chunk] = [None, *options.chunks]
    if native:
        chunks.append("native")
    for what in (memory, circuit):
        train = what(options)
        taken: dict[Chunk, list[float]] = {chunk: [] for chunk in chunks}
        for round_ in range(options.rounds + 1):
            for chunk, times in taken.items():
                found = milliseconds(train, chunk, options.device)
                times += [found] if round_ else []  # the first warms up
        steps = statistics.median(taken.pop(None))
        for chunk, times in taken.items():
            chunked = statistics.median(times)
            print(f"| {what.__name__} | {chunk} | {steps:.1f} | {chunked:.1f} | {steps / chunked:.1f} |")


if __name__ == "__main__":
    main()
