"""The inputs of a job: the text column of each source is chosen, and every row parsed."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from mtllm_edge.errors import DataError, MtllmError, NoRowsError
from mtllm_edge.files.cells import as_json
from mtllm_edge.files.columns import Columns, choose_text_column, parse_row
from mtllm_edge.files.rows import Row, RowError
from mtllm_edge.files.sources import Source
from mtllm_edge.inputs import Input, Kind

_DEFAULT_COLUMNS = Columns()
_SAMPLE = 100
"""Readable rows by which the columns of a source are chosen."""


@dataclass(slots=True, eq=False)
class JobInput:
    """A source with its columns."""

    source: Source
    text_column: str | None
    """None if no row can be read."""
    columns: dict[str, set[type]]
    """Columns in their order, with the types of their cells: of a sample before the job, of all rows after it."""
    note: str | None = None
    """How the text column was chosen, if that was a guess."""
    blank: int = 0
    """Blank rows that the present reader has left out."""

    def add_types(self, row: Row) -> None:
        """Add the columns of a row and the types of its cells."""
        columns = self.columns
        for name, cell in row.items():
            cell_type: type = type(cell)
            if cell_type is int and not -(2**63) <= cell < 2**63:
                cell_type = str  # as written where integers have 64 bits
            if name in columns:
                columns[name].add(cell_type)
            else:
                columns[name] = {cell_type}


ModelInput: TypeAlias = tuple[str | None, Input]
"""Language code, if known, and the input of a task."""
ParsedRow: TypeAlias = tuple[JobInput, int, Row | None, ModelInput | RowError]
"""Origin and number of a row, its cells, and the input of the task."""


@dataclass(frozen=True, slots=True)
class InputReader:
    """Reads the inputs of a task from sources."""

    kind: Kind = "sequence"
    text_column: str | None = None
    """None takes ``text``, else the only column, else the one with the longest texts."""
    columns: Columns = _DEFAULT_COLUMNS
    language: Callable[[Row], str | None] | None = None
    """Returns the language code of a row; None if languages are neither given nor identified."""

    def inspect(self, source: Source) -> JobInput:
        """Choose the columns of a source by its first rows.

        Raises:
            UsageError: A column is missing, or none can be chosen.
            NoRowsError: There are no rows.
            DataError: The source cannot be read.
        """
        readable = (row for _, row in source.rows() if isinstance(row, dict))
        sample = list(itertools.islice(readable, _SAMPLE))
        if not sample:
            return JobInput(source, None, {})
        merged = {name: cell for row in reversed(sample) for name, cell in row.items()}
        column, note = self._choose_text_column(sample, merged, source)
        try:
            self._parse(merged, column)
        except DataError:  # only missing columns matter here
            pass
        except MtllmError as error:
            raise type(error)(f"{source.place(1)}{error}") from None
        result = JobInput(source, column, {}, note)
        for row in sample:
            result.add_types(row)
        return result

    def _choose_text_column(self, sample: Sequence[Row], merged: Row, source: Source) -> tuple[str, str | None]:
        """Return the text column, and a note if it is a guess."""
        if not source.has_columns:
            return "text", None
        if self.text_column is None and "text" not in merged:
            candidates = [name for name in merged if name not in self.columns.names(self.kind)]
            lengths = {name: _mean_length(sample, name) for name in candidates}
            column = max(lengths, key=lengths.__getitem__, default="")
            if lengths.get(column):
                reason = "has the longest texts" if len(merged) > 1 else "is the only one"
                return column, f"text is column {column!r}, which {reason}; --text-column names another"
        return choose_text_column(merged, source.name, self.text_column), None

    def read(self, inputs: Sequence[JobInput]) -> Iterator[ParsedRow]:
        """Yield all rows of all inputs in order; repeatable, unless a source changes."""
        for job_input in inputs:
            yield from self._read(job_input)

    def _read(self, job_input: JobInput) -> Iterator[ParsedRow]:
        column, is_plain = job_input.text_column or "text", self.kind == "sequence" and self.language is None
        job_input.blank = number = 0
        try:
            with contextlib.suppress(NoRowsError):
                for number, row in job_input.source.rows():
                    if row is None:
                        job_input.blank += 1
                        continue
                    if isinstance(row, RowError):
                        yield job_input, number, None, row
                        continue
                    text = row.get(column)
                    if is_plain and type(text) is str and text and not text.isspace() and "\0" not in text:
                        yield job_input, number, row, (None, text)  # the usual case, without a call
                        continue
                    try:
                        yield job_input, number, row, self._parse(row, column)
                    except MtllmError as error:
                        yield job_input, number, row, RowError(str(error), number, as_json(row))
        except DataError as error:  # the rest cannot be read
            yield job_input, number + 1, None, RowError(f": {error}", number + 1, "")

    def _parse(self, row: Row, column: str) -> ModelInput:
        item = parse_row(row, column, self.kind, self.columns)
        return None if self.language is None else self.language(row), item


def _mean_length(sample: Sequence[Row], name: str) -> float:
    """Return the mean length of a column's texts; 0 if most cells are something else, such as numbers or URLs."""
    cells = [cell for row in sample if isinstance(cell := row.get(name), str) and cell.strip()]
    texts = [cell for cell in cells if any(map(str.isalpha, cell)) and "://" not in cell]
    return sum(map(len, cells)) / len(cells) if 2 * len(texts) > len(cells) else 0.0
