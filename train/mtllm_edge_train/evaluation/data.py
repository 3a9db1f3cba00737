"""Labeled texts in several languages, from files with a language column."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtllm_edge.errors import DataError, UsageError
from mtllm_edge.files.columns import Columns, cell_of
from mtllm_edge.inputs import Input, Kind
from mtllm_edge_train.data.labeled import LabeledTexts, labeled_texts
from mtllm_edge_train.data.tables import LabeledTable, read_labeled_table

RowFilter = Mapping[str, Set[str]]
"""Column -> its accepted values."""


@dataclass(frozen=True)
class Schema:
    """Kind of a task's inputs, and the columns that hold them."""

    kind: Kind
    text_column: str
    columns: Columns
    """Columns of second texts or choices."""
    label_column: str
    language_column: str
    language: str | None = None
    """Language code of all rows; None reads the language column."""

    def language_of(self, row: Mapping[str, Any]) -> str:
        """Return the language code of a row; errors as for `Table.map`."""
        language = self.language or cell_of(row, self.language_column)
        if not isinstance(language, str) or not language.strip():
            raise DataError(f" has the language {language!r}, expected a code such as deu_Latn")
        return language.strip()


def read_by_language(sources: Sequence[str | Path], schema: Schema, row_filter: RowFilter) -> dict[str, LabeledTexts]:
    """Read the accepted rows of all files and data sets, grouped by language; languages are sorted.

    Raises:
        UsageError: A file is missing or of another type, or a column is missing.
        DataError: A file cannot be read, a cell is no text, label or language, or no row has a value of `row_filter`.
    """
    groups: dict[str, tuple[list[Input], list[str]]] = defaultdict(lambda: ([], []))
    for table in _filtered(sources, schema.text_column, row_filter):
        data = labeled_texts(table, schema.kind, schema.columns, schema.label_column)
        languages = table.map(schema.language_of)
        for language, item, label in zip(languages, data.inputs, data.labels, strict=True):
            inputs, labels = groups[language]
            inputs.append(item)
            labels.append(label)
    return {language: LabeledTexts.of(*groups[language]) for language in sorted(groups)}


def read_training_rows(source: str | Path, schema: Schema, row_filter: RowFilter, *, language: str) -> LabeledTexts:
    """Read the training rows of a baseline, all in one language; the language column is optional.

    Raises:
        UsageError: A row is in another language; otherwise as for `read_by_language`.
        DataError: There are fewer than two labels; otherwise as for `read_by_language`.
    """

    def check_language(row: Mapping[str, Any]) -> None:
        row_language = row.get(schema.language_column, language)
        if row_language != language:
            raise UsageError(
                f" is a training row in {row_language}, expected {language} alone; "
                f"add --train-where {schema.language_column}={language}"
            )

    (table,) = _filtered([source], schema.text_column, row_filter)
    table.map(check_language)
    data = labeled_texts(table, schema.kind, schema.columns, schema.label_column)
    if len(data.counts) < 2:
        raise DataError(f"the training rows of {source} have the labels {[*data.counts]}; give rows of two labels")
    return data


def check_labels(by_language: Mapping[str, LabeledTexts], labels: Sequence[str], task: str) -> None:
    """Check that the task has all labels. Multiple choice has none; its indices are checked on reading.

    Raises:
        DataError: A label is unknown.
    """
    if not labels:
        return
    for language, rows in by_language.items():
        unknown = sorted(set(rows.labels) - set(labels))
        if unknown:
            raise DataError(
                f"task {task!r} has no label {unknown[0]!r}, which rows in {language} have; "
                f"its labels: {', '.join(labels)}"
            )


def _filtered(sources: Sequence[str | Path], text_column: str, row_filter: RowFilter) -> Iterator[LabeledTable]:
    """The accepted rows of each file."""
    unmatched = {(column, value) for column, values in row_filter.items() for value in values}
    for source in sources:
        table = read_labeled_table(source, text_column)
        cells = table.map(lambda row: {column: str(cell_of(row, column)) for column in row_filter})
        accepted = [i for i, own in enumerate(cells) if all(own[column] in row_filter[column] for column in own)]
        unmatched -= {cell for i in accepted for cell in cells[i].items()}
        yield table.select(accepted)
    if unmatched:
        column, value = min(unmatched)
        others = " beside the other conditions" if len(row_filter) > 1 else ""
        raise DataError(f"{', '.join(map(str, sources))}: no row has {column}={value}{others}; correct the conditions")
