"""Files in and out: what a document is, how it is read, and how the labelled one is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtllm_edge.errors import DataError
from mtllm_edge.files.atomic import atomic_file
from mtllm_edge.files.rows import csv_records
from mtllm_edge.files.writers import free_names, write_csv

_SAMPLE = 100
_TABLES = (".csv", ".tsv")


@dataclass(frozen=True)
class Label:
    """What the classifier says of a text."""

    name: str
    confidence: float


@dataclass(frozen=True)
class Document:
    """A table of texts, read whole."""

    name: str
    columns: list[str]
    records: list[dict[str, str]]

    @property
    def text_column(self) -> str:
        """The column of the texts, as far as can be told: ``text``, or the one with the longest cells."""
        if "text" in self.columns:
            return "text"
        sample = self.records[:_SAMPLE]
        return max(self.columns, key=lambda column: sum(len(record[column]) for record in sample))


def read(path: Path) -> Document:
    """Read a csv with a header, or any other file as a text per line.

    Raises:
        DataError: It is no UTF-8, no valid csv, or empty.
        OSError: It cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() in _TABLES:
                records = [record for _, record in csv_records(file, path.name) if record is not None]
                return Document(path.name, list(records[0]), records)
            return from_lines(path.name, file)
    except UnicodeDecodeError:
        raise DataError(f"{path.name} is not UTF-8 text; save it as UTF-8, or as csv UTF-8 in a spreadsheet") from None


def from_lines(name: str, lines: Sequence[str] | Iterator[str]) -> Document:
    """A document of one column, of the lines that are not blank.

    Raises:
        DataError: There are none.
    """
    records = [{"text": line.strip()} for line in lines if line.strip()]
    if not records:
        raise DataError(f"{name} holds no text; a text per line is expected")
    return Document(name, ["text"], records)


def write(path: Path, document: Document, rows: Sequence[int], labels: Sequence[Label | None]) -> None:
    """Write some rows of a document as csv, its own columns first, whole or not at all.

    Args:
        path: The file; an existing one is replaced.
        document: The document.
        rows: Numbers of its rows, in the order in which they are written.
        labels: The label of every row of the document; where there is none, the cells are left empty.

    Raises:
        OSError: It cannot be written.
    """
    names = free_names(["label", "confidence"], document.columns)

    def labelled(row: int) -> dict[str, object]:
        label = labels[row]
        found = {} if label is None else {"label": label.name, "confidence": round(label.confidence, 6)}
        return document.records[row] | {names[name]: value for name, value in found.items()}

    with atomic_file(path, force=True) as file:
        write_csv(file, [*document.columns, *names.values()], map(labelled, rows))
