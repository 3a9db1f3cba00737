"""Labeled texts on the command line: the input of fit and calibrate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mtllm_edge import console
from mtllm_edge.errors import UsageError
from mtllm_edge.files.tables import Table, read_table

_SUFFIXES = (".csv", ".jsonl")


def read_labeled(files: Sequence[str], text_column: str | None) -> Table:
    """Read csv and jsonl files of labeled texts. Errors as for `read_table`; UsageError for another suffix."""
    for name in files:
        if Path(name).suffix.lower() not in _SUFFIXES:
            raise UsageError(f"{name} should end in {' or '.join(_SUFFIXES)}: a file with a text and a label per row")
    return read_table(files, text_column=text_column)


def note_repeats(number: int) -> None:
    """Print the number of rows left out because another row has the same text and label."""
    if number:
        console.note(f"note: {console.count(number, 'row')} left out that repeat text and label of another")
