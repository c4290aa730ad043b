"""Permuted images: any labelled images, whose pixels change places from task to task (Goodfellow et al. 2013)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..core.component import Chosen, build
from ..core.env import Batch, Env
from ..core.registry import register
from ..core.streams import Stream, task_generator
from ..core.trace_field import Channels
from .changing import ChangingEnv
from .classification import ClassificationEnv


@register("env", "permuted-images")
class PermutedImagesEnv(ChangingEnv, ClassificationEnv):
    """Images of an env whose pixels all have other places, the same ones for all images of a task.

    The classes stay. Online permuted MNIST (Dohare et al. 2024, Methods) is this of MNIST, with ``every: 60000``; but
    here a task's images are drawn evenly, some of them more than once, where there each of the 60,000 comes once.
    """

    images: Annotated[Any, Chosen("env")] = Field(
        default="images", description="an env of labelled images: images, letters, or one of your own"
    )
    sampling: Literal["uniform"] = Field(default="uniform", init=False)
    loss_per: Literal["sequence"] = Field(default="sequence", init=False)

    def setup(self) -> None:
        """Build the env of images.

        Raises:
            ValueError: it is none of labelled images.
        """
        given = {} if isinstance(self.images, Env) else {"device": self.device}
        self.images = build(self.images, **given)
        if not isinstance(self.images, ClassificationEnv):
            raise ValueError(f"images: got a {type(self.images).__name__}; allowed is an env of labelled images")
        self.input_size, self.output_size = self.images.input_size, self.images.output_size
        self._known: dict[int, Tensor] = {}

    @property
    def classes(self) -> Sequence[str]:
        """Name of each class."""
        classes: Sequence[str] = self.images.classes
        return classes

    def input_channels(self) -> Sequence[Channels]:
        """The pixels, as they come."""
        channels: Sequence[Channels] = self.images.input_channels()
        return channels

    def permutation(self, number: int) -> Tensor:
        """Of a task: which pixel of the image each pixel is, ``[I]``."""
        if number not in self._known:
            kept = [
                (
                    number,
                    torch.randperm(self.input_size, generator=task_generator(self.task_seed, number), device="cpu"),
                )
            ]
            self._known = dict([*self._known.items(), *kept][-2:])  # those that a batch may need
            self._known[number] = self._known[number].to(self.device)
        return self._known[number]

    def _permuted(self, batch: Batch) -> Batch:
        """The images of a batch under the permutations of the tasks that they are of."""
        numbers = self.task_numbers(batch.inputs.shape[1])
        first, last = int(numbers[0]), int(numbers[-1])
        if first == last:
            return batch._replace(inputs=batch.inputs[..., self.permutation(first)])
        inputs = torch.empty_like(batch.inputs)
        for number in range(first, last + 1):
            rows = (numbers == number).to(inputs.device)
            inputs[:, rows] = batch.inputs[:, rows][..., self.permutation(number)]
        return batch._replace(inputs=inputs)

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw images; see :meth:`Env.sample`."""
        return self._permuted(self.images.sample(batch_size, generator))

    def batches(self, batch_size: int) -> Iterator[Batch] | None:
        """Every image once, under the current permutation; None where images are made up without end."""
        batches = self.images.batches(batch_size)
        return None if batches is None else map(self.still()._permuted, batches)

    def sets(self, stream: Stream) -> dict[str, Env]:
        """Those of the env of images, under the current permutation."""
        return {name: self._with(images) for name, images in self.images.sets(stream).items()}

    def training_range(self, stream: Stream) -> Sequence[str]:
        """That of the env of images."""
        return self.images.training_range(stream)

    def _with(self, images: Env) -> Env:
        variant = copy(self.still())
        variant.images = images
        return variant
