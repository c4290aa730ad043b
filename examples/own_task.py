"""A task of your own: brackets of several kinds open and close, and a circuit says which is open innermost.

That takes a stack, which a memory can be. One class is all that there is to write: its options, its sizes, one batch,
and what it is judged on. Options files then name it like any other task:

    papertape train examples/own_task.yaml
    papertape train ntm-copy --import examples.own_task env.type=brackets env.kinds=4
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch.nn import functional

import papertape


@papertape.register("env", "brackets")
class BracketsEnv(papertape.Env):
    """Brackets open and close, properly nested; after each, the kind of the innermost open one is asked for.

    Inputs ``[T, B, K + 1]``: the kind of bracket that opens, or in the last channel that the innermost one closes.
    Targets ``[T, B, K]``: the kind that is open innermost then, zeros where none is.
    """

    kinds: int = Field(default=2, ge=1, description="kinds of brackets, K")
    length: int = Field(default=20, ge=1, description="brackets of a training sequence, opening and closing ones")
    test_lengths: list[int] = Field(default=[40], description="numbers of brackets to be tested on besides")

    def setup(self) -> None:
        """Sizes of inputs and targets."""
        self.input_size, self.output_size = self.kinds + 1, self.kinds

    def sample(self, batch_size: int, generator: torch.Generator) -> papertape.Batch:
        """A batch; all of its randomness comes from the generator."""
        shape, row = (self.length, batch_size), torch.arange(batch_size, device=self.device)
        drawn = torch.randint(self.kinds, shape, generator=generator, device=self.device)
        kinds = functional.one_hot(drawn, self.kinds).to(torch.get_default_dtype())
        heads_up = torch.randint(2, shape, generator=generator, device=self.device).bool()
        stack = kinds.new_zeros(batch_size, self.length + 1, self.kinds)  # depth 0 is the bottom, which stays empty
        depth = torch.zeros_like(row)
        inputs, targets = [], []
        for kind, up in zip(kinds, heads_up, strict=True):
            opens = up | (depth == 0)
            depth = torch.where(opens, depth + 1, depth - 1)
            stack[row, depth] = torch.where(opens.unsqueeze(1), kind, stack[row, depth])
            inputs.append(torch.cat([kind * opens.unsqueeze(1), (~opens).unsqueeze(1)], dim=1))
            targets.append(stack[row, depth])
        return papertape.Batch(torch.stack(inputs), torch.stack(targets), kinds.new_ones(shape))

    def sets(self, stream: str) -> dict[str, papertape.Env]:
        """What it is judged on: the training length first, then longer ones."""
        return {f"length {length}": self.changed(length=length) for length in (self.length, *self.test_lengths)}
