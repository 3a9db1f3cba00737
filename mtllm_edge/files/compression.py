"""Lines of text files, plain or compressed as .gz or .zst; a truncated file is an error."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from mtllm_edge.errors import DataError
from mtllm_edge.extras import require

COMPRESSED = (".gz", ".zst")


def read_lines(file: BinaryIO, name: str) -> Iterator[str]:
    """Yield lines with their ends, split at line ends alone; invalid UTF-8 is kept by ``surrogateescape``.

    The suffix of `name` shows whether the file is compressed.

    Raises:
        DataError: It is compressed, and damaged or truncated.
    """
    plain: Any = file
    if name.lower().endswith(".gz"):
        plain = gzip.GzipFile(fileobj=file, mode="rb")
    elif name.lower().endswith(".zst"):
        plain = io.BufferedReader(_ZstdFile(file, name))
    try:
        yield from io.TextIOWrapper(plain, encoding="utf-8-sig", errors="surrogateescape", newline="")
    except EOFError:
        raise DataError(f"{name} is cut short; copy or download it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{name} is not a readable gzip file ({error})") from None


class _ZstdFile(io.RawIOBase):
    """Content of a zstd file of one or several frames; zstandard's own reader accepts truncated files."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        require("files", "zstandard")
        import zstandard

        self._file, self._name, self._zstandard = file, name, zstandard
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._in_frame = False
        self._compressed = self._plain = b""

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a part of `buffer`, and return its size; 0 at the end."""
        while not self._plain:
            compressed = self._compressed or self._file.read(io.DEFAULT_BUFFER_SIZE)
            if not compressed:
                if self._in_frame:
                    raise DataError(f"{self._name} is cut short; copy or download it again")
                return 0
            if self._frame.eof:
                self._frame = self._zstandard.ZstdDecompressor().decompressobj()
            try:
                self._plain = self._frame.decompress(compressed)
            except self._zstandard.ZstdError as error:
                raise DataError(f"{self._name} is not a readable zstd file ({error})") from None
            self._in_frame, self._compressed = not self._frame.eof, self._frame.unused_data
        size = min(len(buffer), len(self._plain))
        buffer[:size], self._plain = self._plain[:size], self._plain[size:]
        return size
