"""A circuit inside a bigger module: an eye that sees noisy pictures, a memory, and a voice that names one seen before.

A circuit is a ``torch.nn.Module`` like any other: its parameters are the model's, which trains, moves, saves and loads
it with all the rest. What it carries from step to step is no part of the module but goes in and comes out, so that the
model can go on where a sequence was left.

    python examples/inside_a_module.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

import papertape

GLYPHS = ["#.#.#.#.#", "###..####", ".#.###.#.", "####.####"]
"""Pictures of 3 × 3 points, row by row."""
BACK = 2


class PictureMemory(nn.Module):
    """A convolution, an NTM, and a layer that says which picture was seen some steps before."""

    def __init__(self) -> None:
        super().__init__()
        self.eye = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten())
        self.memory = papertape.NTM(16, 16, hidden_size=50, memory_size=16, word_size=10)
        self.voice = nn.Linear(16, len(GLYPHS))

    def forward(self, pictures: Tensor, state: papertape.CircuitState | None = None) -> tuple[Tensor, object]:
        """Logits ``[T, B, glyphs]`` of pictures ``[T, B, 1, 3, 3]``, and the state to go on from."""
        seen = self.eye(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])
        outputs, state = self.memory(seen, state)
        return self.voice(outputs), state


def shown(steps: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy pictures ``[T, B, 1, 3, 3]`` and which glyphs they are ``[T, B]``."""
    glyphs = torch.tensor([[point == "#" for point in glyph] for glyph in GLYPHS]).float().view(-1, 1, 3, 3)
    which = torch.randint(len(GLYPHS), (steps, count), generator=generator)
    return glyphs[which] + 0.2 * torch.randn(steps, count, 1, 3, 3, generator=generator), which


def main(steps: int = 300) -> float:
    """Train for some steps; the share of right answers in longer sequences, which are shown in two parts."""
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(1)
    model = PictureMemory()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        pictures, which = shown(12, 32, generator)
        answers, _ = model(pictures)
        loss = functional.cross_entropy(answers[BACK:].flatten(0, 1), which[:-BACK].flatten())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimiser.step()

    pictures, which = shown(40, 100, generator)
    with torch.no_grad():
        first, state = model(pictures[:15])
        rest, _ = model(pictures[15:], state)  # goes on with the memory as it was
    answers = torch.cat([first, rest]).argmax(-1)
    right = float((answers[BACK:] == which[:-BACK]).float().mean())
    print(f"{right:.1%} of the pictures shown {BACK} steps before were named rightly")
    return right


if __name__ == "__main__":
    main()
