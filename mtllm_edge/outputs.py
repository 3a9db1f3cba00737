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

from mtllm_edge.errors import UsageError
from mtllm_edge.values import as_text

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
    target = check_target(path, force=force)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with in_the_name_of(path, temporary):
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def check_target(path: Path, *, force: bool) -> Path:
    """The file that an output becomes: what a symbolic link points to, not the link, is replaced.

    Raises:
        UsageError: As for `replacing`.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not a plain file; name another --output")
    if path.exists() and not force:
        raise UsageError(f"{path} exists; add --force to replace it, or name another --output")
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} does not exist; make it, or name another --output")
    return path.resolve()


@contextmanager
def in_the_name_of(path: Path, temporary: Path) -> Iterator[None]:
    """Let errors of the system name the file that the user knows, and not a temporary one (or one in it)."""
    try:
        yield
    except OSError as error:
        named = Path(error.filename) if isinstance(error.filename, str) else Path()
        nameless = error.filename is None and error.errno in _DEVICE_ERRORS
        if nameless or named == temporary or temporary in named.parents:
            error.filename = str(path)
        raise


def write_all(file: BinaryIO, data: bytes) -> None:
    """Write to an unbuffered file, which may take less at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlast a power cut, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
    encoder = msgspec.json.Encoder(enc_hook=str)
    for record in records:
        file.write(encoder.encode(record) + b"\n")


def write_csv(
    file: BinaryIO, columns: Sequence[str], records: Iterable[dict[str, Any]], *, delimiter: str = ","
) -> None:
    """Write a header and one row per record; a column that a record lacks is left empty."""
    writer = csv.writer(_CsvLines(file), delimiter=delimiter)
    writer.writerow(columns)
    for record in records:
        writer.writerow([_cell(record.get(column)) for column in columns])


def write_npy(file: BinaryIO, rows: Iterable[Sequence[float]], shape: tuple[int, int]) -> None:
    """Write rows as a float32 array (N, n_embd) as `numpy.load` reads it."""
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for row in rows:
        file.write(np.asarray(row, "<f4").tobytes())


class _CsvLines:
    r"""Rows as UTF-8 with ``\n``; the writer itself keeps ``\r\n``, else it would leave a bare ``\r`` unquoted."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, row: str) -> int:
        return self._file.write(row.removesuffix("\r\n").encode() + b"\n")


def _cell(value: object) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else as_text(value)
