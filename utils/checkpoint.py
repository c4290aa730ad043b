"""Checkpoint files: written whole or not at all, checked when read, and never able to run code.

Layout: 8 bytes of magic, the format version and the length of the payload as little-endian 64-bit numbers, the
SHA-256 of the payload, then the payload, which ``torch.load`` reads with ``weights_only=True``.
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

MAGIC = b"TAPEHEAD"
FORMAT_VERSION = 1
_HEADER = struct.Struct("<8sQQ32s")


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
    payload = buffer.getbuffer()
    header = _HEADER.pack(MAGIC, FORMAT_VERSION, len(payload), hashlib.sha256(payload).digest())
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(header)
            file.write(payload)
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
    if not content.startswith(MAGIC):
        raise CheckpointError(f"{path}: is not a checkpoint of Tapehead")
    if len(content) < _HEADER.size:
        raise CheckpointError(f"{path}: is cut off; only {len(content)} bytes are left")
    _, version, length, digest = _HEADER.unpack_from(content)
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path}: has format version {version}; this version of Tapehead reads {FORMAT_VERSION}")
    payload = memoryview(content)[_HEADER.size :]
    if len(payload) != length:
        raise CheckpointError(f"{path}: is cut off; it has {len(payload)} of {length} bytes")
    if hashlib.sha256(payload).digest() != digest:
        raise CheckpointError(f"{path}: is damaged; its checksum does not agree")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be decoded: {str(error).splitlines()[0]}") from error
    return state
