"""Data sets of the hub or of a folder, read with the library `datasets`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mtllm_edge.errors import DataError, UsageError
from mtllm_edge_train.library_errors import one_line_error

HUB = "hub:"
"""Prefix of the name of a data set: ``hub:ID``, ``hub:ID:CONFIG`` or ``hub:ID:CONFIG:SPLIT``."""


class DataSet(NamedTuple):
    """The rows of a split, which can be read once."""

    rows: Iterator[tuple[str, dict[str, Any]]]
    """Place and cells of each row; messages show the place."""
    classes: Mapping[str, Sequence[str]]
    """Column of class indices -> class names."""


def is_hub_dataset(name: str | Path) -> bool:
    """Return whether a source is a data set and not a file."""
    return str(name).startswith(HUB)


def parse_dataset_name(name: str) -> tuple[str, str | None, str]:
    """Return the id, configuration and split of a data set; the default split is ``train``.

    Raises:
        UsageError: The name has other parts.
    """
    parts = name.removeprefix(HUB).split(":")
    if not parts[0] or len(parts) > 3:
        raise UsageError(f"{name} names no data set; write {HUB}ID, {HUB}ID:CONFIG or {HUB}ID:CONFIG:SPLIT")
    identifier, config, split = [*parts, "", ""][:3]
    return identifier, config or None, split or "train"


def open_dataset(name: str) -> DataSet:
    """Open a data set; its rows are fetched on demand.

    Raises:
        UsageError: The name has other parts.
        DataError: The data set, configuration or split does not exist, or, later, a row cannot be fetched.
    """
    import datasets

    identifier, config, split = parse_dataset_name(name)
    with one_line_error(
        f"{name} cannot be read", f"check its name, as {HUB}ID:CONFIG:SPLIT, and the connection", DataError
    ):
        data = datasets.load_dataset(identifier, config, split=split, streaming=True)
        features = data.features or {}  # unknown for some formats
        rows = iter(data)
    classes = {column: kind.names for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
    return DataSet(_with_places(rows, name), classes)


def _with_places(rows: Iterator[dict[str, Any]], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number in itertools.count(1):
        with one_line_error(f"{name} row {number} cannot be read", "check the connection and the data set", DataError):
            row = next(rows, None)
        if row is None:
            return
        yield f"{name} row {number}", row
