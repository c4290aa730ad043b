"""Associative recall: given one item of a list, give back the next one (Graves et al. 2014, section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field

from ..core.env import Batch
from ..core.registry import register
from ..core.trace_field import Channels
from .curriculum import Range
from .sequence import SequenceEnv, place


@register("env", "associative-recall")
class AssociativeRecallEnv(SequenceEnv):
    """Items of K words, each after a delimiter; then one of them between two query delimiters; then silence.

    During the K steps of silence the item that followed it is to be given back. The last item is never the query.

    N items: T = N(K + 1) + 2K + 2 steps. Inputs have width + 2 channels (the last two are the item delimiter and the
    query delimiter), targets width.
    """

    width: int = Field(default=6, ge=1, description="bits of a word")
    words_per_item: int = Field(default=3, ge=1, description="words of an item")
    min_items: int = Field(default=2, ge=2, description="fewest items of a training sequence")
    max_items: int = Field(default=6, ge=2, description="most items of a training sequence")
    test_items: list[Annotated[int, Field(ge=2)]] = Field(
        default=[6, 10, 12, 15, 20], description="numbers of items to be tested on besides the training range"
    )

    @staticmethod
    def ranges(options: Any) -> dict[str, Range]:
        """Items of a sequence."""
        return {"items": (options.min_items, options.max_items)}

    def setup(self) -> None:
        """Sizes of inputs and targets."""
        self.input_size, self.output_size = self.width + 2, self.width

    def input_channels(self) -> Sequence[Channels]:
        """Words and marks."""
        return [Channels("words", self.width), Channels("marks", 2, ("item", "query"))]

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """A batch at the current level; see :meth:`Env.sample`."""
        width, size = self.width, self.words_per_item
        items = self.draw(batch_size, generator)["items"]
        most = int(items.max())
        words = self.bits(most * size, batch_size, width, generator=generator)
        share = torch.rand(batch_size, generator=generator, device=self.device, dtype=torch.float64)
        query = (share * (items - 1)).long()

        step = self.steps(most * (size + 1) + 2 * size + 2)
        start = items * (size + 1)  # of the query
        listed, delimited = step < start, step % (size + 1) == 0
        queried = (step > start) & (step <= start + size)
        answer = (step > start + size + 1) & (step <= start + 2 * size + 1)
        index = torch.where(listed, step - step // (size + 1) - 1, query * size + step - start - 1)
        inputs = words.new_zeros(step.shape[0], batch_size, self.input_size)
        inputs[:, :, :width] = place(words, index, listed & ~delimited | queried)
        inputs[:, :, width] = (listed & delimited).to(words.dtype)
        inputs[:, :, width + 1] = ((step == start) | (step == start + size + 1)).to(words.dtype)
        targets = place(words, (query + 1) * size + step - start - size - 2, answer)
        return Batch(inputs, targets, answer.to(words.dtype))

    @property
    def kept_words(self) -> int:
        """One for each item."""
        return self.max_items

    def beyond(self) -> list[dict[str, Range]]:
        """``test_items``."""
        return [{"items": (items, items)} for items in self.test_items]
