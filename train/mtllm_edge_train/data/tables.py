"""Whole tables of files and data sets: labeled data fits into memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mtllm_edge.files.sources import open_source
from mtllm_edge.files.tables import Table, make_table
from mtllm_edge_train.data.hub import is_hub_dataset, open_dataset


@dataclass(frozen=True, slots=True)
class LabeledTable(Table):
    """A table with the class names of a data set."""

    classes: Mapping[str, Sequence[str]]
    """Column of class indices in a data set -> class names. The rows have the names, and None for an index outside the
    classes, such as -1 in unlabeled splits."""

    def select(self, indices: Sequence[int]) -> LabeledTable:
        """Return some of the rows."""
        return replace(
            self,
            texts=[self.texts[i] for i in indices],
            rows=[self.rows[i] for i in indices],
            places=[self.places[i] for i in indices],
        )


def read_labeled_table(source: str | Path, column: str | None) -> LabeledTable:
    """Read a file, or a data set with a name as in `hub.HUB`.

    The text column of a table is `column`; None takes ``text`` or the only column.

    Raises:
        UsageError: The file is missing or of another type, or has no such column.
        DataError: A row cannot be read or has no text, or there are no rows.
    """
    name = str(source)
    if not is_hub_dataset(name):
        file = open_source(name)
        table = make_table(file.strict_rows(), name, "text" if file.suffix == ".txt" else column)
        return LabeledTable(table.texts, table.rows, table.places, {})
    rows, classes = open_dataset(name)
    named_rows = (
        (place, {key: _class_name(cell, classes[key]) if key in classes else cell for key, cell in row.items()})
        for place, row in rows
    )
    table = make_table(named_rows, name, column)
    return LabeledTable(table.texts, table.rows, table.places, classes)


def _class_name(index: int | None, names: Sequence[str]) -> str | None:
    return names[index] if index is not None and 0 <= index < len(names) else None
