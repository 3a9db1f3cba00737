"""Rows of txt, csv and jsonl files, one after another, so that a file may be larger than memory.

A row that cannot be read is a `RowError` in its place, and the rows after it are read. Lines are the editor's
(1-based);
rows of a csv are the spreadsheet's, so the header is row 1 and a cell may span lines. `csv_records` and
`jsonl_records` are the same for those who would rather stop at the first fault.
"""

from __future__ import annotations

import csv
import itertools
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from mtllm_edge.errors import DataError, NoRowsError

Record: TypeAlias = dict[str, Any]

_CELL_LIMIT = 2**22
"""Characters; a quote that is never closed swallows no more. The csv module's own limit is 128 KiB."""
_CSV_ROWS = 256
"""Rows that are parsed at a time."""


@dataclass(frozen=True, slots=True)
class RowError:
    """A row that cannot be read."""

    said: str
    """What is wrong and what to do, as it follows the name of the place: `` is not valid UTF-8; save it as UTF-8``."""
    line: int
    """Where the row begins, as an editor counts; of formats without lines, the row."""
    raw: str
    """The row as it stands in the file, bytes that are no UTF-8 escaped; without lines to show, its cells in JSON."""

    @property
    def reason(self) -> str:
        """The same, on its own."""
        return self.said.lstrip(" ,:")


Row: TypeAlias = tuple[int, Record | RowError | None]
"""Number of the row, and its cells; None where it is blank."""


def line_rows(lines: Iterable[str], name: str) -> Iterator[Row]:
    """Lines of a text file, each in a column ``text``.

    Args:
        lines: The file's lines with their ends; bytes that are no UTF-8 kept by ``surrogateescape``.
        name: The file, for messages.

    Raises:
        NoRowsError: All lines are blank.
    """
    found = False
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if not text or text.isspace():
            yield number, None
            continue
        found = True
        said = _said_of(text)
        yield number, {"text": text} if said is None else _fault(said, number, text)
    if not found:
        raise NoRowsError(f"{name} holds no text; write one text per line")


def jsonl_rows(lines: Iterable[str], name: str) -> Iterator[Row]:
    """Lines of a jsonl file. Arguments and errors as for `line_rows`."""
    found = False
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    for number, line in enumerate(lines, 1):
        if line.isspace():
            yield number, None
            continue
        found = True
        said = _said_of(line)
        if said is None:
            try:
                yield number, decode(line)
                continue
            except (msgspec.DecodeError, RecursionError) as error:
                said = f": {error}; write one JSON object per line"
        yield number, _fault(said, number, line.rstrip("\r\n"))
    if not found:
        raise NoRowsError(f"{name} holds no text; write one JSON object per line")


def csv_rows(lines: Iterable[str], name: str, delimiter: str | None = None) -> Iterator[Row]:
    """Rows of a csv after its header.

    Args:
        lines: As for `line_rows`.
        name: The file, for messages.
        delimiter: Between cells; None takes what the header has of comma, semicolon and tabulator.

    Raises:
        DataError: The header cannot be used.
        NoRowsError: There is nothing else.
    """
    reader = _CsvReader(lines, delimiter)
    header: list[str] = []
    found = False
    for number, cells in enumerate(reader, 1):
        if cells is None:
            yield number, None
        elif not header:
            header = _header(cells, name)
        elif isinstance(cells, RowError):
            found = True
            yield number, cells
        elif len(cells) != len(header):
            found = True
            said = (
                f" has {len(cells)} cells, the header has {len(header)} columns; "
                f"put cells that contain {reader.delimiter!r} in double quotes"
            )
            yield number, _fault(said, *reader.raw)
        else:
            found = True
            yield number, dict(zip(header, cells, strict=True))
    if not found:
        raise NoRowsError(f"{name} holds {'a header but no rows' if header else 'no text'}; add a row per text")


def csv_records(lines: Iterable[str], name: str) -> Iterator[tuple[str, Record | None]]:
    """Rows of a csv with their places; a blank row is None.

    Raises:
        DataError: No valid csv, or one without rows.
    """
    return _strict(csv_rows(lines, name), f"{name} row")


def jsonl_records(lines: Iterable[str], name: str) -> Iterator[tuple[str, Record | None]]:
    """Lines of a jsonl file with their places; a blank line is None.

    Raises:
        DataError: A line is no JSON object.
    """
    return _strict(jsonl_rows(lines, name), f"{name} line")


def _strict(rows: Iterable[Row], unit: str) -> Iterator[tuple[str, Record | None]]:
    for number, record in rows:
        if isinstance(record, RowError):
            raise DataError(f"{unit} {number}{record.said}")
        yield f"{unit} {number}", record


class _CsvReader:
    """The cells of every row, a `RowError` for those that are no csv, None for blank ones.

    Where a row is no csv its first line alone is given up, and reading goes on with the next: a quote that is never
    closed would take the rest of the file with it.
    """

    def __init__(self, lines: Iterable[str], delimiter: str | None) -> None:
        self._lines = iter(lines)
        self._again: deque[str] = deque()
        """Lines that are read once more."""
        self._taken: list[str] = []
        """Lines that the present rows are made of."""
        self._line = 0
        """Lines before them."""
        self.delimiter = delimiter or self._sniff()
        self._span = (0, 0)
        """Of `_taken`, the lines of the row that was given last."""

    @property
    def raw(self) -> tuple[int, str]:
        """Line and text of the row that was given last."""
        start, end = self._span
        return self._line + start + 1, "".join(self._taken[start:end]).rstrip("\r\n")

    def _sniff(self) -> str:
        """Spreadsheets write semicolons where the comma is the decimal sign."""
        while not (self._again and self._again[-1].strip("\r\n")) and (line := next(self._lines, None)) is not None:
            self._again.append(line)
        head = self._again[-1] if self._again else ""
        return next((sign for sign in ",;\t" if sign in head), ",")

    def _feed(self) -> Iterator[str]:
        while self._again:
            self._taken.append(self._again.popleft())
            yield self._taken[-1]
        for line in self._lines:
            self._taken.append(line)
            yield line

    def __iter__(self) -> Iterator[list[str] | RowError | None]:
        while True:
            reader = csv.reader(self._feed(), delimiter=self.delimiter, strict=True)
            error = yield from self._read(reader)
            if error is None:
                return
            first, *rest = self._taken
            self._again.extendleft(reversed(rest))
            self._taken = []
            self._line += 1
            said = _said_of(first) or f" is not valid csv ({error}); check its double quotes"
            yield _fault(said, self._line, first.rstrip("\r\n"))

    def _read(self, reader: Any) -> Generator[list[str] | RowError | None, None, csv.Error | None]:
        """Its value is the error that ended it."""
        lines_before = 0
        while True:
            rows, error = _next_rows(reader)
            start = 0
            for cells, lines in rows:
                end = lines - lines_before
                self._span = (start, end)
                said = _said_of(self._taken[start] if end - start == 1 else "".join(self._taken[start:end]))
                yield (cells or None) if said is None else _fault(said, *self.raw)
                start = end
            del self._taken[:start]
            self._line += start
            lines_before += start
            if error is not None or not rows:
                return error


def _next_rows(reader: Any) -> tuple[list[tuple[list[str], int]], csv.Error | None]:
    """Some rows, each with the lines read so far. The limit is the process's own: it is put back before others run."""
    rows: list[tuple[list[str], int]] = []
    limit = csv.field_size_limit(_CELL_LIMIT)
    try:
        for cells in itertools.islice(reader, _CSV_ROWS):
            rows.append((cells, reader.line_num))
    except csv.Error as error:
        return rows, error
    finally:
        csv.field_size_limit(limit)
    return rows, None


def _header(cells: list[str] | RowError, name: str) -> list[str]:
    if isinstance(cells, RowError):
        raise DataError(f"{name} line {cells.line}{cells.said}")
    refuse_repeated(cells, name)
    return cells


def refuse_repeated(columns: Sequence[str], name: str) -> None:
    """Refuse a file in which several columns have one name.

    Raises:
        DataError: It does.
    """
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise DataError(f"{name} has several columns called {', '.join(map(repr, twice))}; rename all but one")


def _said_of(line: str) -> str | None:
    """What is wrong with the letters of a line, as `Fault.said`."""
    if not line.isascii():
        try:
            line.encode()
        except UnicodeEncodeError as error:
            byte = ord(line[error.start]) - 0xDC00  # how surrogateescape keeps it
            return f" is not valid UTF-8 (byte 0x{byte:02x}); save it as UTF-8"
    return " holds a NUL character; save it as plain UTF-8 text" if "\0" in line else None


def _fault(said: str, line: int, raw: str) -> RowError:
    return RowError(said, line, raw.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))
