"""Rows of a file or a data set, all of them and with all their columns: what a task learns from is small enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mtllm_edge.errors import DataError, UsageError
from mtllm_edge.files.rows import Record
from mtllm_edge.files.tables import Table, pick_texts, read_table
from mtllm_edge.safe_text import one_line
from mtllm_edge_train.data.hub import is_hub_dataset, open_dataset


@dataclass(frozen=True, slots=True)
class Rows(Table):
    """A sheet whose columns may hold classes."""

    classes: Mapping[str, Sequence[str]]
    """Column of a data set that numbers classes there -> their names, in the order of the numbers. The records have
    the names, and None for a number outside the classes, such as -1 in unlabeled splits."""

    def select(self, indices: Sequence[int]) -> Rows:
        """Return some of the rows."""
        return replace(
            self,
            texts=[self.texts[i] for i in indices],
            records=[self.records[i] for i in indices],
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
    if path.suffix == ".parquet":
        return _rows(pick_texts(_parquet_records(path), str(path), column), {})
    return _rows(read_table([str(path)], text_column=column), {})


def _rows(sheet: Table, classes: Mapping[str, Sequence[str]]) -> Rows:
    return Rows(sheet.texts, sheet.records, sheet.places, sheet.skipped, classes)


def _parquet_records(path: Path) -> list[tuple[str, Record]]:
    import pyarrow
    import pyarrow.parquet

    try:
        records = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable parquet file ({one_line(error)})") from None
    return _some([(f"{path} row {number}", record) for number, record in enumerate(records, 1)], path)


def _read_data_set(name: str, column: str | None) -> Rows:
    rows, classes = open_dataset(name)
    located = [
        (place, {key: _class_name(cell, classes[key]) if key in classes else cell for key, cell in record.items()})
        for place, record in rows
    ]
    return _rows(pick_texts(_some(located, name), name, column), classes)


def _class_name(number: int | None, names: Sequence[str]) -> str | None:
    return names[number] if number is not None and 0 <= number < len(names) else None


def _some(located: list[tuple[str, Record]], name: str | Path) -> list[tuple[str, Record]]:
    if not located:
        raise DataError(f"{name} holds no rows")
    return located
