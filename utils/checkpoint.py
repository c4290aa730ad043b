"""Checkpoint files: written whole or not at all, checked when read, and never able to run code.

A file is the zip archive that ``torch.save`` writes, so plain ``torch.load`` opens it too, with a comment at its end: 8
bytes of magic, the format version and the length of the archive as little-endian 64-bit numbers, and the SHA-256 of the
archive without the comment. In version 1 the same 56 bytes came before the archive.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

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
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(archive[: -_COMMENT_LENGTH.size])
            file.write(_COMMENT_LENGTH.pack(len(seal)))
            file.write(seal)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if hasattr(os, "O_DIRECTORY"):
        # The rename itself must reach the disk.
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a state back onto a device.

    Raises:
        CheckpointError: the file is missing, cut off, damaged, of a newer format or no checkpoint at all.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    readable, seal, archive = _opened(content)
    if len(seal) < _SEAL.size or not seal.startswith(MAGIC):
        raise CheckpointError(f"{path}: is cut off, or not a checkpoint of Papertape")
    _, version, length, digest = _SEAL.unpack(seal)
    if version not in (1, FORMAT_VERSION):
        raise CheckpointError(
            f"{path}: has format version {version}; this version of Papertape reads 1 to {FORMAT_VERSION}"
        )
    left = sum(map(len, archive))
    if left != length:
        raise CheckpointError(f"{path}: is cut off; it has {left} of {length} bytes")
    checksum = hashlib.sha256()
    for part in archive:
        checksum.update(part)
    if checksum.digest() != digest:
        raise CheckpointError(f"{path}: is damaged; its checksum does not agree")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(readable), map_location=device, weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be decoded: {str(error).splitlines()[0]}") from error
    return state


def _opened(content: bytes) -> tuple[bytes | memoryview, bytes, tuple[bytes | memoryview, ...]]:
    """What ``torch.load`` reads, the seal, and the parts of the archive as ``torch.save`` wrote it, without a copy."""
    view = memoryview(content)
    if content.startswith(MAGIC):  # version 1
        archive = view[_SEAL.size :]
        return archive, content[: _SEAL.size], (archive,)
    without_comment = _COMMENT_LENGTH.pack(0)
    return content, content[-_SEAL.size :], (view[: -_SEAL.size - len(without_comment)], without_comment)
