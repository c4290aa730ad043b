"""Images of many classes: drawn letters of several alphabets, folders such as those of Omniglot, or MNIST."""

from __future__ import annotations

import functools
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from . import images
from .classification import LabelledImages
from .images import DataError
from .letters import centred, draw_characters

ALPHABETS = ("LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "GEORGIAN")
FACES = tuple(
    f"DejaVu{family}{style}.ttf"
    for family, slanted in (("Sans", "Oblique"), ("Serif", "Italic"), ("SansMono", "Oblique"))
    for style in ("", "-Bold", f"-{slanted}", f"-Bold{slanted}")
)
"""Files that come with matplotlib; each gives one image of every letter."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".tif", ".tiff")


def load_classes(data: str, image_size: int, device: torch.device | str | int = "cpu") -> LabelledImages:
    """Images of many classes, bright on dark, all of one size.

    Args:
        data: as the option of :class:`OneShotEnv`.
        image_size: rows and columns.
        device: where they are kept.

    Raises:
        DataError: a file cannot be read or downloaded.
        ValueError: no such data.
    """
    if data == "characters":
        groups = drawn_characters(image_size)
    elif data in images.DATA_SETS:
        pairs = images.load(data)
        both, labels = (torch.cat([pair[part] for pair in pairs]) for part in (0, 1))
        sized = _resized(both, image_size)
        groups = [sized[labels == number] for number in range(int(labels.max()) + 1)]
    else:
        groups = list(read_folders(Path(data), image_size))
    labels = torch.arange(len(groups), device="cpu").repeat_interleave(
        torch.tensor([len(group) for group in groups], device="cpu")
    )
    whole = torch.cat(groups)
    if whole.float().mean() > 127.5:  # ink on paper: what comes in at the edge of a moved image is to be background
        whole = 255 - whole
    return LabelledImages(whole.to(device), labels.to(device), len(groups))


def _resized(images: Tensor, image_size: int) -> Tensor:
    """Bytes ``[N, rows, columns]`` -> ``[N, image_size, image_size]``, each pixel the mean of what it covers."""
    if images.shape[1:] == (image_size, image_size):
        return images
    parts = images.unsqueeze(1).split(4096)
    sized = [functional.interpolate(part.float(), (image_size, image_size), mode="area") for part in parts]
    return torch.cat(sized).squeeze(1).round().byte()


@functools.cache
def drawn_characters(image_size: int) -> list[Tensor]:
    """The letters without marks that all of :data:`FACES` have, each in all of them.

    Args:
        image_size: rows and columns.

    Returns:
        Bytes ``[12, image_size, image_size]`` for each letter. One that looks like an earlier one in the first face,
        such as the Greek and the Cyrillic capital A, is left out.
    """
    import matplotlib
    from matplotlib import font_manager  # looks for fonts when it is imported, which may take seconds

    paths = [os.path.join(matplotlib.get_data_path(), "fonts", "ttf", face) for face in FACES]
    charmaps = [set(font_manager.get_font(path).get_charmap()) for path in paths]
    letters = [chr(code) for code in sorted(set.intersection(*charmaps)) if _is_letter(chr(code))]
    size = max(round(0.8 * image_size), 4)
    by_face = [[_fitting(drawn, image_size) for drawn in draw_characters(letters, path, size)] for path in paths]
    different: dict[bytes, Tensor] = {}
    for faces in zip(*by_face, strict=True):
        different.setdefault(faces[0].numpy().tobytes(), torch.stack(faces))
    return list(different.values())


def _is_letter(character: str) -> bool:
    """Whether a character is a letter of :data:`ALPHABETS` without a mark."""
    words = unicodedata.name(character, "").split()
    return unicodedata.category(character) in ("Lu", "Ll", "Lo") and words[0] in ALPHABETS and "WITH" not in words


def _fitting(drawn: Image.Image | None, image_size: int) -> Tensor:
    """A drawing in the middle of a square, made smaller if it is larger than that."""
    assert drawn is not None
    largest = max(drawn.size)
    if largest > image_size:
        width, height = (max(round(side * image_size / largest), 1) for side in drawn.size)
        drawn = drawn.resize((width, height), Image.Resampling.BOX)
    return centred(drawn, image_size)


def read_folders(folder: Path, image_size: int) -> Iterator[Tensor]:
    """The images of each folder that holds any, in the order of their paths; one that links lead to again counts once.

    Args:
        folder: where to look, at any depth.
        image_size: rows and columns that images are resized to.

    Yields:
        Bytes ``[N, image_size, image_size]`` for each folder.

    Raises:
        DataError: an image cannot be read.
        ValueError: no such folder, or no image in it.
    """
    if not folder.is_dir():
        known = ", ".join(["characters", *images.DATA_SETS])
        raise ValueError(f"data: got {str(folder)!r}, which is no folder here; allowed are folders, {known}")
    found = False
    walked: set[str] = set()
    for path, inner, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in walked:
            inner.clear()
            continue
        walked.add(real)
        inner.sort()
        files = [Path(path, name) for name in sorted(names) if Path(name).suffix.lower() in SUFFIXES]
        if files:
            found = True
            yield torch.stack([_read(file, image_size) for file in files])
    if not found:
        raise ValueError(f"data: got {str(folder)!r}; none of its folders holds an image ({', '.join(SUFFIXES)})")


def _read(file: Path, image_size: int) -> Tensor:
    try:
        with Image.open(file) as image:
            sized = _grey(image).resize((image_size, image_size), Image.Resampling.BOX)
    # Pillow's readers raise what they come across where a file is damaged, and refuse one that would take all memory.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: is no image that can be read ({error})") from error
    return torch.from_numpy(np.array(sized))


def _grey(image: Image.Image) -> Image.Image:
    """In 256 shades of grey: what is transparent on white, and of 16 bits the upper ones.

    Numbers that are floats or of 32 bits say nothing of what is white: it is 1, 255 or 65535, whichever is the first
    that no pixel exceeds, or the brightest pixel. What is negative or not finite is black.
    """
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("L")
    if not image.mode.startswith(("I", "F")):
        return image.convert("L")
    levels = np.array(image)
    if image.mode in ("I", "F"):
        levels = np.nan_to_num(levels.astype(np.float64), posinf=0).clip(0)
        brightest = levels.max()
        white = next((white for white in (1, 255, 65535) if brightest <= white), brightest)
        levels = (levels * (65535 / white)).round().astype(np.uint16)
    return Image.fromarray((levels >> 8).astype(np.uint8))
