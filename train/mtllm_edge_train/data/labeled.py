"""Labeled texts from files and data sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mtllm_edge.errors import DataError
from mtllm_edge.files.columns import LABEL_COLUMN, Columns
from mtllm_edge.inputs import Input, Kind, check_kind
from mtllm_edge_train.data.hub import is_hub_dataset
from mtllm_edge_train.data.tables import Rows, read_rows
from mtllm_edge_train.data.texts import read_file

_DEFAULT_COLUMNS = Columns()


@dataclass(frozen=True)
class LabeledTexts:
    """A training or test set of a task.

    Raises:
        DataError: The number of labels, or of second texts or lists of choices, differs from the number of texts; the
            texts have different numbers of choices, or a label is not the index of a choice.
    """

    texts: list[str]
    labels: list[str]
    """Label of each text; for multiple choice the index of the right choice, ``"0"`` being the first."""
    seconds: Sequence[Sequence[str]] | None = None
    """Second text of each pair, or choices of each text; None for a task of single texts."""

    def __post_init__(self) -> None:
        seconds = self.texts if self.seconds is None else self.seconds
        if not len(self.texts) == len(self.labels) == len(seconds):
            second = "" if self.seconds is None else f", {len(seconds)} second texts or lists of choices"
            raise DataError(f"there are {len(self.texts)} texts, {len(self.labels)} labels{second}; give one of each")
        check_kind(self.inputs, self.kind, "the task")
        if self.kind == "multiple_choice":
            _check_choices(seconds, self.labels, [f"text {index}" for index in range(len(self.texts))])

    @classmethod
    def of(cls, inputs: Sequence[Input], labels: Sequence[str]) -> LabeledTexts:
        """Create a set from inputs of a task and their labels."""
        texts = [item if isinstance(item, str) else item[0] for item in inputs]
        seconds = [item[1] for item in inputs if not isinstance(item, str)]
        return cls(texts, [*labels], seconds or None)

    @property
    def counts(self) -> dict[str, int]:
        """Number of texts per label, labels sorted."""
        return dict(sorted(Counter(self.labels).items()))

    @property
    def inputs(self) -> list[Input]:
        """Inputs of the task."""
        return [*self.texts] if self.seconds is None else [*zip(self.texts, self.seconds, strict=True)]

    @property
    def kind(self) -> Kind:
        """Kind of the task."""
        if self.seconds is None:
            return "sequence"
        return "pair" if all(isinstance(second, str) for second in self.seconds) else "multiple_choice"

    @property
    def summary(self) -> str:
        """Kind, number of texts and counts of labels, for a log line."""
        return f"({self.kind}): {len(self.texts)} texts, {self.counts}"


def read_inputs(
    source: str | Path, *, text_column: str | None = None, columns: Columns = _DEFAULT_COLUMNS
) -> list[Input]:
    """Read what a task reads, without labels: texts (`texts.SUFFIXES`), or pairs, or texts with choices.

    Arguments are those of `read_labeled`, and so are the errors.
    """
    if not is_hub_dataset(source) and Path(source).suffix in (".txt", ".zst"):
        return [*read_file(Path(source), column=text_column)]
    rows = read_rows(source, text_column)
    return rows.inputs(columns.kind(rows.rows[0], str(source)), columns)


def read_labeled(
    source: str | Path,
    *,
    text_column: str | None = None,
    label_column: str = LABEL_COLUMN,
    columns: Columns = _DEFAULT_COLUMNS,
) -> LabeledTexts:
    """Read a .csv, .jsonl or .parquet file, or a data set, of labelled texts, pairs, or texts with choices.

    Args:
        source: The file or, after `hub.HUB`, the data set. Its columns tell the kind of its task.
        text_column: Where the text is; None takes ``text``, else the only column.
        label_column: Where the label is; of choices, the number of the right one, counted from 0. A data set's classes
            are called by their names.
        columns: Where second texts or choices are.

    Raises:
        UsageError: No such file, another suffix, or no such column.
        DataError: Not UTF-8, malformed, an empty or non-text cell, unequal numbers of choices, or a label that is
            the number of none of them; or no such data set.
    """
    rows = read_rows(source, text_column)
    return labeled_texts(rows, columns.kind(rows.rows[0], str(source)), columns, label_column)


def labeled_texts(rows: Rows, kind: Kind, columns: Columns, label_column: str) -> LabeledTexts:
    """What a task of some kind reads of rows, with its labels; errors as for `read_labeled`."""
    inputs = rows.inputs(kind, columns)
    labels = rows.words(label_column, "label")
    if kind == "multiple_choice":
        numbers = {name: str(number) for number, name in enumerate(rows.classes.get(label_column, ()))}
        labels = [numbers.get(label, label) for label in labels]
        _check_choices([item[1] for item in inputs], labels, rows.places)
    return LabeledTexts.of(inputs, labels)


def _check_choices(choices: Sequence[Sequence[str]], labels: Sequence[str], places: Sequence[str]) -> None:
    for own, label, place in zip(choices, labels, places, strict=True):
        if len(own) != len(choices[0]):
            raise DataError(
                f"{place} has {len(own)} choices, {places[0]} has {len(choices[0])}; give all the same number"
            )
        if label not in map(str, range(len(own))):
            raise DataError(
                f"{place} has the label {label!r}, expected the number of the right choice, from 0 to {len(own) - 1}"
            )
