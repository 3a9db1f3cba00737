"""From the columns of a file to what a task reads: texts, pairs, and texts with choices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from mtllm_edge.errors import DataError, UsageError
from mtllm_edge.files.tables import Table, check_text
from mtllm_edge.inputs import Input, Kind

PAIR_COLUMN = "text_pair"
CHOICES_COLUMN = "choices"
LABEL_COLUMN = "label"
_ADVICE = "fill it or remove the row"


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns beside that of the text."""

    pair: str | None = None
    """The second text of a pair; None means `PAIR_COLUMN`."""
    choices: tuple[str, ...] = ()
    """A column per choice, or one that holds a list of them (in csv, as JSON); empty means `CHOICES_COLUMN`."""

    @property
    def pair_name(self) -> str:
        """The column of the second text."""
        return self.pair or PAIR_COLUMN

    @property
    def choices_names(self) -> tuple[str, ...]:
        """The columns of the choices."""
        return self.choices or (CHOICES_COLUMN,)

    def kind(self, record: Mapping[str, Any], name: str) -> Kind:
        """The kind of task that a file is for, by the columns of its first record.

        Args:
            record: The first record.
            name: The file's, for messages.

        Raises:
            UsageError: A column that was named is not there, or the columns are those of two kinds.
        """
        named = [*filter(None, [self.pair]), *self.choices]
        missing = [column for column in named if column not in record]
        if missing:
            raise UsageError(f"{name} has no column {missing[0]!r}, only {', '.join(map(repr, record))}")
        pair = self.pair_name in record
        choices = all(column in record for column in self.choices_names)
        if pair and choices:
            raise UsageError(
                f"{name} has the columns of a pair ({self.pair_name!r}) and of choices "
                f"({', '.join(map(repr, self.choices_names))}); a task reads one or the other: leave one out"
            )
        return "pair" if pair else "multiple_choice" if choices else "sequence"

    def check(self, kind: Kind) -> None:
        """Refuse columns that a task of some kind does not read.

        Raises:
            UsageError: One was named.
        """
        if self.pair and kind != "pair":
            raise UsageError(f"--pair-column is for tasks of pairs, but the task is of the kind {kind!r}; leave it out")
        if self.choices and kind != "multiple_choice":
            raise UsageError(
                f"--choices-column is for multiple choice, but the task is of the kind {kind!r}; leave it out"
            )

    def beside(self, kind: Kind) -> tuple[str, ...]:
        """The columns that a task of some kind reads beside that of the text."""
        return {"sequence": (), "pair": (self.pair_name,), "multiple_choice": self.choices_names}[kind]


def inputs_of(sheet: Table, kind: Kind, columns: Columns) -> list[Input]:
    """What a task reads of each record of a sheet.

    Raises:
        UsageError: A record lacks a column, or one was named that this kind does not read.
        DataError: A cell is empty or no text, or there are fewer than two choices.
    """
    columns.check(kind)
    rows = zip(sheet.texts, sheet.records, sheet.places, strict=True)
    return [input_of(text, record, kind, columns, place) for text, record, place in rows]


def input_of(text: str, record: Mapping[str, Any], kind: Kind, columns: Columns, place: str) -> Input:
    """What a task reads of one record, whose text is known to be one; errors as for `inputs_of`."""
    if kind == "pair":
        return text, _text(record, columns.pair_name, place)
    return text if kind == "sequence" else (text, _choices(record, columns.choices_names, place))


def label_of(record: Mapping[str, Any], column: str, place: str) -> str:
    """The label of a record, as a word; `place` is for messages.

    Raises:
        UsageError: There is no such column.
        DataError: It is empty, or neither a word nor a whole number.
    """
    return _word(record, column, place, "label")


def group_of(record: Mapping[str, Any], column: str, place: str) -> str:
    """The name of what a record belongs to; arguments and errors as for `label_of`."""
    return _word(record, column, place, "group")


def _word(record: Mapping[str, Any], column: str, place: str, what: str) -> str:
    if column not in record:
        raise UsageError(f"{place} has no column {column!r}, only {', '.join(map(repr, record))}")
    word = record[column]
    if not isinstance(word, (str, int)) or isinstance(word, bool) or not str(word).strip():
        raise DataError(f"{place} has the {what} {word!r}, expected a word or a whole number")
    return str(word).strip()


def _cell(record: Mapping[str, Any], column: str, place: str) -> Any:
    if column not in record:
        found = ", ".join(map(repr, record))
        raise UsageError(
            f"{place} has no column {column!r}, only {found}; the task needs it, under this name or one that is given"
        )
    return record[column]


def _text(record: Mapping[str, Any], column: str, place: str) -> str:
    text: str = _cell(record, column, place)
    check_text(text, f"{place}, column {column!r},", advice=_ADVICE)
    return text


def _choices(record: Mapping[str, Any], columns: tuple[str, ...], place: str) -> tuple[str, ...]:
    if len(columns) > 1:
        return tuple(_text(record, column, place) for column in columns)
    found = _cell(record, columns[0], place)
    if isinstance(found, str):
        try:
            found = msgspec.json.decode(found)
        except msgspec.DecodeError:
            found = None
    where = f"{place}, column {columns[0]!r},"
    if not isinstance(found, list):
        raise DataError(f'{where} is no list of choices; write ["one", "two"], or name a column per choice')
    if len(found) < 2:
        raise DataError(f"{where} has {len(found)} choices; give two or more")
    for number, choice in enumerate(found):
        check_text(choice, f"{where} choice {number}", advice=_ADVICE)
    return tuple(found)
