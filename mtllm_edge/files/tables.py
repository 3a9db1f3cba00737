"""Whole tables in memory, for what needs all rows at once, such as `fit`; `mtllm_edge.jobs` streams them instead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mtllm_edge.errors import DataError, MtllmError
from mtllm_edge.files.columns import Columns, choose_text_column, parse_row, word_cell
from mtllm_edge.files.rows import Row
from mtllm_edge.files.sources import open_source
from mtllm_edge.inputs import Input, Kind

_Value = TypeVar("_Value")
_DEFAULT_COLUMNS = Columns()


@dataclass(frozen=True, slots=True)
class Table:
    """Texts with the rows that hold them, in input order."""

    texts: list[str]
    rows: list[Row]
    """All columns, that of the text included."""
    places: list[str]
    """Place of each row for messages: ``mails.csv row 3``."""

    def map(self, function: Callable[[Row], _Value]) -> list[_Value]:
        """Apply a function to each row; its errors get the row's place before their message."""
        values = []
        for row, place in zip(self.rows, self.places, strict=True):
            try:
                values.append(function(row))
            except MtllmError as error:
                raise type(error)(f"{place}{error}") from None
        return values

    def inputs(self, kind: Kind, columns: Columns) -> list[Input]:
        """Return the input of a task from each row; errors as for `parse_row` and `Columns.check`."""
        columns.check(kind)
        texts = iter(self.texts)
        return self.map(lambda row: columns.join(next(texts), row, kind))

    def words(self, column: str, noun: str) -> list[str]:
        """Return the word of each row in a column, such as labels; arguments and errors as for `word_cell`."""
        return self.map(lambda row: word_cell(row, column, noun))


def read_table(files: Sequence[str], *, text_column: str | None = None) -> Table:
    """Read files with one of `sources.SUFFIXES` into one table; the text's column as for `choose_text_column`.

    Raises:
        UsageError: A file is missing or of another type, or has no such column.
        DataError: A row cannot be read or has no text.
    """
    tables = [make_table(open_source(name).strict_rows(), name, text_column) for name in files]
    return Table(
        [text for table in tables for text in table.texts],
        [row for table in tables for row in table.rows],
        [place for table in tables for place in table.places],
    )


def make_table(rows: Iterable[tuple[str, Row]], name: str, text_column: str | None) -> Table:
    """Make a table of the rows of one source, with the place of each; `name` is the source, for messages.

    Raises:
        UsageError: There is no such column, or none was named and there are several.
        DataError: There are no rows, or one has no text.
    """
    places, cells = [], []
    for place, row in rows:
        places.append(place)
        cells.append(row)
    if not cells:
        raise DataError(f"{name} holds no rows")
    column = choose_text_column(cells[0], name, text_column)
    table = Table([], cells, places)
    table.texts.extend(table.map(lambda row: str(parse_row(row, column, "sequence", _DEFAULT_COLUMNS))))
    return table
