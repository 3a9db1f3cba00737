"""Text files as lines, also packed ones (.gz, .zst): of several frames, and never a cut one taken for a short one."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from mtllm_edge.errors import DataError
from mtllm_edge.extras import require

PACKED = (".gz", ".zst")


def lines_of(file: BinaryIO, name: str) -> Iterator[str]:
    """Lines with their ends, told by line ends alone; bytes that are no UTF-8 are kept by ``surrogateescape``.

    Args:
        file: The file's bytes.
        name: Of the file; its suffix tells whether it is packed.

    Raises:
        DataError: It is packed, and damaged or cut short.
    """
    plain: Any = file
    if name.lower().endswith(".gz"):
        plain = gzip.GzipFile(fileobj=file, mode="rb")
    elif name.lower().endswith(".zst"):
        plain = io.BufferedReader(Unzstd(file, name))
    try:
        yield from io.TextIOWrapper(plain, encoding="utf-8-sig", errors="surrogateescape", newline="")
    except EOFError:
        raise DataError(f"{name} is cut short; copy or download it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{name} is not a readable gzip file ({error})") from None


class Unzstd(io.RawIOBase):
    """The content of a zstd file of one or several frames; the package's own reader takes a cut one for a short one."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        """Read from `file`; `name` is for messages.

        Raises:
            UsageError: zstandard is not installed.
        """
        require("files", "zstandard")
        import zstandard

        self._file, self._name, self._zstandard = file, name, zstandard
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._inside = False
        self._rest = self._ready = b""

    def readable(self) -> bool:
        """It can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a part of `buffer`; 0 at the end.

        Raises:
            DataError: The file is damaged or cut short.
        """
        while not self._ready:
            packed = self._rest or self._file.read(io.DEFAULT_BUFFER_SIZE)
            if not packed:
                if self._inside:
                    raise DataError(f"{self._name} is cut short; copy or download it again")
                return 0
            if self._frame.eof:
                self._frame = self._zstandard.ZstdDecompressor().decompressobj()
            try:
                self._ready = self._frame.decompress(packed)
            except self._zstandard.ZstdError as error:
                raise DataError(f"{self._name} is not a readable zstd file ({error})") from None
            self._inside, self._rest = not self._frame.eof, self._frame.unused_data
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size
