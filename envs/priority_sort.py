"""Priority sort: give back the vectors of highest priority in order (Graves et al. 2014, section 4.5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field

from ..core.env import Batch
from ..core.registry import register
from ..core.trace_field import Channels
from .curriculum import Range
from .sequence import SequenceEnv, Sizes, place


@register("env", "priority-sort")
class PrioritySortEnv(SequenceEnv):
    """N vectors, each with a priority drawn evenly from [-1, 1]; an end flag; then silence.

    During the silence the vectors of the highest priorities are to be given back, the highest first.

    T = N + 1 + min(N, highest) steps. Inputs have width + 2 channels (the last two are the priority and the end flag),
    targets width.
    """

    width: int = Field(default=8, ge=1, description="bits of a vector")
    min_items: int = Field(default=20, ge=1, description="fewest vectors of a training sequence")
    max_items: int = Field(default=20, ge=1, description="most vectors of a training sequence")
    highest: int = Field(
        default=16, ge=1, description="how many vectors to give back; all of them where there are fewer"
    )
    test_items: Sizes = Field(
        default=[30, 40], description="numbers of vectors to be tested on besides the training range"
    )

    @staticmethod
    def ranges(options: Any) -> dict[str, Range]:
        """Vectors of a sequence."""
        return {"items": (options.min_items, options.max_items)}

    def setup(self) -> None:
        """Sizes of inputs and targets."""
        self.input_size, self.output_size = self.width + 2, self.width

    def input_channels(self) -> Sequence[Channels]:
        """Words and their priorities."""
        return [Channels("words", self.width), Channels("priority", 1, ("priority",)), Channels("flag", 1, ("end",))]

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """A batch at the current level; see :meth:`Env.sample`."""
        width = self.width
        items = self.draw(batch_size, generator)["items"]
        most = int(items.max())
        words = self.bits(most, batch_size, width, generator=generator)
        priority = 2 * torch.rand(most, batch_size, generator=generator, device=self.device, dtype=words.dtype) - 1

        step = self.steps(most + 1 + min(most, self.highest))
        given = step < items
        answer = (step > items) & (step <= items + items.clamp(max=self.highest))
        inputs = words.new_zeros(step.shape[0], batch_size, self.input_size)
        inputs[:most, :, :width] = words
        inputs[:most, :, width] = priority
        inputs *= given.unsqueeze(-1)
        inputs[:, :, width + 1] = (step == items).to(words.dtype)
        order = priority.masked_fill(~given[:most], -torch.inf).argsort(dim=0, descending=True, stable=True)
        ordered = words.gather(0, order.unsqueeze(-1).expand_as(words))
        return Batch(inputs, place(ordered, step - items - 1, answer), answer.to(words.dtype))

    @property
    def kept_words(self) -> int:
        """One for each item."""
        return self.max_items

    def beyond(self) -> list[dict[str, Range]]:
        """``test_items``."""
        return [{"items": (items, items)} for items in self.test_items]
