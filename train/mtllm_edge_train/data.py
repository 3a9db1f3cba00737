"""Labelled texts from files, and the order in which training sees them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.columns import Columns, inputs_of
from mtllm_edge.errors import DataError, UsageError
from mtllm_edge.kinds import Input, Kind
from mtllm_edge.sheets import Sheet, check_text, read_sheet
from mtllm_edge_train.texts import read_file

_USUAL = Columns()


@dataclass(frozen=True)
class LabelledTexts:
    """A training or test set of one task."""

    texts: list[str]
    labels: list[str]
    """Label of each text; of choices, the number of the right one, the first being ``"0"``."""
    seconds: Sequence[Sequence[str]] | None = None
    """The second text of each pair, or the choices of each text; None where the task reads texts alone."""

    @property
    def counts(self) -> dict[str, int]:
        """Texts per label, labels sorted."""
        return dict(sorted(Counter(self.labels).items()))

    @property
    def inputs(self) -> list[Input]:
        """What the task reads."""
        return [*self.texts] if self.seconds is None else [*zip(self.texts, self.seconds, strict=True)]

    @property
    def kind(self) -> Kind:
        """The kind of the task."""
        if self.seconds is None:
            return "sequence"
        return "pair" if all(isinstance(second, str) for second in self.seconds) else "multiple_choice"


def read_inputs(path: Path, *, text_column: str | None = None, columns: Columns = _USUAL) -> list[Input]:
    """Read what a task reads, without labels: texts (`texts.SUFFIXES`), or pairs, or texts with choices.

    Arguments are those of `read_labelled`, and so are the errors.
    """
    if path.suffix in (".txt", ".zst"):
        return [*read_file(path, column=text_column)]
    sheet = read_rows(path, text_column)
    return inputs_of(sheet, columns.kind(sheet.records[0], str(path)), columns)


def read_labelled(
    path: Path, *, text_column: str | None = None, label_column: str = "label", columns: Columns = _USUAL
) -> LabelledTexts:
    """Read a .csv, .jsonl or .parquet file of labelled texts, pairs, or texts with choices.

    Args:
        path: The file. Its columns tell the kind of its task.
        text_column: Where the text is; None takes ``text``, else the only column.
        label_column: Where the label is; of choices, the number of the right one, counted from 0.
        columns: Where second texts or choices are.

    Raises:
        UsageError: No such file, another suffix, or no such column.
        DataError: Not UTF-8, malformed, an empty or non-text cell, unequal numbers of choices, or a label that is
            the number of none of them.
    """
    sheet = read_rows(path, text_column)
    kind = columns.kind(sheet.records[0], str(path))
    seconds = None if kind == "sequence" else [item[1] for item in inputs_of(sheet, kind, columns)]
    places = (f"{path}: text {number}" for number in range(1, len(sheet.records) + 1))
    labels = [label_of(row, label_column, place) for row, place in zip(sheet.records, places, strict=True)]
    if kind == "multiple_choice" and seconds is not None:
        _check_choices(seconds, labels, sheet.places)
    return LabelledTexts(sheet.texts, labels, seconds)


def _check_choices(choices: Sequence[Sequence[str]], labels: Sequence[str], places: Sequence[str]) -> None:
    n_choices = len(choices[0])
    for own, label, place in zip(choices, labels, places, strict=True):
        if len(own) != n_choices:
            raise DataError(f"{place} has {len(own)} choices, {places[0]} has {n_choices}; give all the same number")
        if label not in map(str, range(n_choices)):
            raise DataError(
                f"{place} has the label {label!r}, expected the number of the right choice, from 0 to {n_choices - 1}"
            )


def label_of(row: Mapping[str, Any], column: str, place: str) -> str:
    """The label in one row of a file; `place` is for messages.

    Raises:
        UsageError: No such column.
        DataError: The cell is no label.
    """
    if column not in row:
        raise UsageError(f"{place} has no column {column!r}, only {', '.join(map(repr, row))}")
    label = row[column]
    if not isinstance(label, (str, int)) or isinstance(label, bool) or not str(label).strip():
        raise DataError(f"{place} has the label {label!r}, expected a word or a whole number")
    return str(label).strip()


def read_rows(path: Path, column: str | None) -> Sheet:
    """Texts of a .csv, .jsonl or .parquet file, and all columns of each; errors as for `read_labelled`."""
    if path.suffix == ".parquet":
        return _read_parquet(path, column or "text")
    if path.suffix not in (".csv", ".jsonl"):
        raise UsageError(f"{path} has the suffix {path.suffix!r}; expected .csv, .jsonl or .parquet")
    _check_exists(path)
    return read_sheet([str(path)], read_stdin=bytes, text_column=column)


def _read_parquet(path: Path, column: str) -> Sheet:
    import pyarrow
    import pyarrow.parquet

    _check_exists(path)
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable parquet file ({str(error).splitlines()[0]})") from None
    if not rows:
        raise DataError(f"{path} holds no rows")
    if column not in rows[0]:
        raise UsageError(f"{path} has no column {column!r}, only {', '.join(map(repr, rows[0]))}")
    places = [f"{path} row {number}" for number in range(1, len(rows) + 1)]
    for place, row in zip(places, rows, strict=True):
        check_text(row[column], f"{place}, column {column!r},", advice="fill it or remove the row")
    return Sheet([row[column] for row in rows], rows, places, skipped=0)


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"{path} is no file; check the path")


class BatchOrder:
    """A reproducible order of batches: batch `step` depends on the seed alone, so a resumed run goes on as it would.

    Every epoch is shuffled anew; within a window of batches, texts of similar length go together, which saves padding.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, seed: int, window: int = 32) -> None:
        """Plan batches over items of the given lengths (any unit)."""
        self._lengths = np.asarray(lengths)
        self._size = min(batch_size, len(lengths))
        self._seed, self._window = seed, window
        self.batches_per_epoch = len(lengths) // self._size
        self._epoch = -1
        self._batches: list[NDArray[np.int64]] = []

    def __getitem__(self, step: int) -> NDArray[np.int64]:
        """Item indices of one batch; an epoch's odd remainder is left to the next shuffle."""
        epoch, index = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, list(self._shuffled(epoch))
        return self._batches[index]

    def _shuffled(self, epoch: int) -> Iterator[NDArray[np.int64]]:
        rng = np.random.default_rng((self._seed, epoch))
        order = rng.permutation(len(self._lengths))[: self.batches_per_epoch * self._size]
        span = self._size * self._window
        batches: list[NDArray[np.int64]] = []
        for start in range(0, len(order), span):
            part = order[start : start + span]
            part = part[np.argsort(self._lengths[part], kind="stable")]
            batches.extend(part.reshape(-1, self._size))
        for index in rng.permutation(len(batches)):
            yield batches[index]
