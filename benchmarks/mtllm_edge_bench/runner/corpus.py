"""The texts that all contenders read."""

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
    """The texts, and for random models what they would have made of them."""

    texts: Sequence[str]
    labels: Sequence[str] | None = None
    """The right answers, where they are known."""
    language: str | None = None
    english: Sequence[str] | None = None
    """As `Job.english`."""
    written: Sequence[int] | None = None
    """As `Job.written`."""


def read_corpus(
    file: Path, bundle: Bundle, task: str, *, language: str | None, text_column: str | None, label_column: str
) -> Corpus:
    """The texts of a file, with their labels where every row has one.

    Raises:
        UsageError: The task reads something else than single texts, or the encoder must be told the language.
        DataError: A text cannot be used, or a label that the task lacks.
    """
    described = bundle.manifest.tasks[task]
    if described.kind != "sequence":
        raise UsageError(
            f"task {task!r} is of the kind {described.kind!r}; bench measures tasks that read single texts"
        )
    if bundle.manifest.encoder.needs_language and language is None:
        raise UsageError(f"the encoder of {bundle.path} must know the language of the texts; give --language")
    table = read_table([str(file)], text_column=text_column)
    found = [row.get(label_column) for row in table.rows]
    if None in found:
        return Corpus(table.texts, language=language)
    labels = [str(label) for label in found]
    for label, place in zip(labels, table.places, strict=True):
        if label not in described.labels:
            raise DataError(
                f"{place}: task {task!r} has no label {label!r}; its labels: {', '.join(described.labels)}; name the "
                "right --label-column, or one that is not there to measure without labels"
            )
    return Corpus(table.texts, labels, language)


def check_labels(tasks: Mapping[str, TaskSpec], bundle: Bundle, task: str, teacher: Path) -> None:
    """Refuse a teacher of another task.

    Raises:
        UsageError: It lacks the task, or has other labels.
    """
    expected = bundle.manifest.tasks[task].labels
    if task not in tasks:
        raise UsageError(f"{teacher} has no task {task!r}; give the teacher of this model")
    if set(tasks[task].labels) != set(expected):
        raise UsageError(
            f"task {task!r} has the labels {', '.join(tasks[task].labels)} in {teacher}, but {', '.join(expected)} in "
            f"{bundle.path}; give the teacher of this model"
        )
