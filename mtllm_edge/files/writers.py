"""Rows written as csv, jsonl and npy."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Sequence
from typing import BinaryIO

import msgspec
import numpy as np

from mtllm_edge.files.cells import as_text
from mtllm_edge.files.rows import Row


def free_names(names: Sequence[str], columns: Collection[str]) -> dict[str, str]:
    """Map the names of new columns to names that no existing column has, by prefixing ``predicted_``."""
    free = {}
    for name in names:
        free[name] = name
        while free[name] in columns:
            free[name] = f"predicted_{free[name]}"
    return free


def write_jsonl(file: BinaryIO, rows: Iterable[Row]) -> None:
    """Write one JSON object per line."""
    encoder = msgspec.json.Encoder(enc_hook=str)
    for row in rows:
        file.write(encoder.encode(row) + b"\n")


def write_csv(file: BinaryIO, columns: Sequence[str], rows: Iterable[Row], *, delimiter: str = ",") -> None:
    """Write a header and rows; a missing cell is left empty."""
    writer = csv.writer(_CsvLines(file), delimiter=delimiter)
    writer.writerow(columns)
    for row in rows:
        writer.writerow(["" if (cell := row.get(column)) is None else as_text(cell) for column in columns])


def write_npy(file: BinaryIO, vectors: Iterable[Sequence[float]], shape: tuple[int, int]) -> None:
    """Write vectors as a float32 array (N, n_embd) for `numpy.load`."""
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for vector in vectors:
        file.write(np.asarray(vector, "<f4").tobytes())


class _CsvLines:
    r"""Lines as UTF-8 with ``\n``; the csv writer keeps ``\r\n``, or it would leave a bare ``\r`` unquoted."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, row: str) -> int:
        return self._file.write(row.removesuffix("\r\n").encode() + b"\n")
