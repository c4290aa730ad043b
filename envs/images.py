"""Labelled images in the IDX format: MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017)."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from copy import copy
from http.client import HTTPException
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from ..core.env import Batch, Env
from ..core.home import home
from ..core.registry import register
from ..core.streams import Stream
from ..core.trace_field import Channels
from .classification import ClassificationEnv, LabelledImages


class DataSet(NamedTuple):
    """Where to download a data set, and the checksums of its four files."""

    classes: tuple[str, ...]
    mirrors: tuple[str, ...]
    checksums: dict[str, str]
    """MD5 of each file: training images and labels, test images and labels."""


DATA_SETS = {
    "mnist": DataSet(
        classes=tuple("0123456789"),
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        checksums={
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion-mnist": DataSet(
        classes=("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        mirrors=(
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        checksums={
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
}


class DataError(RuntimeError):
    """A data set cannot be found, downloaded or read; the message is one line and names the file."""


@register("env", "images")
class ImagesEnv(ClassificationEnv):
    """Images of 28 × 28 pixels to be told apart: inputs ``[1, B, 784]``, targets one-hot ``[1, B, 10]``."""

    data: Literal["mnist", "fashion-mnist"] = Field(
        default="mnist",
        description="which data set; read from (or downloaded into) a folder in $PAPERTAPE_DATA or ~/.cache/papertape",
    )
    validation: int = Field(
        default=5000,
        ge=0,
        description="how many training images, the last ones, are kept aside: they are the validation set; with 0 all "
        "are trained on and are the validation set as well; the test images are left to the test",
    )

    max_shift: int = Field(
        default=0,
        ge=0,
        lt=28,
        description="most pixels by which an image is moved in training, across and down, at random each time; what is "
        "judged stays where it is",
    )

    @property
    def classes(self) -> Sequence[str]:
        """Name of each class."""
        return DATA_SETS[self.data].classes

    def setup(self) -> None:
        """Load the images.

        Raises:
            DataError: the files cannot be found, downloaded or read.
            ValueError: no training image would be left.
        """
        (images, labels), (test_images, test_labels) = load(self.data)
        kept = len(labels) - self.validation
        if kept < 1:
            raise ValueError(f"validation: got {self.validation}; allowed is less than the {len(labels)} images")
        self.input_size, self.output_size = images.shape[1] * images.shape[2], len(self.classes)
        self.labelled = self._labelled(images[:kept], labels[:kept])
        self._validation = self._labelled(images[kept:], labels[kept:]) if self.validation else self.labelled
        self._test = self._labelled(test_images, test_labels)

    def _labelled(self, images: Tensor, labels: Tensor) -> LabelledImages:
        return LabelledImages(images.to(self.device), labels.to(self.device), len(self.classes))

    def input_channels(self) -> Sequence[Channels]:
        """The pixels of the image."""
        rows, columns = self.labelled.images.shape[1:]
        return [Channels("image", self.input_size, shape=(rows, columns))]

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw images with replacement; see :meth:`Env.sample`."""
        return self.labelled.sample(batch_size, self.sampling, generator, self.max_shift)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Every image once, in the order of the files."""
        return self.labelled.batches(batch_size)

    def sets(self, stream: Stream) -> dict[str, Env]:
        """``images``: those kept aside, or the test images; ``training images`` where validation has none aside."""
        variant = copy(self)
        variant.max_shift = 0
        variant.labelled = self._test if stream == "test" else self._validation
        return {"training images" if variant.labelled is self.labelled else "images": variant}


def load(name: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and test images and labels of a data set, downloaded if they are not there yet.

    Args:
        name: a key of ``DATA_SETS``.

    Returns:
        Twice bytes ``[N, rows, columns]`` and whole numbers ``[N]``.

    Raises:
        DataError: a file cannot be found or downloaded, is not the published one, or does not fit the others; there
            is no folder for them.
    """
    data_set = DATA_SETS[name]
    given = os.environ.get("PAPERTAPE_DATA")
    try:
        folder = (Path(given) if given else home("PAPERTAPE_DATA") / ".cache" / "papertape") / name
    except OSError as error:
        raise DataError(f"{name}: {error}") from error
    arrays = [read_idx(fetch(folder / file, data_set.mirrors, md5)) for file, md5 in data_set.checksums.items()]
    pairs = []
    for images, labels in (arrays[:2], arrays[2:]):
        if images.dim() != 3 or labels.shape != images.shape[:1] or int(labels.max()) >= len(data_set.classes):
            raise DataError(
                f"{folder}: got images {list(images.shape)} and labels {list(labels.shape)} that do not match"
            )
        pairs.append((images, labels.long()))
    return pairs[0], pairs[1]


def fetch(path: Path, mirrors: tuple[str, ...], md5: str, timeout: float = 20.0) -> Path:
    """A file with the right checksum, downloaded from the first mirror that has it if it is not there.

    Args:
        path: where the file is, or is to be put; it appears there whole or not at all.
        mirrors: addresses of folders.
        md5: what the file must have.
        timeout: seconds without an answer after which a mirror is given up.

    Raises:
        DataError: the file is not the published one, or is missing and cannot be downloaded.
    """
    if path.exists():
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != md5:
            raise DataError(f"{path}: got MD5 {found}; the published file has {md5}; remove it to download it again")
        return path
    reasons = []
    for mirror in mirrors:
        answer = _download(mirror + path.name, md5, timeout)
        if isinstance(answer, bytes):
            _write(path, answer)
            return path
        reasons.append(f"{mirror}: {answer}")
    raise DataError(
        f"{path}: is missing and cannot be downloaded ({'; '.join(reasons)}); "
        "put the file there or point PAPERTAPE_DATA at the folder that holds it"
    )


def _download(address: str, md5: str, timeout: float) -> bytes | str:
    """The file's content, or in words why it cannot be downloaded."""
    try:
        with urllib.request.urlopen(address, timeout=timeout) as answer:
            content: bytes = answer.read()
    except (OSError, HTTPException) as error:
        return str(getattr(error, "reason", error))
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return content if found == md5 else f"MD5 {found} instead of {md5}"


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise DataError(f"{path}: downloaded, but cannot be written: {error.strerror}") from error


def read_idx(path: Path) -> Tensor:
    """Bytes of a gzipped IDX file, in the shape that its header gives.

    Raises:
        DataError: not a gzipped IDX file of bytes, or cut short.
    """
    try:
        content = gzip.decompress(path.read_bytes())
        zeros, kind, dimensions = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{dimensions}I", content, 4)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise DataError(f"{path}: not a gzipped IDX file ({error})") from error
    start, size = 4 + 4 * dimensions, torch.Size(shape).numel()
    if zeros != 0 or kind != 8 or not dimensions or len(content) != start + size or not size:
        raise DataError(f"{path}: not an IDX file of bytes whose length fits its header {list(shape)}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).reshape(shape)
