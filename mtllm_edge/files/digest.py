"""SHA-256 of files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

_CHUNK_BYTES = 2**20


def sha256_file(file: Path | BinaryIO) -> str:
    """Return the SHA-256 of a file in hexadecimal; an open one is read from its present position."""
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return sha256_file(opened)
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
