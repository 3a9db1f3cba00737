"""Streaming of the texts of one file or data set, which may be larger than memory."""

from __future__ import annotations

from collections.abc import Iterator

from mtllm_edge.errors import DataError
from mtllm_edge.files.columns import check_text, choose_text_column, missing_column
from mtllm_edge.files.parquet import parquet_types
from mtllm_edge.files.rows import Row
from mtllm_edge.files.sources import open_source
from mtllm_edge_train.data.hub import is_hub_dataset, open_dataset


def read_texts(name: str, *, column: str | None = None) -> Iterator[str]:
    """Yield the texts of a file or a data set (`hub.HUB`), without blank texts and empty cells.

    The text column of a table is `column`; None takes ``text`` or the only column.

    Raises:
        UsageError: The file is missing or of another type, or has no such column.
        DataError: A row cannot be read, a cell is no text, or there are no texts.
    """
    rows, column = _open(name, column)
    empty = True
    text_column: str | None = None
    for place, row in rows:
        if text_column is None:
            text_column = choose_text_column(row, name, column)
        if text_column not in row:
            raise DataError(f"{place}{missing_column(row, text_column)}")
        text = row[text_column]
        if text is None or (isinstance(text, str) and not text.strip()):
            continue
        check_text(text, f"{place}, column {text_column!r},")
        empty = False
        yield text
    if empty:
        raise DataError(f"{name} holds no text; leave it out or fill it")


def _open(name: str, column: str | None) -> tuple[Iterator[tuple[str, Row]], str | None]:
    """Return the rows with their places, and the text column if it is known before the first row."""
    if is_hub_dataset(name):
        return open_dataset(name).rows, column
    source = open_source(name)
    if source.suffix == ".txt":
        column = "text"
    elif source.suffix == ".parquet":  # of which only this column is read
        with source.open() as file:
            column = choose_text_column(parquet_types(file, name), name, column)
    return source.strict_rows(column), column
