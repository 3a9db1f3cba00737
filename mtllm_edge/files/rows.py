"""Rows of txt, csv and jsonl files as streams.

A row that cannot be read is a `RowError` in its place, and the rows after it are read. Lines are counted from 1, and
so are the rows of a csv, whose header is row 1 and whose cells may span lines.
"""

from __future__ import annotations

import csv
import itertools
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from mtllm_edge.errors import DataError

Row: TypeAlias = dict[str, Any]
"""Column -> cell."""

_CELL_LIMIT = 2**22
"""Longest cell in characters, and so the most that an unclosed quote can swallow. The default of csv is 128 KiB."""
_CSV_ROWS = 256
"""Rows that are parsed at a time."""


@dataclass(frozen=True, slots=True)
class RowError:
    """A row that cannot be read."""

    message: str
    """What is wrong and what to do, following the name of the place: `` is not valid UTF-8; save it as UTF-8``."""
    line: int
    """First line of the row, counted from 1; in formats without lines, the number of the row."""
    raw: str
    """The row as in the file, with invalid bytes escaped; in formats without lines, its cells in JSON."""

    @property
    def reason(self) -> str:
        """The message on its own."""
        return self.message.lstrip(" ,:")


NumberedRow: TypeAlias = tuple[int, Row | RowError | None]
"""Number and cells of a row; None for a blank row."""


def line_rows(lines: Iterable[str]) -> Iterator[NumberedRow]:
    """Yield the lines of a text file, each as a column ``text``; invalid bytes are kept by ``surrogateescape``."""
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if not text or text.isspace():
            yield number, None
            continue
        message = encoding_error(text)
        yield number, {"text": text} if message is None else _row_error(message, number, text)


def jsonl_rows(lines: Iterable[str]) -> Iterator[NumberedRow]:
    """Yield the rows of a jsonl file; arguments as for `line_rows`."""
    decode = msgspec.json.Decoder(Row).decode
    for number, line in enumerate(lines, 1):
        if line.isspace():
            yield number, None
            continue
        message = encoding_error(line)
        if message is None:
            try:
                yield number, decode(line)
                continue
            except (msgspec.DecodeError, RecursionError) as error:
                message = f": {error}; write one JSON object per line"
        yield number, _row_error(message, number, line.rstrip("\r\n"))


def csv_rows(lines: Iterable[str], name: str, delimiter: str | None = None) -> Iterator[NumberedRow]:
    """Yield the rows of a csv after its header; `lines` as for `line_rows`, `name` is the file in messages.

    A delimiter of None is the first of comma, semicolon and tab that the header contains.

    Raises:
        DataError: The header cannot be used.
    """
    reader = _CsvReader(lines, delimiter)
    header: list[str] = []
    for number, cells in enumerate(reader, 1):
        if cells is None:
            yield number, None
        elif not header:
            if isinstance(cells, RowError):
                raise DataError(f"{name} line {cells.line}{cells.message}")
            check_unique_columns(cells, name)
            header = cells
        elif isinstance(cells, RowError):
            yield number, cells
        elif len(cells) != len(header):
            message = (
                f" has {len(cells)} cells, the header has {len(header)} columns; "
                f"put cells that contain {reader.delimiter!r} in double quotes"
            )
            yield number, _row_error(message, *reader.raw)
        else:
            yield number, dict(zip(header, cells, strict=True))


class _CsvReader:
    """Iterator over the cells of each row, a `RowError` for invalid csv, and None for a blank row.

    After invalid csv, reading resumes at the line after the row's first: an unclosed quote would otherwise take the
    rest of the file.
    """

    def __init__(self, lines: Iterable[str], delimiter: str | None) -> None:
        self._lines = iter(lines)
        self._pending: deque[str] = deque()
        """Lines to read again."""
        self._buffer: list[str] = []
        """Lines of the rows in progress."""
        self._line = 0
        """Number of lines before the buffer."""
        self.delimiter = delimiter or self._sniff()
        self._span = (0, 0)
        """Lines of the buffer that are the present row."""

    @property
    def raw(self) -> tuple[int, str]:
        """First line and text of the present row."""
        start, end = self._span
        return self._line + start + 1, "".join(self._buffer[start:end]).rstrip("\r\n")

    def _sniff(self) -> str:
        """Return the delimiter of the header; spreadsheets write semicolons where the comma is the decimal sign."""
        while not (self._pending and self._pending[-1].strip("\r\n")) and (line := next(self._lines, None)) is not None:
            self._pending.append(line)
        header = self._pending[-1] if self._pending else ""
        return next((sign for sign in ",;\t" if sign in header), ",")

    def _feed(self) -> Iterator[str]:
        while self._pending:
            self._buffer.append(self._pending.popleft())
            yield self._buffer[-1]
        for line in self._lines:
            self._buffer.append(line)
            yield line

    def __iter__(self) -> Iterator[list[str] | RowError | None]:
        while True:
            reader = csv.reader(self._feed(), delimiter=self.delimiter, strict=True)
            error = yield from self._read(reader)
            if error is None:
                return
            first, *rest = self._buffer
            self._pending.extendleft(reversed(rest))
            self._buffer = []
            self._line += 1
            message = encoding_error(first) or f" is not valid csv ({error}); check its double quotes"
            yield _row_error(message, self._line, first.rstrip("\r\n"))

    def _read(self, reader: Any) -> Generator[list[str] | RowError | None, None, csv.Error | None]:
        """Yield rows until an error, which is returned."""
        lines_before = 0
        while True:
            rows, error = _next_rows(reader)
            start = 0
            for cells, lines in rows:
                end = lines - lines_before
                self._span = (start, end)
                message = encoding_error(self._buffer[start] if end - start == 1 else "".join(self._buffer[start:end]))
                yield (cells or None) if message is None else _row_error(message, *self.raw)
                start = end
            del self._buffer[:start]
            self._line += start
            lines_before += start
            if error is not None or not rows:
                return error


def _next_rows(reader: Any) -> tuple[list[tuple[list[str], int]], csv.Error | None]:
    """Parse some rows, each with the number of lines read so far. The cell limit is global, so it is restored."""
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


def check_unique_columns(columns: Sequence[str], name: str) -> None:
    """Raise DataError if two columns have the same name."""
    repeated = sorted({column for column in columns if columns.count(column) > 1})
    if repeated:
        raise DataError(f"{name} has several columns called {', '.join(map(repr, repeated))}; rename all but one")


def encoding_error(text: str) -> str | None:
    """Return why a text is not plain UTF-8, as a `RowError.message`; None if it is."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            byte = ord(text[error.start]) - 0xDC00  # of surrogateescape
            detail = f" (byte 0x{byte:02x})" if 0x80 <= byte <= 0xFF else ""
            return f" is not valid UTF-8{detail}; save it as UTF-8"
    return " holds a NUL character; remove it, or save the file as UTF-8" if "\0" in text else None


def _row_error(message: str, line: int, raw: str) -> RowError:
    return RowError(message, line, raw.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))
