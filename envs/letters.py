"""Letters: tell apart the letters A to Z, drawn on the fly in several fonts, sizes and places."""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field
from torch import Tensor

from ..core.env import Batch, Env
from ..core.registry import register
from ..core.streams import Stream
from ..core.trace_field import Channels
from .classification import ClassificationEnv, LabelledImages


@register("env", "letters")
class LettersEnv(ClassificationEnv):
    """White capital letters on black: inputs ``[1, B, image_size²]`` in [0, 1], targets one-hot ``[1, B, 26]``.

    Every letter is drawn once in each font and size, centred; batches pick among these and move them. Where none are
    moved these few are the whole task, so training, validation and test all see them; ``test_fonts`` are for the test
    alone.
    """

    sampling: Literal["uniform", "balanced"] = "balanced"  # a batch of 26 has every letter once
    image_size: int = Field(default=100, ge=8, le=512, description="rows and columns of an image, in pixels")
    fonts: list[str] = Field(
        default=["DejaVu Sans"],
        min_length=1,
        description="fonts to train on: names of families that this machine has (DejaVu always comes with matplotlib), "
        "or paths of font files",
    )
    font_sizes: list[Annotated[int, Field(ge=4, le=1000)]] = Field(
        default=[64], min_length=1, description="sizes to train on, in pixels"
    )
    max_shift: int = Field(
        default=0,
        ge=0,
        description="most pixels by which a letter is moved from the middle, across and down; may cut it off at the "
        "edge",
    )
    test_fonts: list[str] = Field(default=[], description="fonts to be tested on besides those of training")

    classes = string.ascii_uppercase

    @classmethod
    def check_options(cls, options: Any) -> None:
        """Refuse moves that would leave nothing of a letter."""
        super().check_options(options)
        if options.max_shift >= options.image_size:
            raise ValueError(
                f"max_shift: got {options.max_shift}; allowed is less than image_size, which is {options.image_size}"
            )

    def setup(self) -> None:
        """Draw the letters.

        Raises:
            ValueError: a font that this machine lacks or that has no capitals, or a letter larger than an image.
        """
        self.input_size, self.output_size = self.image_size**2, len(self.classes)
        fonts = [(name, size) for name in self.fonts for size in self.font_sizes]
        images = torch.cat([draw_letters(*font, self.image_size) for font in fonts]).to(self.device)
        labels = torch.arange(len(self.classes), device=self.device).repeat(len(fonts))
        self.labelled = LabelledImages(images, labels, len(self.classes))

    def input_channels(self) -> Sequence[Channels]:
        """The pixels of the image."""
        return [Channels("image", self.input_size, shape=(self.image_size, self.image_size))]

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw letters, fonts, sizes and places; see :meth:`Env.sample`."""
        return self.labelled.sample(batch_size, self.sampling, generator, self.max_shift)

    def batches(self, batch_size: int) -> Iterator[Batch] | None:
        """Every letter once in each font and size; None where letters are moved about."""
        return None if self.max_shift else self.labelled.batches(batch_size)

    def sets(self, stream: Stream) -> dict[str, Env]:
        """``trained fonts``; in the test stream also ``new fonts``, where there are ``test_fonts``."""
        sets: dict[str, Env] = {"trained fonts": self}
        if stream == "test" and self.test_fonts:
            sets["new fonts"] = self.changed(fonts=self.test_fonts, test_fonts=[])
        return sets


def draw_letters(font: str, font_size: int, image_size: int) -> Tensor:
    """The capital letters, white on black, each with its outline's box in the middle.

    Args:
        font: name of a family or path of a file.
        font_size: in pixels.
        image_size: rows and columns.

    Returns:
        Bytes ``[26, image_size, image_size]``.

    Raises:
        ValueError: no such font, it lacks a letter, or a letter does not fit.
    """
    letters, images = string.ascii_uppercase, []
    for letter, drawn in zip(letters, draw_characters(letters, font, font_size), strict=True):
        if drawn is None:
            raise ValueError(f"fonts: got {font!r}, whose {letter} is blank; allowed are fonts with the letters A to Z")
        if max(drawn.size) > image_size:
            raise ValueError(
                f"font_sizes: got {font_size}; {letter} in {font} is then {drawn.width} × {drawn.height} pixels, "
                f"allowed is at most {image_size}"
            )
        images.append(centred(drawn, image_size))
    return torch.stack(images)


def draw_characters(characters: Iterable[str], font: str, font_size: int) -> Iterator[Image.Image | None]:
    """Each character, white on black, as large as the box of its outline; None where there is nothing to see.

    Args:
        characters: what is drawn.
        font: name of a family or path of a file.
        font_size: in pixels.

    Raises:
        ValueError: no such font.
    """
    face = ImageFont.truetype(font_path(font), font_size)
    for character in characters:
        drawn = Image.new("L", (4 * font_size, 4 * font_size))
        ImageDraw.Draw(drawn).text((font_size, font_size), character, fill=255, font=face)
        box = drawn.getbbox()
        yield drawn.crop(box) if box else None


def centred(drawn: Image.Image, image_size: int) -> Tensor:
    """A drawing in the middle of a black square: bytes ``[image_size, image_size]``."""
    image = Image.new("L", (image_size, image_size))
    image.paste(drawn, ((image_size - drawn.width) // 2, (image_size - drawn.height) // 2))
    return torch.from_numpy(np.array(image))


def font_path(font: str) -> str:
    """The file of a font, which has all capital letters.

    Args:
        font: name of a family (its regular face is taken) or path of a font file.

    Raises:
        ValueError: this machine has no such font, or it lacks a capital letter.
    """
    from matplotlib import font_manager  # looks for fonts when it is imported, which may take seconds

    path = font
    if not Path(font).is_file():
        try:
            path = font_manager.findfont(font_manager.FontProperties(family=[font]), fallback_to_default=False)
        except ValueError:
            known = sorted({entry.name for entry in font_manager.fontManager.ttflist})
            raise ValueError(f"fonts: got {font!r}, which is not a font here; there are {', '.join(known)}") from None
    letters = font_manager.get_font(path).get_charmap()
    missing = [letter for letter in string.ascii_uppercase if ord(letter) not in letters]
    if missing:
        raise ValueError(f"fonts: got {font!r}, which has no {missing[0]}; allowed are fonts with the letters A to Z")
    return path
