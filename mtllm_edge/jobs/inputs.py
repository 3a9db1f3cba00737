"""From sources to what a task reads: the text's column of each chosen, every row turned into an input or a fault."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from mtllm_edge.errors import DataError, MtllmError, NoRowsError
from mtllm_edge.files.cells import as_json
from mtllm_edge.files.columns import Columns, input_of
from mtllm_edge.files.rows import Record, RowError
from mtllm_edge.files.sources import Source
from mtllm_edge.files.tables import check_text, pick_column
from mtllm_edge.inputs import Input, Kind

_USUAL = Columns()
_SAMPLE = 100
"""Readable rows by which a source's columns are judged."""


@dataclass(slots=True, eq=False)
class Reading:
    """A source, and what is read of it."""

    source: Source
    column: str | None
    """Of the text; None where no row can be read."""
    columns: dict[str, set[type]]
    """Columns in their order, with the types of their values: at first of some rows, in the end of all."""
    note: str | None = None
    """How the column was chosen, where that was a guess."""
    blank: int = 0
    """Blank rows that the present reader has left out."""

    def look(self, record: Record) -> None:
        """Remember the columns of a record, and the types of its values."""
        columns = self.columns
        for name, value in record.items():
            kind: type = type(value)
            if kind is int and not -(2**63) <= value < 2**63:
                kind = str  # as which it is written, where numbers have 64 bits
            if name in columns:
                columns[name].add(kind)
            else:
                columns[name] = {kind}


Asked: TypeAlias = tuple[str | None, Input]
"""What is asked of a model: the language, where anything is said of it, and the text."""
RowRead: TypeAlias = tuple[Reading, int, Record | None, Asked | RowError]
"""Where from, number of the row, its cells, and what the task reads."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a task reads, and where it stands."""

    kind: Kind = "sequence"
    text_column: str | None = None
    """None takes ``text``, else the only column, else the one with the longest texts."""
    others: Columns = _USUAL
    language: Callable[[Record, str], str | None] | None = None
    """The language of a row at a place; None where nothing is said of languages."""

    def survey(self, source: Source) -> Reading:
        """Read a little of a source.

        Raises:
            UsageError: It lacks a column, or none can be guessed.
            NoRowsError: It holds no rows.
            DataError: It cannot be read.
        """
        readable = (record for _, record in source.rows() if isinstance(record, dict))
        sample = list(itertools.islice(readable, _SAMPLE))
        if not sample:
            return Reading(source, None, {})
        merged = {name: cell for record in reversed(sample) for name, cell in record.items()}
        column, note = self._choose(sample, merged, source)
        with contextlib.suppress(DataError):  # of the first row; here it is about columns
            self._input(merged, column, source.place(1))
        reading = Reading(source, column, {}, note)
        for record in sample:
            reading.look(record)
        return reading

    def _choose(self, sample: Sequence[Record], merged: Record, source: Source) -> tuple[str, str | None]:
        """The text's column, and a note where that was a guess."""
        if not source.has_columns:
            return "text", None
        if self.text_column is None and "text" not in merged:
            lengths = {name: _length(sample, name) for name in merged if name not in self.others.beside(self.kind)}
            column = max(lengths, key=lengths.__getitem__, default="")
            if lengths.get(column):
                why = "has the longest texts" if len(merged) > 1 else "is the only one"
                return column, f"text is column {column!r}, which {why}; --text-column names another"
        return pick_column(merged, source.name, self.text_column), None

    def read(self, readings: Sequence[Reading]) -> Iterator[RowRead]:
        """All rows of all sources, in their order; the same whenever it is called, unless a source has changed."""
        for reading in readings:
            yield from self._read(reading)

    def _read(self, reading: Reading) -> Iterator[RowRead]:
        column, plain = reading.column or "text", self.kind == "sequence" and self.language is None
        place = reading.source.place
        reading.blank = number = 0
        try:
            for number, record in reading.source.rows():
                if record is None:
                    reading.blank += 1
                    continue
                if isinstance(record, RowError):
                    yield reading, number, None, record
                    continue
                text = record.get(column)
                if plain and type(text) is str and text and not text.isspace() and "\0" not in text:
                    yield reading, number, record, (None, text)
                    continue
                try:
                    yield reading, number, record, self._input(record, column, place(number))
                except MtllmError as error:
                    said = str(error).removeprefix(place(number))
                    yield reading, number, record, RowError(said, number, as_json(record))
        except NoRowsError:
            pass
        except DataError as error:  # it cannot be read to its end
            yield reading, number + 1, None, RowError(f": {error}", number + 1, "")

    def _input(self, record: Record, column: str, place: str) -> Asked:
        if column not in record:
            raise DataError(f"{place} lacks {column!r}; it has {', '.join(map(repr, record)) or 'nothing'}")
        text = record[column]
        check_text(text, f"{place}, column {column!r},", advice="fill it or remove the row")
        language = None if self.language is None else self.language(record, place)
        return language, input_of(text, record, self.kind, self.others, place)


def _length(sample: Sequence[Record], name: str) -> float:
    """Mean length of a column's texts; 0 where it holds something else, such as numbers, dates and addresses."""
    cells = [cell for record in sample if isinstance(cell := record.get(name), str) and cell.strip()]
    wordy = [cell for cell in cells if any(map(str.isalpha, cell)) and "://" not in cell]
    return sum(map(len, cells)) / len(cells) if 2 * len(wordy) > len(cells) else 0.0
