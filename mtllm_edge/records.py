"""Rows of csv and jsonl files, one after another and each with its place, so that a file may be larger than memory."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from mtllm_edge.errors import DataError

Record = dict[str, Any]
# The csv module refuses cells above 128 KiB by default; this is the largest limit that a C long holds everywhere.
_CELL_LIMIT = 2**31 - 1
_CSV_ROWS = 256
"""Rows that are parsed at a time."""


def csv_records(lines: Iterable[str], name: str) -> Iterator[tuple[str, Record | None]]:
    """Rows of a csv as records with their places; a blank row is None.

    Args:
        lines: The file's lines, with the ends that they have in it.
        name: The file, for messages.

    Raises:
        DataError: No valid csv, or one without rows.
    """
    lines, head = iter(lines), [""]
    while not head[-1].strip("\r\n") and (line := next(lines, None)) is not None:
        head.append(line)
    # Spreadsheets write semicolons where the comma is the decimal sign.
    delimiter = next((sign for sign in ",;\t" if sign in head[-1]), ",")
    reader = csv.reader(itertools.chain(head[1:], lines), delimiter=delimiter, strict=True)
    header: list[str] = []
    number, found = 0, False
    while rows := _next_csv_rows(reader, number, name):
        for cells in rows:
            number += 1
            where = f"{name} row {number}"
            if not cells:
                yield where, None
            elif not header:
                header = cells
                _refuse_twins(header, name)
            elif len(cells) != len(header):
                raise DataError(
                    f"{where} has {len(cells)} cells, the header has {len(header)} columns; "
                    f"put cells that contain {delimiter!r} in double quotes"
                )
            else:
                found = True
                yield where, dict(zip(header, cells, strict=True))
    if not found:
        raise DataError(f"{name} holds {'a header but no rows' if header else 'no text'}; add a row per text")


def _refuse_twins(header: Sequence[str], name: str) -> None:
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise DataError(f"{name} has several columns called {', '.join(map(repr, twice))}; rename all but one")


def _next_csv_rows(reader: Iterator[list[str]], number: int, name: str) -> list[list[str]]:
    """Some rows after row `number`. The limit is the process's own, so it is put back before anyone else runs."""
    rows: list[list[str]] = []
    limit = csv.field_size_limit(_CELL_LIMIT)
    try:
        for cells in itertools.islice(reader, _CSV_ROWS):
            rows.append(cells)
    except csv.Error as error:
        raise DataError(
            f"{name} row {number + len(rows) + 1} is not valid csv ({error}); check its double quotes"
        ) from None
    finally:
        csv.field_size_limit(limit)
    return rows


def jsonl_records(lines: Iterable[str], name: str) -> Iterator[tuple[str, Record | None]]:
    """Lines of a jsonl file as records with their places; a blank line is None.

    Args:
        lines: The file's lines.
        name: The file, for messages.

    Raises:
        DataError: A line is no JSON object.
    """
    for number, line in enumerate(lines, 1):
        where = f"{name} line {number}"
        if not line.strip():
            yield where, None
            continue
        try:
            record = msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError) as error:
            raise DataError(f"{where}: {error}; write one JSON object per line") from None
        yield where, record
