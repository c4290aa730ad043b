"""Arithmetic on two whole numbers: addition, division, and others by option."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from typing import Any, ClassVar, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor

from ..core.env import Batch, Env
from ..core.registry import register
from ..core.streams import Stream, task_generator
from ..core.trace_field import Channels
from .regression import RegressionEnv

Operation = Literal["addition", "subtraction", "multiplication", "division"]

RESULTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = dict(
    zip(get_args(Operation), (torch.add, torch.sub, torch.mul, torch.div), strict=True)
)
"""Of each operation, what comes of two numbers."""

WITHIN = (5, 15, 1)
"""Relative errors in per cent whose shares are metrics."""


@register("env", "arithmetic")
class ArithmeticEnv(RegressionEnv):
    """Two whole numbers and an operation, in a single step: inputs ``[1, B, 2 + operations]``, targets ``[1, B, 1]``.

    Inputs are the numbers as shares of ``max_number`` and, with more than one operation, which it is, one-hot. The
    target is the result. An error is a share of the result, or of 1 where that is less, and the loss is its square.
    Metrics are the loss, the shares of answers within 5, 15 and 1 % (``within_5``), those within 5 % of each operation
    (``within_5/division``), and the share beyond 5 %, ``error``.

    Some pairs of numbers are never trained on, in whatever operation: half of them are the validation set, and half
    that of the test.
    """

    error_metric: ClassVar[str] = "error"

    operations: list[Operation] = Field(
        default=["addition", "division"], min_length=1, description="each as often as any other"
    )
    max_number: int = Field(default=10, ge=2, le=1000, description="numbers are from 1 to this")
    held_out: float = Field(
        default=0.2, ge=0, lt=1, description="share of the pairs of numbers that are kept out of training"
    )
    task_seed: int = Field(default=0, ge=0, description="of which pairs are kept out")

    @classmethod
    def check_options(cls, options: Any) -> None:
        """Refuse an operation that is named twice, and pairs too few to be kept out."""
        super().check_options(options)
        if len(set(options.operations)) < len(options.operations):
            raise ValueError(f"operations: got {options.operations}; allowed is each once")
        pairs = options.max_number**2
        if options.held_out and round(options.held_out * pairs) not in range(2, pairs):
            raise ValueError(
                f"held_out: got {options.held_out}, {round(options.held_out * pairs)} of {pairs} pairs; allowed are 0, "
                f"or shares that make up 2 to {pairs - 1}"
            )

    def setup(self) -> None:
        """Sizes of inputs and targets; which pairs belong to which stream."""
        count = len(self.operations)
        self.input_size, self.output_size = 2 + (count if count > 1 else 0), 1
        numbers = torch.arange(1, self.max_number + 1, device="cpu")
        pairs = torch.cartesian_prod(numbers, numbers)
        pairs = pairs[torch.randperm(len(pairs), generator=task_generator(self.task_seed, 0), device="cpu")].to(
            self.device
        )
        kept = round(self.held_out * len(pairs))
        self.pairs = pairs[kept:]
        """That batches are drawn from, ``[N, 2]``."""
        self._held_out = {"validation": pairs[: kept // 2], "test": pairs[kept // 2 : kept]}

    def input_channels(self) -> Sequence[Channels]:
        """The numbers, and the operation."""
        names = tuple(self.operations) if len(self.operations) > 1 else ()
        which = [Channels("operation", len(names), names)] if names else []
        return [Channels("number", 2, ("first", "second")), *which]

    def _batch(self, pairs: Tensor, operation: Tensor) -> Batch:
        """Pairs of numbers ``[B, 2]`` under the operations of these indices ``[B]``."""
        numbers, count = pairs.to(torch.get_default_dtype()), len(self.operations)
        first, second = numbers.unbind(-1)
        results = torch.stack([RESULTS[name](first, second) for name in self.operations])
        inputs = numbers / self.max_number
        if count > 1:
            inputs = torch.cat([inputs, torch.eye(count, dtype=inputs.dtype, device=inputs.device)[operation]], -1)
        targets = results.gather(0, operation.unsqueeze(0)).unsqueeze(-1)
        return Batch(inputs.unsqueeze(0), targets, torch.ones_like(targets[..., 0]))

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw pairs and operations; see :meth:`Env.sample`.

        Raises:
            ValueError: a batch size below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}; allowed is a whole number of at least 1")
        drawn = torch.randint(len(self.pairs), (batch_size,), generator=generator, device=self.device)
        operation = torch.randint(len(self.operations), (batch_size,), generator=generator, device=self.device)
        return self._batch(self.pairs[drawn], operation)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Every pair once under each operation; see :meth:`Env.batches`."""
        for index in torch.arange(len(self.pairs) * len(self.operations), device=self.device).split(batch_size):
            yield self._batch(self.pairs[index // len(self.operations)], index % len(self.operations))

    def sets(self, stream: Stream) -> dict[str, Env]:
        """``held-out pairs``, those of the stream; ``all pairs`` where none are kept out."""
        if not self.held_out:
            return {"all pairs": self}
        variant = copy(self)
        variant.pairs = self._held_out[stream]
        return {"held-out pairs": variant}

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Masked square of each relative error, ``[T, B]``; see :meth:`RegressionEnv.losses`."""
        return self._squares(self.errors(outputs, batch), batch)

    def _squares(self, errors: Tensor, batch: Batch) -> Tensor:
        return errors.square() * batch.mask

    def tallies(self, outputs: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Sums and counts of loss, error and the shares within so many per cent; see :meth:`Env.tallies`."""
        # Once for all: where nets are small, this is a good part of the time of a step.
        count, errors = batch.mask.sum(), self.errors(outputs, batch)
        within = {share: (errors <= share / 100) * batch.mask for share in WITHIN}
        totals = {share: close.sum() for share, close in within.items()}
        found = {"loss": (self._squares(errors, batch).sum(), count), "error": (count - totals[5], count)}
        found |= {f"within_{share}": (total, count) for share, total in totals.items()}
        if len(self.operations) > 1:
            which = batch.inputs[..., 2:].flatten(0, 1)
            of_each = [(part.reshape(-1, 1) * which).sum(0).unbind() for part in (within[5], batch.mask)]
            for name, total, number in zip(self.operations, *of_each, strict=True):
                found[f"within_5/{name}"] = total, number
        return found
