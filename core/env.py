"""Env: a task that hands out batches and says how well they were answered."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from .contracts import OTHER_BATCH, check_numbers, expect, trying
from .streams import Stream
from .task import Task
from .tokens import is_whole


class Batch(NamedTuple):
    """One batch of sequences, time first."""

    inputs: Tensor
    """``[T, B, I]``, or tokens ``[T, B]``, whole numbers below I"""
    targets: Tensor
    """``[T, B, O]``, or classes ``[T, B]``, whole numbers below O"""
    mask: Tensor
    """``[T, B]``: 1 where the output counts, 0 elsewhere and on padding."""


class Env(Task):
    """A task: samples batches, computes the loss and the numbers that people quote.

    Subclasses set ``input_size`` and ``output_size`` in :meth:`setup` and implement :meth:`sample`; the defaults here
    are those of tasks whose outputs are bits. An env never keeps a random state: every draw comes from the generator
    that is passed in.
    """

    error_metric: ClassVar[str] = "bits_wrong"
    class_targets: ClassVar[bool] = False
    """Whether targets are classes, whole numbers below ``output_size``, rather than vectors of so many channels."""

    loss_per: Literal["sequence", "bit"] = Field(
        default="sequence",
        description="what the training loss is the mean of: the summed loss of each sequence, or the loss of each "
        "counted bit",
    )

    @abstractmethod
    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw a batch on the env's device at the current level of the curriculum.

        Args:
            batch_size: number of sequences.
            generator: the only source of randomness; on the env's device.
        """

    def check(self) -> None:
        """Draw a few sequences and judge an answer; see :meth:`Task.check`."""
        super().check()
        sizes = (OTHER_BATCH, 2 * OTHER_BATCH - 1)  # one of which is no number of steps
        something = [self._check_batch(count) for count in sizes]
        where = f"{type(self).__qualname__}.sample: mask of {sizes[0]} and of {sizes[1]} sequences"
        expect(any(something), where, "0 everywhere", "1 at the steps that count")
        for stream in get_args(Stream):
            for variant in self.sets(stream).values():
                if type(variant) is type(self) and variant is not self and variant.batches(OTHER_BATCH) is None:
                    variant._check_batch(OTHER_BATCH)

    def _check_batch(self, count: int) -> bool:
        """Check what is drawn, and what follows from it; whether any of it counts."""
        name, drawn = type(self).__qualname__, []
        for _ in range(2):
            with trying(self, "sample"):
                drawn.append(self.sample(count, torch.Generator(self.device).manual_seed(0)))
        batch = drawn[0]
        self.check_batch(batch, count)
        for part, tensor, again in zip(Batch._fields, batch, drawn[1], strict=True):
            where = f"{name}.sample: {part} of {count} sequences"
            same = torch.equal(tensor, again)
            expect(same, where, "another draw from the same seed", "all randomness from the generator that is given")
        steps = len(batch.mask)
        outputs = self.silence(batch)
        with trying(self, "losses"):
            losses, loss = self.losses(outputs, batch), self.loss(outputs, batch)
        for method, tensor, shape in (("losses", losses, (steps, count)), ("loss", loss, ())):
            found = f"shape {list(tensor.shape)}" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
            right = isinstance(tensor, Tensor) and tensor.shape == shape
            expect(right, f"{name}.{method}", f"{found} for {count} sequences", f"shape {list(shape)}")
        with trying(self, "tallies"):
            known = {metric: (total, amount) for metric, (total, amount) in self.tallies(outputs, batch).items()}
        for metric, (total, amount) in known.items():
            check_numbers(f"{name}.tallies", {f"total of {metric}": total, f"count of {metric}": amount})
        with trying(self, "metrics"):
            check_numbers(f"{name}.metrics", self.metrics(outputs, batch))
        expect(self.error_metric in known, name, f"error_metric is {self.error_metric!r}", f"one of {', '.join(known)}")
        return bool(batch.mask.any())

    def check_batch(self, batch: Batch, count: int) -> None:
        """Check that a batch meets the contract.

        Args:
            batch: from :meth:`sample`.
            count: sequences that were asked for.

        Raises:
            ContractError: it is not; names the part, what was found and what is expected.
        """
        where = f"{type(self).__qualname__}.sample"
        right = isinstance(batch, Batch) and all(isinstance(part, Tensor) for part in batch)
        expect(right, where, f"returns a {type(batch).__name__}", "a Batch of three tensors")
        steps = batch.mask.shape[0] if batch.mask.dim() else 1
        sizes = ((self.input_size, self.token_inputs), (self.output_size, self.class_targets), (0, False))
        for part, tensor, (size, whole) in zip(Batch._fields, batch, sizes, strict=True):
            shape = [steps, count] if whole or not size else [steps, count, size]
            found = f"{tensor.dtype} of shape {list(tensor.shape)}"
            expected = f"{'whole numbers' if whole else 'floats'} of shape {shape}, time first"
            right = is_whole(tensor) if whole else tensor.is_floating_point()
            which = f"{where}: {part} of {count} sequences"
            expect(list(tensor.shape) == shape and right, which, found, expected)
            expect(bool(tensor.isfinite().all()), which, "numbers that are not finite", "finite ones")
            if whole and tensor.numel():
                found = f"from {int(tensor.min())} to {int(tensor.max())}"
                inside = bool(((tensor >= 0) & (tensor < size)).all())
                expect(inside, f"{where}: {part}", found, f"whole numbers below {size}")

    def counted(self, batch: Batch) -> tuple[Tensor, Batch] | None:
        """Only the steps that count, if answers to the others cost much and change nothing; here, never: None.

        Args:
            batch: of T steps.

        Returns:
            Which steps they are, ``[M, B]``, and a batch of these alone. A sequence with fewer than M is filled up with
            steps that do not count.
        """
        return None

    def silence(self, batch: Batch) -> Tensor:
        """Answers to a batch that are all zero, ``[T, B, O]``."""
        return batch.mask.new_zeros(*batch.mask.shape, self.output_size)

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Masked cross-entropy of each position, summed over its bits, in nats.

        Args:
            outputs: logits, ``[T, B, O]``.
            batch: the batch that was answered.

        Returns:
            ``[T, B]``.
        """
        bits = functional.binary_cross_entropy_with_logits(outputs, batch.targets.to(outputs.dtype), reduction="none")
        return bits.sum(-1) * batch.mask

    def surprises(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Minus the logarithm of the probability that outputs give to each position's right answer, in nats.

        Args:
            outputs: logits, ``[T, B, O]``.
            batch: the batch that was answered.

        Returns:
            ``[T, B]``, 0 where the position does not count.

        Raises:
            ValueError: the answers have no probabilities.
        """
        return self.losses(outputs, batch)

    def right(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Share of each position's bits that are right, 0 where the position does not count.

        Like :meth:`losses` it is a tensor computation, which ``torch.func.vmap`` maps over a population.

        Args:
            outputs: logits, ``[T, B, O]``.
            batch: the batch that was answered.

        Returns:
            ``[T, B]`` in [0, 1].
        """
        agree = (outputs > 0) == (batch.targets > 0.5)
        return agree.to(outputs.dtype).mean(-1) * batch.mask

    def errors(self, outputs: Tensor, batch: Batch) -> Tensor:
        """How wrong each position's answer is, 0 where all is right; here, the share of its bits that are wrong.

        Args:
            outputs: logits, ``[T, B, O]``.
            batch: the batch that was answered.

        Returns:
            ``[T, B]``, of which those that count matter.
        """
        return 1 - self.right(outputs, batch)

    def normaliser(self, batch: Batch) -> Tensor:
        """What the sum of :meth:`losses` is divided by: the batch size, or the number of counted bits."""
        if self.loss_per == "sequence":
            return torch.as_tensor(batch.mask.shape[1], dtype=batch.mask.dtype, device=batch.mask.device)
        return (batch.mask.sum() * batch.targets.shape[-1]).clamp(min=1)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Training loss, a scalar in nats; padding changes nothing.

        Args:
            outputs: logits, ``[T, B, O]``.
            batch: the batch that was answered.
        """
        return self.losses(outputs, batch).sum() / self.normaliser(batch)

    def tallies(self, outputs: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """The sum and the count behind each of the :meth:`metrics`; over many batches add up both, then divide.

        Here: loss per counted bit in nats, and bits wrong per sequence.

        Args:
            outputs: logits, ``[T, B, O]``.
            batch: the batch that was answered.

        Returns:
            By name two scalars on the env's device.
        """
        wrong = (((outputs > 0) != (batch.targets > 0.5)) * batch.mask.unsqueeze(-1)).sum()
        sequences = torch.full_like(batch.mask[0, 0], batch.mask.shape[1])
        return {
            "loss": (self.losses(outputs, batch).sum(), batch.mask.sum() * batch.targets.shape[-1]),
            "bits_wrong": (wrong, sequences),
        }

    def metrics(self, outputs: Tensor, batch: Batch) -> dict[str, float]:
        """Numbers that people quote: each of the :meth:`tallies` divided; those that count nothing are left out.

        Args:
            outputs: logits, ``[T, B, O]``.
            batch: the batch that was answered.
        """
        return {
            name: float((total / count).detach())
            for name, (total, count) in self.tallies(outputs, batch).items()
            if count > 0
        }

    def drawn(self, count: int, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Sequences to be judged on, drawn as those of training are.

        Args:
            count: how many.
            batch_size: the most sequences of a batch; the last may have fewer.
            generator: the only source of randomness; on the env's device.
        """
        for start in range(0, count, batch_size):
            yield self.sample(min(batch_size, count - start), generator)

    def batches(self, batch_size: int) -> Iterator[Batch] | None:
        """Every example of a finite set once, in order; None where examples are made up without end.

        Args:
            batch_size: the most sequences of a batch; the last may have fewer.
        """
        return None
