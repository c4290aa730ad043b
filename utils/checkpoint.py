"""Checkpoint files: written whole or not at all, checked when read, and never able to run code.

A file is the zip archive that ``torch.save`` writes, so plain ``torch.load`` opens it too, with a comment at its end: 8
bytes of magic, the format version and the length of the archive as little-endian 64-bit numbers, and the SHA-256 of the
archive without the comment.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .files import replacing
from .options import excess

MAGIC = b"PAPERTAP"
FORMAT_VERSION = 2
_SEAL = struct.Struct("<8sQQ32s")
_COMMENT_LENGTH = struct.Struct("<H")
"""The last field of a zip archive; the comment follows it."""


class CheckpointError(ValueError):
    """A file is not a checkpoint that can be read; the message names the file and what is wrong with it."""


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state to a file so that the file is at every moment either the old one or the new one.

    Args:
        path: where to; its folder must exist.
        state: tensors, numbers, strings and containers of them.

    Raises:
        OSError: the disk is full or not writable; the old file is untouched.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    archive = buffer.getbuffer()
    seal = _SEAL.pack(MAGIC, FORMAT_VERSION, len(archive), hashlib.sha256(archive).digest())
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(archive[: -_COMMENT_LENGTH.size])
        file.write(_COMMENT_LENGTH.pack(len(seal)))
        file.write(seal)


def checksum(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits: another one means other weights.

    Raises:
        CheckpointError: the file is missing or cannot be read.
    """
    return hashlib.sha256(_read(path)).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a state back onto a device.

    Raises:
        CheckpointError: the file is missing, cut off, damaged, of a newer format or no checkpoint at all;
            or its options are too much to read (see :func:`~papertape.utils.options.excess`).
    """
    content = _read(path)
    seal = content[-_SEAL.size :]
    if len(seal) < _SEAL.size or not seal.startswith(MAGIC):
        raise CheckpointError(f"{path}: is cut off, or not a checkpoint of Papertape")
    _, version, length, digest = _SEAL.unpack(seal)
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: has format version {version}; this version of Papertape reads version {FORMAT_VERSION}"
        )
    # The archive as torch.save wrote it, without a copy: there was no comment.
    archive = (memoryview(content)[: -_SEAL.size - _COMMENT_LENGTH.size], _COMMENT_LENGTH.pack(0))
    left = sum(map(len, archive))
    if left != length:
        raise CheckpointError(f"{path}: is cut off; it has {left} of {length} bytes")
    checksum = hashlib.sha256()
    for part in archive:
        checksum.update(part)
    if checksum.digest() != digest:
        raise CheckpointError(f"{path}: is damaged; its checksum does not agree")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be decoded: {str(error).splitlines()[0]}") from error
    if isinstance(state, dict) and (said := excess(state.get("options"))):
        raise CheckpointError(f"{path}: options cannot be read: {said}")
    return state
