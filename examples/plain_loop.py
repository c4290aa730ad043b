"""Train an NTM to copy in a loop of your own, without our agents, and look at what its heads did.

Only the circuit and the task are ours. A circuit is called like ``torch.nn.LSTM``: inputs ``[T, B, I]`` and a state
that is None at the beginning of a sequence; it gives logits ``[T, B, O]`` and the state after the last step.

    python examples/plain_loop.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import papertape
from papertape.envs import CopyEnv


def main(steps: int = 1000, picture: str | Path = "plain_loop.png") -> float:
    """Train, draw the memory at work on one sequence, and return the bits wrong per sequence of 8 words."""
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(1)
    env = CopyEnv(width=6, max_length=8)
    circuit = papertape.NTM(env.input_size, env.output_size, memory_size=32, word_size=10)
    optimiser = torch.optim.Adam(circuit.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=1e-2, total_steps=steps)
    for _ in range(steps):
        batch = env.sample(16, generator)
        outputs, _ = circuit(batch.inputs)
        loss = env.loss(outputs, batch)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(circuit.parameters(), 10)
        optimiser.step()
        schedule.step()

    # What the heads did: a mapping from names to tensors [T, B, …], each with its axes and its kind.
    batch = env.variant(length=(8, 8)).sample(64, generator)
    with torch.no_grad():
        outputs, _, trace = circuit(batch.inputs, trace=True)
    print(trace)
    where = trace.write_weights[:, 0, 0].argmax(-1)
    print("the first sequence was written to slots", where.tolist())
    papertape.plot_trace(trace, picture, outputs=outputs)
    wrong = env.metrics(outputs, batch)["bits_wrong"]
    print(f"{wrong:.2f} bits wrong per sequence of 8 words")
    return wrong


if __name__ == "__main__":
    main()
