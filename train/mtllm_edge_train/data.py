"""Texts and labelled texts from files, and the order in which training sees them."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.errors import DataError, UsageError


@dataclass(frozen=True)
class LabelledTexts:
    """A training or test set for sequence classification."""

    texts: list[str]
    labels: list[str]
    """Label of each text."""

    @property
    def counts(self) -> dict[str, int]:
        """Texts per label, labels sorted."""
        return dict(sorted(Counter(self.labels).items()))


def read_texts(path: Path, *, column: str = "text") -> list[str]:
    """Read the non-empty texts of a .txt (one a line), .txt.zst, .parquet, .csv or .jsonl file.

    Raises:
        UsageError: No such file, another suffix, or no such column.
        DataError: Not UTF-8, malformed, or without any text.
    """
    if path.name.endswith((".txt", ".txt.zst")):
        texts = _decode(path).splitlines()
    else:
        texts = [str(row[column]) for row in _read_rows(path, (column,))]
    texts = [text.strip() for text in texts if text.strip()]
    if not texts:
        raise DataError(f"{path} holds no text")
    return texts


def read_labelled(path: Path, *, text_column: str = "text", label_column: str = "label") -> LabelledTexts:
    """Read a .csv, .jsonl or .parquet file of labelled texts.

    Raises:
        UsageError: No such file, another suffix, or no such column.
        DataError: Not UTF-8, malformed, an empty or non-text cell, or fewer than two labels.
    """
    texts: list[str] = []
    labels: list[str] = []
    for number, row in enumerate(_read_rows(path, (text_column, label_column)), start=1):
        text, label = row[text_column], row[label_column]
        if not isinstance(text, str):
            raise DataError(f"{path}, row {number}: column {text_column!r} holds {text!r}, expected a text")
        if not text.strip() or label is None or not str(label).strip():
            raise DataError(f"{path}, row {number}: an empty text or label; fill it in or remove the row")
        texts.append(text.strip())
        labels.append(str(label).strip())
    if len(set(labels)) < 2:
        raise DataError(f"{path} holds {len(texts)} rows with the labels {sorted(set(labels))}; two labels are needed")
    return LabelledTexts(texts, labels)


def _read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    match path.suffix:
        case ".parquet":
            rows, found = _parquet_rows(path)
        case ".csv":
            reader = csv.DictReader(io.StringIO(_decode(path), newline=""))
            rows, found = list(reader), list(reader.fieldnames or ())
        case ".jsonl":
            rows = [_json_row(path, number, line) for number, line in enumerate(_decode(path).splitlines(), 1)]
            found = sorted(set.intersection(*(set(row) for row in rows))) if rows else []
        case suffix:
            raise UsageError(f"{path} has the suffix {suffix!r}; expected .csv, .jsonl, .parquet or, for texts, .txt")
    missing = [column for column in columns if column not in found]
    if missing:
        raise UsageError(f"{path} has no column {missing[0]!r}; it has {', '.join(map(repr, found)) or 'none'}")
    return rows


def _parquet_rows(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    import pyarrow
    import pyarrow.parquet

    _check_exists(path)
    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a readable parquet file ({str(error).splitlines()[0]})") from None
    return table.to_pylist(), list(table.column_names)


def _json_row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}, line {number}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}")
    return row


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"{path} is no file; check the path")


def _decode(path: Path) -> str:
    _check_exists(path)
    data = path.read_bytes()
    if path.suffix == ".zst":
        import zstandard

        try:
            data = zstandard.ZstdDecompressor().stream_reader(data).read()
        except zstandard.ZstdError as error:
            raise DataError(f"{path} is not a readable zstd file ({error})") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from None


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
