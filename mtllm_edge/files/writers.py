"""Rows written as csv, jsonl and npy."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Sequence
from typing import Any, BinaryIO

import msgspec
import numpy as np

from mtllm_edge.files.cells import as_text


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
