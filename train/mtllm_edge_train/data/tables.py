"""Rows of a file or a data set, all of them and with all their columns: what a task learns from is small enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mtllm_edge.errors import UsageError
from mtllm_edge.files.tables import Table, make_table, read_table
from mtllm_edge_train.data.hub import is_hub_dataset, open_dataset


@dataclass(frozen=True, slots=True)
class Rows(Table):
    """A table whose columns may hold classes."""

    classes: Mapping[str, Sequence[str]]
    """Column of a data set that numbers classes there -> their names, in the order of the numbers. The rows have the
    names, and None for a number outside the classes, such as -1 in unlabeled splits."""

    def select(self, indices: Sequence[int]) -> Rows:
        """Return some of the rows."""
        return replace(
            self,
            texts=[self.texts[i] for i in indices],
            rows=[self.rows[i] for i in indices],
            places=[self.places[i] for i in indices],
        )


def read_rows(source: str | Path, column: str | None) -> Rows:
    """Read a .csv, .jsonl or .parquet file, or a data set.

    Args:
        source: The file or, after `hub.HUB`, the data set.
        column: Where the text is; None takes ``text``, else the only column.

    Raises:
        UsageError: No such file, another suffix, or no such column.
        DataError: Nothing readable, no rows, or a cell that is no text.
    """
    if is_hub_dataset(source):
        return _read_data_set(str(source), column)
    path = Path(source)
    if path.suffix not in (".csv", ".jsonl", ".parquet"):
        raise UsageError(f"{path} has the suffix {path.suffix!r}; expected .csv, .jsonl or .parquet")
    if not path.is_file():
        raise UsageError(f"{path} is no file; check the path")
    return _rows(read_table([str(path)], text_column=column), {})


def _rows(table: Table, classes: Mapping[str, Sequence[str]]) -> Rows:
    return Rows(table.texts, table.rows, table.places, classes)


def _read_data_set(name: str, column: str | None) -> Rows:
    rows, classes = open_dataset(name)
    named = (
        (place, {key: _class_name(cell, classes[key]) if key in classes else cell for key, cell in row.items()})
        for place, row in rows
    )
    return _rows(make_table(named, name, column), classes)


def _class_name(number: int | None, names: Sequence[str]) -> str | None:
    return names[number] if number is not None and 0 <= number < len(names) else None
