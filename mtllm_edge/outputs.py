"""Results to files and pipes: whole or not at all, UTF-8, the input's columns first."""

from __future__ import annotations

import csv
import errno
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from mtllm_edge.errors import UsageError

_DEVICE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@contextmanager
def replacing(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    """Open a temporary sibling of `path` that takes its name when the block ends well.

    It is opened at once, so that a folder without write permission is found before hours of work and not after.

    Args:
        path: The file to make; `--output` on the command line.
        force: Replace an existing file.

    Raises:
        UsageError: The file exists and `force` is off, is not a plain file, or its folder does not exist.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not a plain file; name another --output")
    if path.exists() and not force:
        raise UsageError(f"{path} exists; add --force to replace it, or name another --output")
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} does not exist; make it, or name another --output")
    target = path.resolve()  # what a symbolic link points to, not the link, is replaced
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        if error.filename == str(temporary) or (error.filename is None and error.errno in _DEVICE_ERRORS):
            error.filename = str(path)  # the user knows this name, not the temporary one
        raise
    finally:
        temporary.unlink(missing_ok=True)


def free_names(wanted: Sequence[str], taken: Collection[str]) -> dict[str, str]:
    """Names for new columns beside existing ones: where a name is taken, ``predicted_`` is put before it."""
    names: dict[str, str] = {}
    for name in wanted:
        free = name
        while free in taken:
            free = f"predicted_{free}"
        names[name] = free
    return names


def write_jsonl(file: BinaryIO, records: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line."""
    encoder = msgspec.json.Encoder()
    for record in records:
        file.write(encoder.encode(record) + b"\n")


def write_csv(file: BinaryIO, columns: Sequence[str], records: Iterable[dict[str, Any]]) -> None:
    """Write a header and one row per record; a column that a record lacks is left empty."""
    writer = csv.writer(_CsvLines(file))
    writer.writerow(columns)
    for record in records:
        writer.writerow([_cell(record.get(column)) for column in columns])


def write_npy(file: BinaryIO, rows: NDArray[np.float32]) -> None:
    """Write an array (N, n_embd) as `numpy.load` reads it."""
    # Given a real file, numpy writes past Python and reports a full disk without its error number.
    np.save(_WriteOnly(file), rows, allow_pickle=False)


class _WriteOnly:
    def __init__(self, file: BinaryIO) -> None:
        self.write = file.write


class _CsvLines:
    r"""Rows as UTF-8 with ``\n``; the writer itself keeps ``\r\n``, else it would leave a bare ``\r`` unquoted."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, row: str) -> int:
        return self._file.write(row.removesuffix("\r\n").encode() + b"\n")


def _cell(value: object) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else msgspec.json.encode(value).decode()
