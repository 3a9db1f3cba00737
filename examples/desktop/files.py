"""Read documents, and write them with their labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtllm_edge.errors import DataError
from mtllm_edge.files.atomic import atomic_file
from mtllm_edge.files.sources import open_source
from mtllm_edge.files.writers import free_names, write_csv

_SAMPLE = 100
_TABLES = (".csv", ".tsv")


@dataclass(frozen=True)
class Label:
    """Prediction for a text."""

    name: str
    confidence: float


@dataclass(frozen=True)
class Document:
    """Table of texts in memory."""

    name: str
    columns: list[str]
    records: list[dict[str, str]]

    @property
    def text_column(self) -> str:
        """Column ``text``, or else the one with the longest cells."""
        if "text" in self.columns:
            return "text"
        sample = self.records[:_SAMPLE]
        return max(self.columns, key=lambda column: sum(len(record[column]) for record in sample))


def read(path: Path) -> Document:
    """Read a csv file with a header, or any other file as one text per line.

    Raises:
        DataError: The file is not UTF-8, not valid csv, or empty.
        OSError: The file cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() in _TABLES:
                records = [row for _, row in open_source(str(path), suffix=".csv").strict_rows()]
                return Document(path.name, list(records[0]), records)
            return from_lines(path.name, file)
    except UnicodeDecodeError:
        raise DataError(f"{path.name} is not UTF-8 text; save it as UTF-8, or as csv UTF-8 in a spreadsheet") from None


def from_lines(name: str, lines: Sequence[str] | Iterator[str]) -> Document:
    """Return a document with one text per non-blank line.

    Raises:
        DataError: All lines are blank.
    """
    records = [{"text": line.strip()} for line in lines if line.strip()]
    if not records:
        raise DataError(f"{name} has no text; expected one text per line")
    return Document(name, ["text"], records)


def write(path: Path, document: Document, rows: Sequence[int], labels: Sequence[Label | None]) -> None:
    """Write rows of a document as csv with their labels. The file is replaced atomically.

    Args:
        path: The file.
        document: The document.
        rows: Indices of the rows to write, in order.
        labels: Label of each row of the document; None writes empty cells.

    Raises:
        OSError: The file cannot be written.
    """
    names = free_names(["label", "confidence"], document.columns)

    def with_label(row: int) -> dict[str, object]:
        label = labels[row]
        values = {} if label is None else {"label": label.name, "confidence": round(label.confidence, 6)}
        return document.records[row] | {names[name]: value for name, value in values.items()}

    with atomic_file(path, force=True) as file:
        write_csv(file, [*document.columns, *names.values()], map(with_label, rows))
