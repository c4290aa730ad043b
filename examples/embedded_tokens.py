"""Sequences of tokens, of different lengths, through an embedding; and a circuit as a layer of a bigger model.

The model says whether the brackets of a string are balanced. ``lengths=`` makes outputs after a string's end zero, and
the state of each string the one at its own end, as ``torch.nn.LSTM`` does for packed sequences.

    python examples/embedded_tokens.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

import papertape

LONGEST = 12


class Balanced(nn.Module):
    """Embedding, DNC, and a decision from the circuit's output at the end of each string."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(2, 8)
        self.circuit = papertape.DNC(8, 16, hidden_size=32, memory_size=16, word_size=8, num_reads=1)
        self.decision = nn.Linear(16, 1)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Logits ``[B]`` of tokens ``[T, B]``, of which the first ``lengths`` count."""
        outputs, _ = self.circuit(self.embedding(tokens), lengths=lengths)
        last = outputs[lengths - 1, torch.arange(len(lengths))]
        return self.decision(last).squeeze(-1)


def strings(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens ``[T, B]`` (0 opens, 1 closes), lengths ``[B]``, and whether each string is balanced ``[B]``."""
    tokens = torch.randint(2, (LONGEST, count), generator=generator)
    half = torch.rand(count, generator=generator) < 0.5
    for row in half.nonzero().flatten().tolist():  # every second string is balanced: a random walk that comes back
        depth = 0
        for step in range(LONGEST):
            closes = depth == LONGEST - step or (depth > 0 and bool(torch.rand((), generator=generator) < 0.5))
            tokens[step, row] = int(closes)
            depth += -1 if closes else 1
    lengths = 2 * torch.randint(1, LONGEST // 2 + 1, (count,), generator=generator)
    depths = torch.where(torch.arange(LONGEST)[:, None] < lengths, 1 - 2 * tokens, 0).cumsum(0)
    return tokens, lengths, (depths.amin(0) >= 0) & (depths[-1] == 0)


def main(steps: int = 300) -> float:
    """Train for some steps; the share of 500 other strings that is judged rightly."""
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(1)
    model = Balanced()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        tokens, lengths, balanced = strings(32, generator)
        loss = functional.binary_cross_entropy_with_logits(model(tokens, lengths), balanced.float())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimiser.step()
    tokens, lengths, balanced = strings(500, generator)
    with torch.no_grad():
        right = ((model(tokens, lengths) > 0) == balanced).float().mean()
    print(f"{float(right):.1%} of 500 strings judged rightly")
    return float(right)


if __name__ == "__main__":
    main()
