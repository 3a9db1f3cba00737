"""From the row of a table to the input of a task: text, pair, or text with choices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from mtllm_edge.errors import DataError, UsageError
from mtllm_edge.files.rows import encoding_error
from mtllm_edge.inputs import Input, Kind

PAIR_COLUMN = "text_pair"
CHOICES_COLUMN = "choices"
LABEL_COLUMN = "label"


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns that a task reads besides the text."""

    pair: str | None = None
    """The second text of a pair; None means `PAIR_COLUMN`."""
    choices: tuple[str, ...] = ()
    """One column per choice, or one with a list of them (in csv, as JSON); empty means `CHOICES_COLUMN`."""

    @property
    def pair_name(self) -> str:
        """The column of the second text."""
        return self.pair or PAIR_COLUMN

    @property
    def choices_names(self) -> tuple[str, ...]:
        """The columns of the choices."""
        return self.choices or (CHOICES_COLUMN,)

    def kind(self, row: Mapping[str, Any], name: str) -> Kind:
        """Return the kind of task that a file is for, by its first row; `name` is the file, for messages.

        Raises:
            UsageError: A named column is missing, or the file has the columns of two kinds.
        """
        for column in (*filter(None, [self.pair]), *self.choices):
            if column not in row:
                raise UsageError(f"{name}{missing_column(row, column)}")
        has_pair = self.pair_name in row
        has_choices = all(column in row for column in self.choices_names)
        if has_pair and has_choices:
            raise UsageError(
                f"{name} has the columns of a pair ({self.pair_name!r}) and of choices "
                f"({', '.join(map(repr, self.choices_names))}); a task reads one or the other: leave one out"
            )
        return "pair" if has_pair else "multiple_choice" if has_choices else "sequence"

    def check(self, kind: Kind) -> None:
        """Raise UsageError for a column option that a kind of task does not read."""
        if self.pair and kind != "pair":
            raise UsageError(f"--pair-column is for tasks of pairs, but the task is of the kind {kind!r}; leave it out")
        if self.choices and kind != "multiple_choice":
            raise UsageError(
                f"--choices-column is for multiple choice, but the task is of the kind {kind!r}; leave it out"
            )

    def names(self, kind: Kind) -> tuple[str, ...]:
        """Return the columns that a kind of task reads besides the text."""
        return {"sequence": (), "pair": (self.pair_name,), "multiple_choice": self.choices_names}[kind]

    def join(self, text: str, row: Mapping[str, Any], kind: Kind) -> Input:
        """Return the input of a task: a text, and the second text or the choices of its row. Errors as `parse_row`."""
        if kind == "sequence":
            return text
        if kind == "pair":
            return text, text_cell(row, self.pair_name)
        if len(self.choices_names) > 1:
            return text, tuple(text_cell(row, column) for column in self.choices_names)
        return text, _choices(row, self.choices_names[0])


def parse_row(row: Mapping[str, Any], text_column: str, kind: Kind, columns: Columns) -> Input:
    """Return the input of a task from a row of a table.

    Raises:
        UsageError: A column is missing. The message follows the name of the row's place, as in `RowError`.
        DataError: The text's column is missing, a cell is empty or no text, or there are fewer than two choices.
    """
    if text_column not in row:
        raise DataError(missing_column(row, text_column))
    return columns.join(text_cell(row, text_column), row, kind)


def missing_column(row: Mapping[str, Any], column: str) -> str:
    """Return the message about a column that a row lacks."""
    return f" has no column {column!r}, only {', '.join(map(repr, row)) or 'none'}"


def choose_text_column(row: Mapping[str, Any], name: str, text_column: str | None) -> str:
    """Return the name of the text's column: the one that the user gave, or else ``text`` or the only column.

    The first row of a file is used; `name` is the file, for messages.

    Raises:
        UsageError: There is no such column, or none was named and there are several.
    """
    column = "text" if text_column is None else text_column
    if column in row:
        return column
    if text_column is None and len(row) == 1:
        return next(iter(row))
    advice = "name one with --text-column" if text_column is None else "name one of them"
    raise UsageError(f"{name}{missing_column(row, column)}; {advice}")


def cell_of(row: Mapping[str, Any], column: str) -> Any:
    """Return a cell of a row; raises UsageError if the column is missing."""
    if column not in row:
        raise UsageError(f"{missing_column(row, column)}; name the right column")
    return row[column]


def text_cell(row: Mapping[str, Any], column: str) -> str:
    """Return a cell that holds a text; errors as for `cell_of` and `check_text`."""
    text: str = cell_of(row, column)
    check_text(text, f", column {column!r},")
    return text


def word_cell(row: Mapping[str, Any], column: str, noun: str) -> str:
    """Return a cell that holds a word or a whole number, such as a label; `noun` is its name in messages.

    Raises:
        UsageError: The column is missing.
        DataError: The cell is empty or of another type.
    """
    word = cell_of(row, column)
    if not isinstance(word, (str, int)) or isinstance(word, bool) or not str(word).strip():
        raise DataError(f" has the {noun} {word!r}, expected a word or a whole number")
    return str(word).strip()


def _choices(row: Mapping[str, Any], column: str) -> tuple[str, ...]:
    """Return the choices that one cell lists."""
    choices = cell_of(row, column)
    if isinstance(choices, str):
        try:
            choices = msgspec.json.decode(choices)
        except msgspec.DecodeError:
            choices = None
    place = f", column {column!r},"
    if not isinstance(choices, list):
        raise DataError(f'{place} is no list of choices; write ["one", "two"], or name a column per choice')
    if len(choices) < 2:
        raise DataError(f"{place} has {len(choices)} choices; give two or more")
    for number, choice in enumerate(choices):
        check_text(choice, f"{place} choice {number}")
    return tuple(choices)


def check_text(text: object, place: str) -> None:
    """Raise DataError for another type than a text, or one that is blank, not Unicode, or has a NUL character."""
    if not isinstance(text, str):
        types = {type(None): "null", bool: "true or false", int: "a number", float: "a number", list: "an array"}
        raise DataError(f"{place} is {types.get(type(text), 'an object')}, expected a string")
    error = encoding_error(text) if text.strip() else " is empty; fill it or remove it"
    if error is not None:
        raise DataError(f"{place}{error}")
