"""One-shot classification: tell apart classes that are met for the first time (Santoro et al. 2016, section 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..core.env import Batch, Env
from ..core.registry import register
from ..core.streams import Stream
from ..core.token_env import TokenEnv
from ..core.trace_field import Channels
from .image_classes import load_classes
from .thinking import with_thinking


@register("env", "one-shot")
class OneShotEnv(TokenEnv):
    """Episodes: some images of each of a few classes in any order, each beside the label of the one before it.

    Labels are dealt out anew in each episode, so that an image can be told by the label of an earlier one alone. With C
    ``classes`` and K ``images_per_class``: CK images, at each of which its label, one of C, is due. Inputs are the
    pixels in [0, 1] and, one-hot, the label of the image before (none at first). Metrics are the loss per image in
    nats, the share of right answers to the first image of a class, to the second and so on (``accuracy/2``), and the
    share of wrong ones to all but the first (error_rate); the first can only be guessed.
    """

    token_inputs = False

    data: str = Field(
        default="characters",
        description="characters (507 letters of five alphabets, drawn in 12 faces of DejaVu), mnist, fashion-mnist, or "
        "a folder: each folder in it, at any depth, that holds images is a class, as in Omniglot",
    )
    classes: int = Field(default=5, ge=2, le=100, description="classes of an episode")
    images_per_class: int = Field(default=10, ge=2, le=1000, description="images of each class in an episode")
    image_size: int = Field(default=20, ge=4, le=256, description="rows and columns that images are resized to")
    max_rotation: float = Field(
        default=11.25, ge=0, le=45, description="most degrees by which an image is turned; 180 / 16 as in the paper"
    )
    max_shift: int = Field(default=2, ge=0, le=256, description="most pixels by which an image is moved")
    turned: bool = Field(default=True, description="whether classes turned by 90, 180 and 270 degrees are more classes")
    validation_share: float = Field(
        default=0.1, gt=0, lt=1, description="share of the classes that are met in validation alone"
    )
    test_share: float = Field(
        default=0.25, gt=0, lt=1, description="share of the classes that are met in the test alone"
    )

    @classmethod
    def check_options(cls, options: Any) -> None:
        """Refuse shares that leave nothing to train on, and moves that would leave nothing of an image."""
        super().check_options(options)
        if options.validation_share + options.test_share >= 1:
            raise ValueError(
                f"test_share: got {options.test_share}; allowed is less than 1 - validation_share, which is "
                f"{1 - options.validation_share:g}"
            )
        if options.max_shift >= options.image_size:
            raise ValueError(
                f"max_shift: got {options.max_shift}; allowed is less than image_size, which is {options.image_size}"
            )

    def setup(self) -> None:
        """Draw or read the images, and deal the classes out to training, validation and test.

        Raises:
            DataError: images cannot be read.
            ValueError: too few classes, or images of a class.
        """
        self.input_size, self.output_size = self.image_size**2 + self.classes, self.classes
        self.labelled = load_classes(self.data, self.image_size, self.device)
        count, fewest = self.labelled.num_classes, int(self.labelled.counts.min())
        if fewest < self.images_per_class:
            raise ValueError(
                f"images_per_class: got {self.images_per_class}; {self.data} has classes of {fewest}, the most allowed"
            )
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0), device="cpu").to(self.device)
        validation, test = (round(share * count) for share in (self.validation_share, self.test_share))
        self._numbers = {
            "test": order[:test],
            "validation": order[test : test + validation],
            "training": order[test + validation :],
        }
        for name, numbers in self._numbers.items():
            most = len(numbers) * self.turns
            if most < self.classes:
                raise ValueError(f"classes: got {self.classes}; {self.data} has {most} for {name}, the most allowed")
        self.numbers = self._numbers["training"]

    @property
    def turns(self) -> int:
        """Classes that are made of each."""
        return 4 if self.turned else 1

    def input_channels(self) -> Sequence[Channels]:
        """The image, and the label of the one before it."""
        size = self.image_size
        return [
            Channels("image", size**2, shape=(size, size)),
            Channels("last label", self.classes, tuple(self.output_names())),
        ]

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw episodes; see :meth:`Env.sample`."""
        images, labels = self.draw(batch_size, generator)
        told = functional.one_hot(labels, self.classes).to(images.dtype)
        inputs = torch.cat([images.flatten(2), functional.pad(told[:-1], (0, 0, 0, 0, 1, 0))], -1)
        return with_thinking(Batch(inputs, labels, torch.ones_like(inputs[..., 0])), self.think_steps)

    def tallies(self, outputs: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Sums and counts of the loss, and of the answers to the first, second … image of a class; see the class."""
        right, mask = self.right(outputs, batch), batch.mask
        met = functional.one_hot(batch.targets, self.classes) * mask.unsqueeze(-1)
        instance = met.cumsum(0).gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1)
        later = (instance > 1) * mask
        return {
            "loss": (self.losses(outputs, batch).sum(), mask.sum()),
            "error_rate": (later.sum() - (right * later).sum(), later.sum()),
        } | {
            f"accuracy/{number}": ((right * (instance == number)).sum(), (mask * (instance == number)).sum())
            for number in range(1, self.images_per_class + 1)
        }

    def draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The images of episodes, moved about, in [0, 1], ``[T, B, rows, columns]``, and their labels, ``[T, B]``."""
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}; allowed is a whole number of at least 1")
        labelled, each = self.labelled, self.images_per_class

        def chances(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, device=self.device)

        drawn = chances(batch_size, len(self.numbers) * self.turns).topk(self.classes).indices
        number, turn = self.numbers[drawn // self.turns], drawn % self.turns
        counts = labelled.counts[number].unsqueeze(-1)
        there = torch.arange(int(counts.max()), device=self.device) < counts
        picked = chances(*there.shape).masked_fill(~there, -1.0).topk(each).indices
        index = labelled.by_class[labelled.starts[number].unsqueeze(-1) + picked].flatten(1)
        place = chances(batch_size, index.shape[1]).argsort(1)
        labels = place // each
        found = labelled.images[index.gather(1, place)].to(torch.get_default_dtype()) / 255
        angle = (2 * chances(*place.shape) - 1) * math.radians(self.max_rotation) + turn.gather(1, labels) * math.pi / 2
        shift = torch.randint(
            -self.max_shift, self.max_shift + 1, (*place.shape, 2), generator=generator, device=self.device
        )
        moved_images = moved(found.flatten(0, 1), angle.flatten().to(found.dtype), shift.flatten(0, 1))
        return moved_images.unflatten(0, place.shape).transpose(0, 1), labels.t()

    def output_names(self) -> Sequence[str]:
        """Labels, from 1."""
        return [str(label) for label in range(1, self.classes + 1)]

    def sets(self, stream: Stream) -> dict[str, Env]:
        """``new classes``: those kept for validation or for the test."""
        variant = copy(self)
        variant.numbers = self._numbers[stream]
        return {"new classes": variant}


def moved(images: Tensor, angle: Tensor, shift: Tensor) -> Tensor:
    """Images turned about their middle, then moved by whole pixels; between pixels linear, 0 beyond the edge.

    Args:
        images: ``[N, rows, columns]``, as many rows as columns.
        angle: counterclockwise, in radians, ``[N]``.
        shift: pixels down and to the right, ``[N, 2]``.

    Returns:
        ``[N, rows, columns]``.
    """
    cosine, sine = angle.cos(), angle.sin()
    down, right = (2 * shift.to(images.dtype) / images.shape[-1]).unbind(-1)
    # Where each pixel comes from, in units of half the image.
    back = torch.stack(
        [
            torch.stack([cosine, -sine, -cosine * right + sine * down], -1),
            torch.stack([sine, cosine, -sine * right - cosine * down], -1),
        ],
        1,
    )
    single = images.unsqueeze(1)
    grid = functional.affine_grid(back, list(single.shape), align_corners=False)
    return functional.grid_sample(single, grid, align_corners=False).squeeze(1)
