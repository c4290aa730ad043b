"""Questions about the last N bits of a stream, for several N at once (Khajehabdollahi et al. 2024, section 2.1)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from typing_extensions import Self

from ..core.env import Batch
from ..core.trace_field import Channels
from .curriculum import Range
from .sequence import SequenceEnv

NOT_ASKED = -1.0
"""The target of a head that is not asked, as its N is beyond the curriculum's level."""


class RecentBitsEnv(SequenceEnv):
    """A bit at each step; at the last one a yes or no of each head, which knows its N.

    T is drawn evenly from N + 2 to 4N + 1, N the largest that is asked. Inputs have one channel, 0 or 1, targets one
    for each head; 1 is yes. Metrics are the loss per answer in nats, the share of wrong answers (error), that of right
    ones (accuracy) and, where each N has a head of its own, the same for each N (``accuracy/7``).

    With ``curriculum: {type: growing, start: 2, threshold: 0.02}`` the largest N rises by one whenever 98 % of its own
    answers are right: with ``heads: null`` this is the multi-head curriculum of the paper, whose code also asks for
    98 % of all answers together, with ``heads: 1`` the single-head one.
    """

    error_metric: ClassVar[str] = "error"

    min_n: int = Field(default=2, ge=2, description="smallest N, with which a growing curriculum begins")
    max_n: int = Field(default=50, ge=2, description="largest N")
    heads: int | None = Field(
        default=None,
        ge=1,
        description="how many N are asked at a time, the largest ones; null asks all (multi-head), 1 the largest alone "
        "(single-head); a head whose N is no longer asked is taken for the next one",
    )
    answers: Literal["last", "each"] = Field(
        default="last", description="ask at the last step alone, or at each one from the first that has N bits"
    )
    chance: float | None = Field(
        default=0.5,
        ge=0,
        le=1,
        description="chance that a bit is 1; null draws one for each sequence, evenly, as the authors' code does for "
        "N-parity, though not for the delayed match",
    )

    @staticmethod
    def ranges(options: Any) -> dict[str, Range]:
        """N."""
        return {"n": (options.min_n, options.max_n)}

    def setup(self) -> None:
        """Sizes of inputs and targets."""
        count = self.max_n - self.min_n + 1
        self.first = self.min_n
        """N of the first head."""
        self.input_size, self.output_size = 1, min(self.heads or count, count)

    def variant(self, **ranges: Range) -> Self:
        """See :meth:`SequenceEnv.variant`; it has the same heads."""
        variant = super().variant(**ranges)
        variant.first, variant.output_size = self.first, self.output_size
        return variant

    def lesson(self) -> Self | None:
        """The largest N of the current level alone: among 30 heads that are right, nobody would see it guess."""
        if self.curriculum.at_the_last:
            return None
        _, largest = self.curriculum.levels[self.curriculum.level]["n"]
        return self.variant(n=(largest, largest))

    def input_channels(self) -> Sequence[Channels]:
        """The bit."""
        return [Channels("bit", 1)]

    def output_channels(self) -> Sequence[Channels]:
        """What each head is asked once the curriculum has ended."""
        asked = range(self.max_n - self.output_size + 1, self.max_n + 1)
        by_head = sorted(asked, key=lambda n: (n - self.first) % self.output_size)
        return [Channels("N", self.output_size, tuple(map(str, by_head)))]

    @abstractmethod
    def answer(self, bits: Tensor, n: int) -> Tensor:
        """What is to be said of the last N bits at each step.

        Args:
            bits: 0 or 1, ``[T, B]``.
            n: N.

        Returns:
            1 for yes, 0 for no, ``[T - N + 1, B]``: one for each step that has N bits.
        """

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """A batch at the current level; see :meth:`Env.sample`."""
        device, dtype = self.device, torch.get_default_dtype()
        count = self.draws(batch_size)
        low, high = self.curriculum.draw_ranges(count, generator)["n"].unbind(-1)
        share = torch.rand(count, generator=generator, device=device, dtype=torch.float64)
        length = (high + 2 + (share * 3 * high).long()).expand(batch_size)
        low, high = torch.maximum(low, high - self.output_size + 1).expand(batch_size), high.expand(batch_size)

        longest = int(length.max())
        step = self.steps(longest)
        chance = torch.tensor(0.5 if self.chance is None else self.chance, device=device)
        if self.chance is None:
            chance = torch.rand(batch_size, generator=generator, device=device)
        drawn = torch.rand(longest, batch_size, generator=generator, device=device)
        bits = ((drawn < chance) & (step < length)).to(dtype)
        targets = torch.full((longest, batch_size, self.output_size), NOT_ASKED, dtype=dtype, device=device)
        for n in range(int(low.min()), int(high.max()) + 1):
            head = targets[n - 1 :, :, (n - self.first) % self.output_size]
            head.copy_(torch.where((low <= n) & (n <= high), self.answer(bits, n).to(dtype), head))
        answered = step == length - 1 if self.answers == "last" else (step >= high - 1) & (step < length)
        targets = torch.where(answered.unsqueeze(-1), targets, 0.0)
        return Batch(bits.unsqueeze(-1), targets, answered.to(dtype))

    def _asked(self, batch: Batch) -> Tensor:
        """1 where an answer counts, ``[T, B, O]``."""
        return (batch.targets != NOT_ASKED) * batch.mask.unsqueeze(-1)

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of each position, summed over the heads that are asked, in nats; see :meth:`Env.losses`."""
        targets = batch.targets.to(outputs.dtype).clamp(min=0)
        heads = functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
        return (heads * self._asked(batch)).sum(-1)

    def right(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Share of the heads asked at each position that are right, ``[T, B]``; see :meth:`Env.right`."""
        asked = self._asked(batch)
        agree = ((outputs > 0) == (batch.targets > 0.5)) * asked
        return agree.sum(-1) / asked.sum(-1).clamp(min=1)

    def normaliser(self, batch: Batch) -> Tensor:
        """What the sum of :meth:`losses` is divided by: the batch size, or the number of answers."""
        if self.loss_per == "sequence":
            return super().normaliser(batch)
        return self._asked(batch).sum().clamp(min=1)

    def tallies(self, outputs: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Sums and counts of loss, error and accuracy, over all answers and for each N; see :meth:`Env.tallies`."""
        asked = self._asked(batch)
        right = ((outputs > 0) == (batch.targets > 0.5)) * asked
        each, each_right = asked.sum((0, 1)), right.sum((0, 1))
        count, all_right = each.sum(), each_right.sum()
        return {
            "loss": (self.losses(outputs, batch).sum(), count),
            "error": (count - all_right, count),
            "accuracy": (all_right, count),
        } | {
            f"accuracy/{self.first + head}": (each_right[head], each[head])
            for head in range(self.output_size)
            if self.heads is None
        }
