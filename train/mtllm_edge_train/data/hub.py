"""Data sets of the hub or of a folder, through the library `datasets`: how they are named, and their rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mtllm_edge.errors import DataError, UsageError
from mtllm_edge_train.library_errors import one_line_error

HUB = "hub:"
"""Starts the name of a data set: ``hub:ID``, ``hub:ID:CONFIG`` or ``hub:ID:CONFIG:SPLIT``."""


class DataSet(NamedTuple):
    """One split of a data set, to be read once."""

    rows: Iterator[tuple[str, dict[str, Any]]]
    """The rows with their places, as messages name them."""
    classes: Mapping[str, Sequence[str]]
    """Column that holds numbers of classes -> the names of its classes."""


def is_hub_dataset(name: str | Path) -> bool:
    """Whether a source is a data set and not a file."""
    return str(name).startswith(HUB)


def parse_dataset_name(name: str) -> tuple[str, str | None, str]:
    """ID, configuration and split in the name of a data set; the split is ``train`` unless told.

    Raises:
        UsageError: It has none, or other parts.
    """
    parts = name.removeprefix(HUB).split(":")
    if not parts[0] or len(parts) > 3:
        raise UsageError(f"{name} names no data set; write {HUB}ID, {HUB}ID:CONFIG or {HUB}ID:CONFIG:SPLIT")
    identifier, config, split = [*parts, "", ""][:3]
    return identifier, config or None, split or "train"


def open_dataset(name: str) -> DataSet:
    """Find a data set; its rows are fetched as they are asked for.

    Raises:
        UsageError: The name is none of a data set.
        DataError: There is no such data set, configuration or split, or, later, a row cannot be fetched.
    """
    import datasets

    identifier, config, split = parse_dataset_name(name)
    with one_line_error(
        f"{name} cannot be read", f"check its name, as {HUB}ID:CONFIG:SPLIT, and the connection", DataError
    ):
        data = datasets.load_dataset(identifier, config, split=split, streaming=True)
        features = data.features or {}  # of some formats not known before the rows
        rows = iter(data)
    classes = {column: kind.names for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
    return DataSet(_placed(rows, name), classes)


def _placed(rows: Iterator[dict[str, Any]], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number in itertools.count(1):
        with one_line_error(f"{name} row {number} cannot be read", "check the connection and the data set", DataError):
            row = next(rows, None)
        if row is None:
            return
        yield f"{name} row {number}", row
