"""The identity of the native library's sources; setup.py runs this file too, so it imports nothing but Python."""

from __future__ import annotations

import hashlib
from pathlib import Path

SOURCE = Path(__file__).parent / "source"


def build_identity() -> str:
    """Short hash of the sources; a library knows that of the sources it was built from."""
    digest = hashlib.sha256()
    for path in sorted(SOURCE.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
