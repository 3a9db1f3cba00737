"""Whole files of texts (.txt, .csv, .jsonl) as one sheet, for what must see all rows at once, such as `fit`.

A file is checked whole before any model is loaded, and every fault names its file and line. `mtllm_edge.jobs` reads
files that may be larger than memory.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtllm_edge.errors import DataError, UsageError
from mtllm_edge.files.rows import Record, csv_records, jsonl_records

SUFFIXES = (".txt", ".csv", ".jsonl")

_LINE_END = r"\r\n|\n|\r"


@dataclass(frozen=True, slots=True)
class Table:
    """Texts and the columns that came with them, in input order."""

    texts: list[str]
    records: list[dict[str, Any]]
    """One per text: all columns of its input as they were, the text's own column included."""
    places: list[str]
    """Where each text stands, as messages name it: ``mails.csv row 3``."""
    skipped: int
    """Blank lines left out."""

    @property
    def columns(self) -> list[str]:
        """Every column of any record, in order of first appearance."""
        return list(dict.fromkeys(column for record in self.records for column in record))


def read_table(files: Sequence[str], *, text_column: str | None = None) -> Table:
    """Read files of texts.

    Args:
        files: Their names, with one of `SUFFIXES`.
        text_column: Column of csv and jsonl files that holds the text; None takes ``text``, else the only column.

    Raises:
        UsageError: A file that is missing or of another kind, or a column that is not there.
        DataError: Something in a file cannot be used as a text.
    """
    parts = [_read_file(name, text_column) for name in files]
    return Table(
        [text for part in parts for text in part.texts],
        [record for part in parts for record in part.records],
        [place for part in parts for place in part.places],
        sum(part.skipped for part in parts),
    )


def _read_file(name: str, text_column: str | None) -> Table:
    path = Path(name)
    if path.is_dir():
        raise UsageError(f"{name} is a folder; name a file of texts")
    if not path.exists():
        raise UsageError(f"{name} does not exist; check the path")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"{name} is a file, but files of texts end in {', '.join(SUFFIXES)}; rename or convert it")
    text = decode(path.read_bytes(), name)
    if suffix == ".txt":
        return _read_lines(text, name)
    read = csv_records if suffix == ".csv" else jsonl_records
    located, skipped = _located(read(io.StringIO(text, newline=""), name))
    return pick_texts(located, name, text_column, skipped=skipped)


def decode(data: bytes, name: str) -> str:
    """UTF-8 text of a file's bytes; `name` is for the message.

    Raises:
        DataError: Not UTF-8, a NUL character, or nothing but white space.
    """
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = len(re.findall(_LINE_END.encode(), data[: error.start])) + 1
        raise DataError(
            f"{name} line {line} is not valid UTF-8 (byte 0x{data[error.start]:02x}); save it as UTF-8"
        ) from None
    if "\0" in text:
        line = len(re.findall(_LINE_END, text[: text.index("\0")])) + 1
        raise DataError(f"{name} line {line} holds a NUL character; save it as plain UTF-8 text")
    if not text.strip():
        raise DataError(f"{name} holds no text; write one text per line")
    return text


def split_lines(text: str) -> list[str]:
    """The lines of a text, told by line ends alone: `str.splitlines` would also cut at U+2028 and others."""
    lines = re.split(_LINE_END, text)
    return lines[:-1] if not lines[-1] else lines


def _read_lines(text: str, name: str) -> Table:
    lines = split_lines(text)
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    texts = [line for _, line in numbered]
    places = [f"{name} line {number}" for number, _ in numbered]
    return Table(texts, [{"text": line} for line in texts], places, len(lines) - len(texts))


def _located(rows: Iterable[tuple[str, Record | None]]) -> tuple[list[tuple[str, Record]], int]:
    """The rows that hold a record, and how many do not."""
    places = list(rows)
    located = [(where, record) for where, record in places if record is not None]
    return located, len(places) - len(located)


def pick_texts(located: Sequence[tuple[str, Record]], name: str, text_column: str | None, *, skipped: int = 0) -> Table:
    """The texts of records.

    Args:
        located: Records with their places, as messages name them; at least one.
        name: Of the file, for messages.
        text_column: As for `read_table`.
        skipped: Blank rows beside them.

    Raises:
        UsageError: There is no such column, or none was named and there are several.
        DataError: A record lacks the column or holds no text there.
    """
    column = pick_column(located[0][1], name, text_column)
    texts = []
    for where, record in located:
        if column not in record:
            raise DataError(f"{where} lacks {column!r}; it has {_quoted(record)}")
        text = record[column]
        check_text(text, f"{where}, column {column!r},", advice="fill it or remove the row")
        texts.append(text)
    return Table(texts, [record for _, record in located], [where for where, _ in located], skipped)


def pick_column(record: dict[str, Any], name: str, text_column: str | None) -> str:
    """Name of the text's column, judged by the first record of a file.

    Raises:
        UsageError: There is no such column, or none was named and there are several.
    """
    wanted = "text" if text_column is None else text_column
    if wanted in record:
        return wanted
    if text_column is None and len(record) == 1:
        return next(iter(record))
    advice = "name one with --text-column" if text_column is None else "name one of them"
    raise UsageError(f"{name} has no column {wanted!r}, only {_quoted(record)}; {advice}")


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def check_text(text: object, where: str, *, advice: str) -> None:
    """Refuse what is no text; `where` and `advice` are for the message.

    Raises:
        DataError: Not a string, blank, or with characters that no encoder takes.
    """
    if not isinstance(text, str):
        raise DataError(f"{where} is {_json_kind(text)}, expected a string")
    if not text.strip():
        raise DataError(f"{where} is empty; {advice}")
    if "\0" in text:
        raise DataError(f"{where} holds a NUL character; remove it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # bytes of an argument that are no text
        raise DataError(f"{where} is not valid UTF-8; give it as UTF-8") from None


def _json_kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case list():
            return "an array"
        case _:
            return "an object"
