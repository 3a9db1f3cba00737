"""The texts of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtllm_edge.bundle.manifest import TaskSpec
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.errors import DataError, UsageError
from mtllm_edge.files.tables import read_table


@dataclass(frozen=True)
class Corpus:
    """Texts, and for random models the translations to use instead of theirs."""

    texts: Sequence[str]
    labels: Sequence[str] | None = None
    """Gold labels; None if unknown."""
    language: str | None = None
    translations: Sequence[str] | None = None
    """As in `Job`."""
    translation_lengths: Sequence[int] | None = None
    """As in `Job`."""


def read_corpus(
    file: Path, bundle: Bundle, task: str, *, language: str | None, text_column: str | None, label_column: str
) -> Corpus:
    """Read the texts of a file, and their labels if every row has one.

    Raises:
        UsageError: The task is not one of single texts, or the encoder requires a language code.
        DataError: A text cannot be used, or the task does not have a label.
    """
    spec = bundle.manifest.tasks[task]
    if spec.kind != "sequence":
        raise UsageError(f"task {task!r} is of kind {spec.kind!r}; bench measures tasks of single texts (sequence)")
    if bundle.manifest.encoder.needs_language and language is None:
        raise UsageError(f"the encoder of {bundle.path} requires a language code; add --language")
    table = read_table([str(file)], text_column=text_column)
    values = [row.get(label_column) for row in table.rows]
    if None in values:
        return Corpus(table.texts, language=language)
    labels = [str(value) for value in values]
    for label, place in zip(labels, table.places, strict=True):
        if label not in spec.labels:
            raise DataError(
                f"{place}: task {task!r} has no label {label!r}; its labels: {', '.join(spec.labels)}; name "
                "another --label-column, or one that does not exist to measure without labels"
            )
    return Corpus(table.texts, labels, language)


def check_labels(tasks: Mapping[str, TaskSpec], bundle: Bundle, task: str, teacher: Path) -> None:
    """Check that a teacher has the task.

    Raises:
        UsageError: It does not have the task, or has other labels.
    """
    expected = bundle.manifest.tasks[task].labels
    if task not in tasks:
        raise UsageError(f"{teacher} has no task {task!r}; name the teacher of this model")
    if set(tasks[task].labels) != set(expected):
        raise UsageError(
            f"task {task!r} has the labels {', '.join(tasks[task].labels)} in {teacher}, but {', '.join(expected)} in "
            f"{bundle.path}; name the teacher of this model"
        )
