"""Labeled texts from files and data sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mtllm_edge.errors import DataError
from mtllm_edge.files.columns import LABEL_COLUMN, Columns
from mtllm_edge.inputs import Input, Kind, check_kind
from mtllm_edge_train.data.tables import LabeledTable, read_labeled_table

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
    """Read inputs of a task without labels; arguments and errors as for `read_labeled`."""
    table = read_labeled_table(source, text_column)
    return table.inputs(columns.kind(table.rows[0], str(source)), columns)


def read_labeled(
    source: str | Path,
    *,
    text_column: str | None = None,
    label_column: str = LABEL_COLUMN,
    columns: Columns = _DEFAULT_COLUMNS,
) -> LabeledTexts:
    """Read a file or a data set of labeled texts, pairs, or texts with choices.

    Args:
        source: The file, or the data set with a name as in `hub.HUB`. Its columns determine the kind of the task.
        text_column: Column of the text; None takes ``text`` or the only column.
        label_column: Column of the label; for multiple choice the index of the right choice, from 0. Classes of a data
            set are replaced by their names.
        columns: Columns of second texts or choices.

    Raises:
        UsageError: The file is missing or of another type, or a column is missing.
        DataError: A row cannot be read, a cell is empty or no text, the numbers of choices differ, or a label is not
            the index of a choice; or the data set does not exist.
    """
    table = read_labeled_table(source, text_column)
    return labeled_texts(table, columns.kind(table.rows[0], str(source)), columns, label_column)


def labeled_texts(table: LabeledTable, kind: Kind, columns: Columns, label_column: str) -> LabeledTexts:
    """Return the inputs and labels of a table; errors as for `read_labeled`."""
    inputs = table.inputs(kind, columns)
    labels = table.words(label_column, "label")
    if kind == "multiple_choice":
        indices = {name: str(index) for index, name in enumerate(table.classes.get(label_column, ()))}
        labels = [indices.get(label, label) for label in labels]
        _check_choices([item[1] for item in inputs], labels, table.places)
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
