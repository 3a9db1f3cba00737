"""Read numbers, strings and JSON from files that may be cut short or damaged."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

_T = TypeVar("_T")


class DamagedFileError(Exception):
    """The file breaks its own format; the message says where, and the caller adds the file's name."""


class BinaryReader:
    """A position in a memory-mapped little-endian file; reading past the end raises `DamagedFileError`."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.size = len(data)
        self.position = 0

    def skip(self, count: int) -> int:
        """Skip `count` bytes, and return their offset."""
        begin = self.position
        if count < 0 or count > self.size - begin:
            raise DamagedFileError(f"cut short: {count} bytes expected at offset {begin} of {self.size}")
        self.position += count
        return begin

    def read_bytes(self, count: int) -> bytes:
        """Read `count` bytes."""
        begin = self.skip(count)
        return self._data[begin : self.position]

    def read_int(self, code: str) -> int:
        """Read an integer; `code` is that of the struct module."""
        return int(self.read_number(code))

    def read_number(self, code: str) -> int | float | bool:
        """Read a number; `code` is that of the struct module."""
        layout = "<" + code
        value: int | float | bool = struct.unpack(layout, self.read_bytes(struct.calcsize(layout)))[0]
        return value

    def read_count(self, code: str, items: str, *, limit: int) -> int:
        """Read the number of `items`, at most `limit`."""
        count = self.read_int(code)
        if count > limit:
            raise DamagedFileError(f"{count} {items}, expected {limit} at most")
        return count

    def read_text(self, length: int, *, limit: int) -> str:
        """Read `length` bytes of UTF-8, at most `limit`."""
        begin = self.position
        if length > limit:
            raise DamagedFileError(f"a name or value of {length} bytes at offset {begin}, expected {limit} at most")
        try:
            return self.read_bytes(length).decode("utf-8")
        except UnicodeDecodeError:
            raise DamagedFileError(f"no UTF-8 at offset {begin}") from None


@contextmanager
def open_binary(path: Path) -> Iterator[BinaryReader]:
    """Map a file into memory, and yield a reader at its start."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:  # mmap refuses empty files
            raise DamagedFileError("empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield BinaryReader(data)


def check_unique(name: str, names: Container[str], item: str) -> None:
    """Raise `DamagedFileError` for the second `item` with a name."""
    if name in names:
        raise DamagedFileError(f"two {item}s are called {name!r}")


def decode_json(content: bytes | str, schema: type[_T], description: str) -> _T:
    """Decode JSON of a type; errors call it a `description`."""
    try:
        return msgspec.json.decode(content, type=schema)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedFileError(f"no {description} ({error})") from None
