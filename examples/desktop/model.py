"""The table behind the view: a document and its labels, of which the filtered rows are shown in the chosen order.

It filters and sorts its own list of row numbers. Qt's proxy model would ask for every cell on its own: 100,000 rows
take seconds there, and a fraction of one here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import QAbstractTableModel, QModelIndex, QPersistentModelIndex, Qt

from examples.desktop.files import Document, Label
from mtllm_edge.files.writers import free_names

TEXT, LABEL, CONFIDENCE = 0, 1, 2
_NO_PARENT = QModelIndex()
Index = QModelIndex | QPersistentModelIndex


@dataclass(frozen=True)
class Filter:
    """Which rows are shown; the default shows all."""

    label: str = ""
    """The only label; empty for all."""
    confidence: float = 0.0
    """The least; a row without a label has 0."""
    words: tuple[str, ...] = ()
    """All of them occur in the text, capitals or not; casefolded."""

    def admits(self, text: str, label: Label | None) -> bool:
        """Whether a row is shown."""
        if self.label and (label is None or label.name != self.label):
            return False
        if self.confidence and (label is None or label.confidence < self.confidence):
            return False
        return not self.words or all(word in text.casefold() for word in self.words)


class Table(QAbstractTableModel):
    """Columns: text, label, confidence, and the document's others."""

    def __init__(self) -> None:
        """Make an empty table."""
        super().__init__()
        self.document = Document("", ["text"], [])
        self.labels: list[Label | None] = []
        self.rows: list[int] = []
        """Numbers of the rows that are shown, in their order."""
        self._filter = Filter()
        self._sorted_by: tuple[int, Qt.SortOrder] | None = None
        self.text_column = "text"
        self._headings = ["text", "label", "confidence"]

    def show(self, document: Document, text_column: str) -> None:
        """Put a document in, without labels."""
        self.beginResetModel()
        self.document, self.text_column = document, text_column
        others = [column for column in document.columns if column != text_column]
        names = free_names(["label", "confidence"], document.columns)  # as in the file that is written
        self._headings = [text_column, *names.values(), *others]
        self.labels = [None] * len(document.records)
        self._sorted_by = None
        self.rows = self._shown()
        self.endResetModel()

    def label(self, rows: Sequence[int], labels: Sequence[Label]) -> None:
        """Put labels in."""
        for row, label in zip(rows, labels, strict=True):
            self.labels[row] = label
        if self._filter != Filter() or self._sorted_by is not None:
            self._arrange()
        else:
            self.dataChanged.emit(self.index(min(rows), LABEL), self.index(max(rows), CONFIDENCE))

    def forget_labels(self) -> None:
        """Take all labels out."""
        self.labels = [None] * len(self.document.records)
        self._arrange()

    def filter(self, wanted: Filter) -> None:
        """Show the rows that a filter admits."""
        self._filter = wanted
        self._arrange()

    def texts(self) -> list[str]:
        """Texts of all rows of the document, in its order."""
        return [record[self.text_column] for record in self.document.records]

    def counts(self) -> Counter[str]:
        """How many rows have which label."""
        return Counter(label.name for label in self.labels if label is not None)

    def sort(self, column: int, order: Qt.SortOrder = Qt.SortOrder.AscendingOrder) -> None:
        """Sort by a column; by none (-1), the document's order comes back."""
        self._sorted_by = None if column < 0 else (column, order)
        self._arrange()

    def _arrange(self) -> None:
        self.beginResetModel()
        self.rows = self._shown()
        self.endResetModel()

    def _shown(self) -> list[int]:
        admits, records, labels = self._filter.admits, self.document.records, self.labels
        rows = [row for row, record in enumerate(records) if admits(record[self.text_column], labels[row])]
        if self._sorted_by is not None:
            column, order = self._sorted_by
            rows.sort(key=lambda row: self._sort_key(row, column), reverse=order == Qt.SortOrder.DescendingOrder)
        return rows

    def _sort_key(self, row: int, column: int) -> str | float:
        label = self.labels[row]
        if column == CONFIDENCE:
            return 0.0 if label is None else label.confidence
        return self._cell(row, column).casefold()

    def _cell(self, row: int, column: int) -> str:
        label = self.labels[row]
        if column == LABEL:
            return "" if label is None else label.name
        if column == CONFIDENCE:
            return "" if label is None else f"{label.confidence:.2f}"
        return self.document.records[row][self._headings[column]]

    # What Qt asks a model for

    def rowCount(self, parent: Index = _NO_PARENT) -> int:
        """Rows that are shown."""
        return 0 if parent.isValid() else len(self.rows)

    def columnCount(self, parent: Index = _NO_PARENT) -> int:
        """Columns, the document's own included."""
        return 0 if parent.isValid() else len(self._headings)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """A cell, as words and, in the role of the user, as a number."""
        if not index.isValid():
            return None
        row, column = self.rows[index.row()], index.column()
        if role == Qt.ItemDataRole.DisplayRole or (role == Qt.ItemDataRole.ToolTipRole and column == TEXT):
            return self._cell(row, column)
        if role == Qt.ItemDataRole.UserRole and column == CONFIDENCE:
            label = self.labels[row]
            return None if label is None else label.confidence
        return None

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """The columns' names, and the rows' numbers in the document from 1."""
        if role != Qt.ItemDataRole.DisplayRole:
            return None
        if orientation == Qt.Orientation.Vertical:
            return self.rows[section] + 1 if section < len(self.rows) else None
        return self._headings[section]
