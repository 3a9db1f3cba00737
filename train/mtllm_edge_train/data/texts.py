"""The texts of one file or one data set, read line by line and row by row: either may be larger than memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mtllm_edge.errors import DataError, UsageError
from mtllm_edge.files.columns import check_text, choose_text_column, missing_column
from mtllm_edge.files.parquet import parquet_types
from mtllm_edge.files.rows import Row
from mtllm_edge.files.sources import Source, open_source
from mtllm_edge_train.data.hub import is_hub_dataset, open_dataset

SUFFIXES = (".txt", ".csv", ".jsonl", ".parquet", ".txt.zst", ".csv.zst", ".jsonl.zst")


def read_source(name: str, *, column: str | None = None) -> Iterator[str]:
    """The texts of a file or, after `hub.HUB`, of a data set; see `read_file`."""
    if is_hub_dataset(name):
        return _texts(_cells(open_dataset(name).rows, name, column), name)
    return read_file(Path(name), column=column)


def check_file(path: Path) -> None:
    """Find out whether a file can be read, without reading it.

    Raises:
        UsageError: No such file, or another suffix.
    """
    if not path.is_file():
        raise UsageError(f"{path} is no file; check the path")
    if not path.name.endswith(SUFFIXES):
        raise UsageError(f"{path} has the suffix {path.suffix!r}; expected {', '.join(SUFFIXES)}")


def read_file(path: Path, *, column: str | None = None) -> Iterator[str]:
    """The texts of one file as they are read; blank ones and empty cells are left out.

    Args:
        path: A file with one of `SUFFIXES`.
        column: Where the text is, but in .txt; None takes ``text``, else the only column.

    Raises:
        UsageError: No such file, another suffix, or no such column.
        DataError: Not UTF-8, malformed, cut short, without any text, or with a cell that is none.
    """
    check_file(path)
    return _texts(_source_cells(open_source(str(path)), column), str(path))


def _source_cells(source: Source, column: str | None) -> Iterator[tuple[str, Any]]:
    """Yield place and text cell of each row; of a parquet file only the column of the text is read."""
    if source.suffix == ".parquet":
        with source.open() as file:
            column = choose_text_column(parquet_types(file, source.name), source.name, column)
    elif source.suffix == ".txt":
        column = "text"
    return _cells(source.strict_rows(column), source.name, column)


def _cells(rows: Iterable[tuple[str, Row]], name: str, column: str | None) -> Iterator[tuple[str, Any]]:
    """Yield place and text cell of each row; the first row has the columns to choose from."""
    chosen: str | None = None
    for place, row in rows:
        if chosen is None:
            chosen = choose_text_column(row, name, column)
        if chosen not in row:
            raise DataError(f"{place}{missing_column(row, chosen)}")
        yield f"{place}, column {chosen!r},", row[chosen]


def _texts(cells: Iterable[tuple[str, Any]], name: str) -> Iterator[str]:
    """Yield the texts of cells, empty ones left out."""
    empty = True
    for place, text in cells:
        if text is None or (isinstance(text, str) and not text.strip()):
            continue
        check_text(text, place)
        empty = False
        yield text
    if empty:
        raise DataError(f"{name} holds no text; leave it out or fill it")
