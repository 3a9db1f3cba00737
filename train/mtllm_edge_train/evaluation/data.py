"""Labelled texts in many languages, from files with a column that tells the language."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mtllm_edge.errors import DataError, UsageError
from mtllm_edge.files.columns import Columns
from mtllm_edge.inputs import Input, Kind
from mtllm_edge_train.data.labeled import LabeledTexts, labeled_texts
from mtllm_edge_train.data.tables import Rows, read_rows

Where = Mapping[str, Set[str]]
"""Column -> the values that a row may have there."""


@dataclass(frozen=True)
class Layout:
    """What the task reads, and where a file keeps it."""

    kind: Kind
    text: str
    """Name of the column of the texts; likewise the others."""
    others: Columns
    """Columns of second texts or choices."""
    label: str
    language: str


def read_by_language(sources: Sequence[str | Path], layout: Layout, where: Where) -> dict[str, LabeledTexts]:
    """Language -> its rows of all files, languages sorted.

    Args:
        sources: .csv, .jsonl or .parquet files, or data sets.
        layout: What to read of them.
        where: Which rows to take.

    Raises:
        UsageError: No such file, another suffix, or no such column.
        DataError: An unreadable file, a cell that is no text, label or language, or a value of `where` in no row.
    """
    taken: dict[str, tuple[list[Input], list[str]]] = defaultdict(lambda: ([], []))
    for rows in _chosen_rows(sources, layout.text, where):
        data = labeled_texts(rows, layout.kind, layout.others, layout.label)
        for place, record, item, label in zip(rows.places, rows.records, data.inputs, data.labels, strict=True):
            language = _cell(record, layout.language, place)
            if not isinstance(language, str) or not language.strip():
                raise DataError(f"{place} has the language {language!r}, expected a code such as deu_Latn")
            inputs, labels = taken[language.strip()]
            inputs.append(item)
            labels.append(label)
    return {language: LabeledTexts.of(*taken[language]) for language in sorted(taken)}


def read_training_rows(source: str | Path, layout: Layout, where: Where, *, language: str) -> LabeledTexts:
    """What a baseline learns from, all in one language.

    Args:
        source: As in `read_by_language`; the column of languages may be absent.
        layout: What to read of it.
        where: Which rows to take.
        language: The only language that may be found among them.

    Raises:
        UsageError: Rows in another language, or as for `read_by_language`.
        DataError: Fewer than two labels, or as for `read_by_language`.
    """
    (rows,) = _chosen_rows([source], layout.text, where)
    for place, record in zip(rows.places, rows.records, strict=True):
        found = record.get(layout.language, language)
        if found != language:
            raise UsageError(
                f"{place} is a training row in {found}, expected {language} alone; "
                f"add --train-where {layout.language}={language}"
            )
    labelled = labeled_texts(rows, layout.kind, layout.others, layout.label)
    if len(labelled.counts) < 2:
        raise DataError(f"the training rows of {source} have the labels {[*labelled.counts]}; give rows of two labels")
    return labelled


def check_labels(by_language: Mapping[str, LabeledTexts], labels: Sequence[str], task: str) -> None:
    """Refuse a label that the task lacks; of choices, which have no labels, the numbers were checked before.

    Raises:
        DataError: There is one.
    """
    if not labels:
        return
    for language, rows in by_language.items():
        strange = sorted(set(rows.labels) - set(labels))
        if strange:
            raise DataError(
                f"task {task!r} has no label {strange[0]!r}, which rows in {language} have; "
                f"its labels: {', '.join(labels)}"
            )


def _chosen_rows(sources: Sequence[str | Path], text_column: str, where: Where) -> Iterator[Rows]:
    """Of each file, the rows that `where` takes."""
    unmet = {(column, value) for column, values in where.items() for value in values}
    for source in sources:
        rows = read_rows(source, text_column)
        taken = []
        for index, (place, record) in enumerate(zip(rows.places, rows.records, strict=True)):
            if all(str(_cell(record, column, place)) in values for column, values in where.items()):
                unmet -= {(column, str(record[column])) for column in where}
                taken.append(index)
        yield replace(
            rows,
            texts=[rows.texts[index] for index in taken],
            records=[rows.records[index] for index in taken],
            places=[rows.places[index] for index in taken],
        )
    if unmet:
        column, value = min(unmet)
        others = " beside the other conditions" if len(where) > 1 else ""
        raise DataError(f"{', '.join(map(str, sources))}: no row has {column}={value}{others}; correct the conditions")


def _cell(row: Mapping[str, Any], column: str, place: str) -> Any:
    if column not in row:
        raise UsageError(f"{place} has no column {column!r}, only {', '.join(map(repr, row))}")
    return row[column]
