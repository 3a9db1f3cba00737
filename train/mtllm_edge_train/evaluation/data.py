"""Labelled texts in many languages, from files with a column that tells the language."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtllm_edge.errors import DataError, UsageError
from mtllm_edge_train.data import LabelledTexts, label_of, read_rows

Where = Mapping[str, Set[str]]
"""Column -> the values that a row may have there."""


@dataclass(frozen=True)
class Columns:
    """Where a file keeps what."""

    text: str = "text"
    label: str = "label"
    language: str = "lang"


def read_by_language(paths: Sequence[Path], columns: Columns, where: Where) -> dict[str, LabelledTexts]:
    """Language -> its rows of all files, languages sorted.

    Args:
        paths: .csv, .jsonl or .parquet files.
        columns: Names of their columns.
        where: Which rows to take.

    Raises:
        UsageError: No such file, another suffix, or no such column.
        DataError: An unreadable file, a cell that is no text, label or language, or a value of `where` in no row.
    """
    by_language: dict[str, LabelledTexts] = {}
    for place, text, row in _chosen_rows(paths, columns.text, where):
        language = _cell(row, columns.language, place)
        if not isinstance(language, str) or not language.strip():
            raise DataError(f"{place} has the language {language!r}, expected a code such as deu_Latn")
        labelled = by_language.setdefault(language.strip(), LabelledTexts([], []))
        labelled.texts.append(text)
        labelled.labels.append(label_of(row, columns.label, place))
    return dict(sorted(by_language.items()))


def read_training_rows(path: Path, columns: Columns, where: Where, *, language: str) -> LabelledTexts:
    """The labelled texts that a baseline learns from, all in one language.

    Args:
        path: As in `read_by_language`; the column of languages may be absent.
        columns: Names of its columns.
        where: Which rows to take.
        language: The only language that may be found among them.

    Raises:
        UsageError: Rows in another language, or as for `read_by_language`.
        DataError: Fewer than two labels, or as for `read_by_language`.
    """
    labelled = LabelledTexts([], [])
    for place, text, row in _chosen_rows([path], columns.text, where):
        found = row.get(columns.language, language)
        if found != language:
            raise UsageError(
                f"{place} is a training row in {found}, expected {language} alone; "
                f"add --train-where {columns.language}={language}"
            )
        labelled.texts.append(text)
        labelled.labels.append(label_of(row, columns.label, place))
    if len(labelled.counts) < 2:
        raise DataError(f"the training rows of {path} have the labels {[*labelled.counts]}; give rows of two labels")
    return labelled


def check_labels(by_language: Mapping[str, LabelledTexts], labels: Sequence[str], task: str) -> None:
    """Refuse a label that the task lacks.

    Raises:
        DataError: There is one.
    """
    for language, rows in by_language.items():
        strange = sorted(set(rows.labels) - set(labels))
        if strange:
            raise DataError(
                f"task {task!r} has no label {strange[0]!r}, which rows in {language} have; "
                f"its labels: {', '.join(labels)}"
            )


def _chosen_rows(paths: Sequence[Path], text_column: str, where: Where) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Place, for messages, text and all columns of the rows that `where` takes."""
    unmet = {(column, value) for column, values in where.items() for value in values}
    for path in paths:
        sheet = read_rows(path, text_column)
        for number, (text, row) in enumerate(zip(sheet.texts, sheet.records, strict=True), start=1):
            place = f"{path}: text {number}"
            if all(str(_cell(row, column, place)) in values for column, values in where.items()):
                unmet -= {(column, str(row[column])) for column in where}
                yield place, text, row
    if unmet:
        column, value = min(unmet)
        others = " beside the other conditions" if len(where) > 1 else ""
        raise DataError(f"{', '.join(map(str, paths))}: no row has {column}={value}{others}; correct the conditions")


def _cell(row: Mapping[str, Any], column: str, place: str) -> Any:
    if column not in row:
        raise UsageError(f"{place} has no column {column!r}, only {', '.join(map(repr, row))}")
    return row[column]
