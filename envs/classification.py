"""What tasks of image classification share: loss, metrics, even sampling."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..core.env import Batch, Env
from ..core.trace_field import Channels


class ClassificationEnv(Env):
    """Images in, one of C classes out, each in a single step: inputs ``[1, B, I]`` in [0, 1], targets ``[1, B, C]``.

    Metrics are the loss per image in nats, the share of wrong answers (error), the share of right ones (accuracy) and
    the same for each class (``accuracy/7``).
    """

    error_metric: ClassVar[str] = "error"

    loss_per: Literal["sequence"] = Field(
        default="sequence", description="the mean of the loss is over sequences: each is one image, with one answer"
    )
    sampling: Literal["uniform", "balanced"] = Field(
        default="uniform",
        description="draw images evenly, or as many of each class in every batch (200 of ten classes: 20 of each; "
        "those that are left over where the classes do not divide the batch go to classes drawn evenly)",
    )

    @property
    @abstractmethod
    def classes(self) -> Sequence[str]:
        """Name of each class."""

    def output_channels(self) -> Sequence[Channels]:
        """The classes."""
        return [Channels("class", self.output_size, tuple(self.classes), choice=True)]

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Masked cross-entropy of each answer in nats.

        Args:
            outputs: logits, ``[T, B, C]``.
            batch: the batch that was answered.

        Returns:
            ``[T, B]``.
        """
        return -(functional.log_softmax(outputs, -1) * batch.targets).sum(-1) * batch.mask

    def right(self, outputs: Tensor, batch: Batch) -> Tensor:
        """1 where the likeliest class is the right one, 0 elsewhere, ``[T, B]``."""
        return (outputs.argmax(-1) == batch.targets.argmax(-1)) * batch.mask

    def normaliser(self, batch: Batch) -> Tensor:
        """What the sum of :meth:`losses` is divided by: the number of images."""
        return batch.mask.sum().clamp(min=1)

    def tallies(self, outputs: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Sums and counts of loss, error and accuracy, overall and for each class; see :meth:`Env.tallies`."""
        count, right = batch.mask.sum(), self.right(outputs, batch)
        each, each_right = ((batch.targets * part.unsqueeze(-1)).sum((0, 1)) for part in (batch.mask, right))
        return {
            "loss": (self.losses(outputs, batch).sum(), count),
            "error": (count - right.sum(), count),
            "accuracy": (right.sum(), count),
        } | {f"accuracy/{name}": (each_right[index], each[index]) for index, name in enumerate(self.classes)}


class LabelledImages:
    """Labelled images, kept as bytes on the device they are used on."""

    def __init__(self, images: Tensor, labels: Tensor, num_classes: int) -> None:
        """
        Args:
            images: bytes, ``[N, rows, columns]``.
            labels: whole numbers from 0, ``[N]``.
            num_classes: C.
        """
        self.images, self.labels, self.num_classes = images, labels, num_classes
        self.counts = torch.bincount(labels, minlength=num_classes)
        self.present = self.counts.nonzero().squeeze(-1)
        self.starts = self.counts.cumsum(0) - self.counts
        self.by_class = labels.argsort(stable=True)

    def __len__(self) -> int:
        """N."""
        return self.labels.shape[0]

    def draw(self, batch_size: int, sampling: str, generator: torch.Generator) -> Tensor:
        """Numbers of images drawn with replacement, ``[B]``; see :class:`ClassificationEnv`.

        Raises:
            ValueError: a batch size below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}; allowed is a whole number of at least 1")
        device = self.labels.device
        if sampling == "uniform":
            return torch.randint(len(self), (batch_size,), generator=generator, device=device)
        order = self.present[torch.randperm(len(self.present), generator=generator, device=device)]
        drawn = order[torch.arange(batch_size, device=device) % len(order)]
        share = torch.rand(batch_size, generator=generator, device=device, dtype=torch.float64)
        return self.by_class[self.starts[drawn] + (share * self.counts[drawn]).long()]

    def batch(self, index: Tensor, images: Tensor | None = None) -> Batch:
        """The images of these numbers ``[B]`` as a batch; ``images`` ``[B, rows, columns]`` takes their place."""
        dtype = torch.get_default_dtype()
        images = self.images[index] if images is None else images
        targets = functional.one_hot(self.labels[index], self.num_classes).to(dtype)
        inputs = images.flatten(1).to(dtype).div_(255)
        return Batch(inputs.unsqueeze(0), targets.unsqueeze(0), inputs.new_ones(1, index.shape[0]))

    def sample(self, batch_size: int, sampling: str, generator: torch.Generator, max_shift: int = 0) -> Batch:
        """A batch of images drawn by :meth:`draw`, each moved by up to so many pixels down or up and across."""
        index = self.draw(batch_size, sampling, generator)
        if not max_shift:
            return self.batch(index)
        size = (2, batch_size)
        shifts = torch.randint(-max_shift, max_shift + 1, size, generator=generator, device=self.images.device)
        return self.batch(index, shifted(self.images[index], *shifts))

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Every image once, in order."""
        for index in torch.arange(len(self), device=self.labels.device).split(batch_size):
            yield self.batch(index)


def shifted(images: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Images moved by whole pixels; what comes in at the edge is 0.

    Args:
        images: ``[B, rows, columns]``.
        down: ``[B]``, negative is up.
        across: ``[B]`` to the right, negative is to the left.

    Returns:
        ``[B, rows, columns]``.
    """
    for dimension, shift in ((1, down), (2, across)):
        size = images.shape[dimension]
        source = torch.arange(size, device=images.device) - shift.unsqueeze(-1)
        inside = (source >= 0) & (source < size)
        view = (-1, size, 1) if dimension == 1 else (-1, 1, size)
        images = images.gather(dimension, source.clamp(0, size - 1).view(view).expand_as(images)) * inside.view(view)
    return images
