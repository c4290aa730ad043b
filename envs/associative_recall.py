"""Associative recall: given one item of a list, give back the next one (Graves et al. 2014, section 4.3)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field

from ..core.env import Batch
from .curriculum import Range
from .sequence import SequenceEnv, SequenceOptions, place


class AssociativeRecallOptions(SequenceOptions):
    """Options of :class:`AssociativeRecallEnv`."""

    type: Literal["associative-recall"] = "associative-recall"
    width: int = Field(6, ge=1)
    """Bits of a word."""
    words_per_item: int = Field(3, ge=1)
    """Words of an item."""
    min_items: int = Field(2, ge=2)
    """Fewest items of a training sequence."""
    max_items: int = Field(6, ge=2)
    """Most items of a training sequence."""
    test_items: list[Annotated[int, Field(ge=2)]] = Field([6, 10, 12, 15, 20])
    """Numbers of items to be tested on besides the training range."""

    def ranges(self) -> dict[str, Range]:
        """Items of a sequence."""
        return {"items": (self.min_items, self.max_items)}


class AssociativeRecallEnv(SequenceEnv):
    """Items of K words, each after a delimiter; then one of them between two query delimiters; then silence.

    During the K steps of silence the item that followed it is to be given back. The last item is never the query.

    N items: T = N(K + 1) + 2K + 2 steps. Inputs have width + 2 channels (the last two are the item delimiter and the
    query delimiter), targets width.
    """

    Options = AssociativeRecallOptions
    options: AssociativeRecallOptions

    def __init__(self, options: AssociativeRecallOptions, device: torch.device | str = "cpu") -> None:
        """See :class:`SequenceEnv`."""
        super().__init__(options, device)
        self.input_size = options.width + 2
        self.output_size = options.width

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """A batch at the current level; see :meth:`Env.sample`."""
        width, size = self.options.width, self.options.words_per_item
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

    def beyond(self) -> list[dict[str, Range]]:
        """``test_items``."""
        return [{"items": (items, items)} for items in self.options.test_items]
