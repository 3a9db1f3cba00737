"""Reading numbers and strings from a file that may end, or lie, anywhere."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DamagedFileError(Exception):
    """The file breaks its own format; the message says where, and the caller adds the file's name."""


class BinaryReader:
    """A position in a mapped little-endian file; going past the end raises `DamagedFileError`."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.size = len(data)
        self.position = 0

    def skip(self, count: int) -> int:
        """Move `count` bytes on and return where they began."""
        begin = self.position
        if count < 0 or count > self.size - begin:
            raise DamagedFileError(f"cut short: {count} bytes expected at offset {begin} of {self.size}")
        self.position += count
        return begin

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        begin = self.skip(count)
        return self._data[begin : self.position]

    def integer(self, code: str) -> int:
        """The next integer; `code` is that of the struct module."""
        return int(self.number(code))

    def number(self, code: str) -> int | float | bool:
        """The next number; `code` is that of the struct module."""
        layout = "<" + code
        value: int | float | bool = struct.unpack(layout, self.take(struct.calcsize(layout)))[0]
        return value

    def text(self, length: int, *, limit: int) -> str:
        """The next `length` bytes as UTF-8; more than `limit` of them means that the length itself is damaged."""
        if length > limit:
            raise DamagedFileError(
                f"a name or value of {length} bytes at offset {self.position}, expected {limit} at most"
            )
        begin = self.position
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise DamagedFileError(f"no UTF-8 at offset {begin}") from None


@contextmanager
def open_binary(path: Path) -> Iterator[BinaryReader]:
    """Map a file and give a cursor at its start."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:  # mmap refuses empty files
            raise DamagedFileError("empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield BinaryReader(data)
