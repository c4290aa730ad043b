"""Read a trace: what each head of a circuit did at every step, as tensors that have names, axes and a kind.

``trace=True`` makes any circuit give one beside its outputs; it names what there is to see of its memory, whoever wrote
that. By default the trace is that of an NTM which first learns to copy, for a few seconds; or name a circuit of yours:

    python examples/reading_a_trace.py
    python examples/reading_a_trace.py runs/…/checkpoints/best.pt
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import papertape
from papertape.agents import BackpropAgent
from papertape.envs import CopyEnv


def learned(steps: int = 1000) -> papertape.NTM:
    """An NTM that copies up to 8 words of 6 bits."""
    torch.manual_seed(1)
    env = CopyEnv(width=6, max_length=8, test_lengths=[])
    circuit = papertape.NTM(env.input_size, env.output_size, memory_size=32, word_size=10)
    BackpropAgent(env, circuit, steps=steps, lr=1e-2, clip_norm=10, evaluate_every=100, target_error=0.0).fit()
    return circuit


def main(circuit: papertape.Circuit, picture: str | Path = "trace.png") -> papertape.Trace:
    """Print what there is to see, and where the heads were; draw all of it."""
    batch = CopyEnv(width=circuit.input_size - 2, min_length=8, max_length=8).sample(4, torch.Generator())
    with torch.no_grad():
        outputs, _, trace = circuit(batch.inputs, trace=True)

    # A mapping: each name has a tensor [T, B, …] and a field that says what it is.
    for name, seen in trace.items():
        field = trace.fields[name]
        print(f"{name:14} {field.kind:9} T B {field.axes:5} {list(seen.shape)!s:15} {field.description}")

    # Where each head was most, in the first sequence, by the number of the slot: T numbers.
    for name, seen in trace.of_kind("weighting").items():
        if trace.fields[name].axes.endswith(" N"):
            slots = seen[:, 0, 0].argmax(-1)
            print(f"{name:14} {' '.join(f'{slot:2}' for slot in slots.tolist())}")

    # Everything is a tensor: how much memory changed from step to step, say.
    if "memory" in trace:
        change = trace.memory[:, 0].diff(dim=0).abs().flatten(1).sum(1)
        print(f"{'memory changed':14} {' '.join(f'{amount:.1f}' for amount in change.tolist())}")

    papertape.plot_trace(trace, picture, inputs=batch.inputs, targets=batch.targets, outputs=outputs.sigmoid())
    return trace


if __name__ == "__main__":
    main(papertape.load_circuit(sys.argv[1]) if len(sys.argv) > 1 else learned())
