"""A task of your own, n-back: each word is answered by the one that came some steps before it.

Train an NTM on it with ``papertape train examples/own_task.yaml``; or have it in place of any other task, with
``papertape train dnc-copy --import examples/own_task.py env.type=n-back env.back=5``.
"""

from typing import Any

import torch
from pydantic import Field

import papertape


@papertape.register("env", "n-back")
class NBackEnv(papertape.Env):
    """Random words ``[T, B, W]``, each answered by the one some steps before it."""

    width: int = Field(4, ge=1, description="W, bits of a word")
    back: int = Field(3, ge=1, description="steps for which a word is to be remembered")
    length: int = Field(20, ge=2, description="T, words of a training sequence")
    test_lengths: list[int] = Field([40, 80], description="lengths on which it is judged besides")

    @classmethod
    def check_options(cls, options: Any) -> None:
        if options.back >= (shortest := min([options.length, *options.test_lengths])):
            raise ValueError(f"back: got {options.back}; allowed is less than the shortest length ({shortest})")

    def setup(self) -> None:
        self.input_size = self.output_size = self.width

    def sample(self, batch_size: int, generator: torch.Generator) -> papertape.Batch:
        shape = (self.length, batch_size, self.width)
        words = torch.randint(2, shape, generator=generator, device=self.device).to(torch.get_default_dtype())
        counts = torch.arange(self.length, device=self.device) >= self.back  # before that there is nothing to answer
        return papertape.Batch(words, words.roll(self.back, 0), counts.to(words).unsqueeze(1).repeat(1, batch_size))

    def sets(self, stream: str) -> dict[str, papertape.Env]:
        return {f"length {length}": self.changed(length=length) for length in (self.length, *self.test_lengths)}
