"""Table model of a document and its labels, with filter and sort order.

It filters and sorts a list of row indices. Qt's proxy model requests each cell separately, which takes seconds for
100,000 rows instead of a fraction of one.
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
    """Condition for visible rows; the default accepts all."""

    label: str = ""
    """Required label; empty for all."""
    confidence: float = 0.0
    """Minimum confidence; rows without a label have 0."""
    words: tuple[str, ...] = ()
    """Case-folded words that must all occur in the text."""

    def accepts(self, text: str, label: Label | None) -> bool:
        """Return whether a row is visible."""
        if self.label and (label is None or label.name != self.label):
            return False
        if self.confidence and (label is None or label.confidence < self.confidence):
            return False
        return not self.words or all(word in text.casefold() for word in self.words)


class Table(QAbstractTableModel):
    """Text, label, confidence, and the other columns of a document."""

    def __init__(self) -> None:
        """Create an empty table."""
        super().__init__()
        self.document = Document("", ["text"], [])
        self.labels: list[Label | None] = []
        self.rows: list[int] = []
        """Indices of the visible rows, in display order."""
        self._filter = Filter()
        self._sorted_by: tuple[int, Qt.SortOrder] | None = None
        self.text_column = "text"
        self._headings = ["text", "label", "confidence"]

    def show(self, document: Document, text_column: str) -> None:
        """Show a document without labels."""
        self.beginResetModel()
        self.document, self.text_column = document, text_column
        others = [column for column in document.columns if column != text_column]
        names = free_names(["label", "confidence"], document.columns)  # as in the exported file
        self._headings = [text_column, *names.values(), *others]
        self.labels = [None] * len(document.records)
        self._sorted_by = None
        self.rows = self._visible_rows()
        self.endResetModel()

    def set_labels(self, rows: Sequence[int], labels: Sequence[Label]) -> None:
        """Set the labels of some rows."""
        for row, label in zip(rows, labels, strict=True):
            self.labels[row] = label
        if self._filter != Filter() or self._sorted_by is not None:
            self._update_rows()
        else:
            self.dataChanged.emit(self.index(min(rows), LABEL), self.index(max(rows), CONFIDENCE))

    def clear_labels(self) -> None:
        """Remove all labels."""
        self.labels = [None] * len(self.document.records)
        self._update_rows()

    def filter(self, condition: Filter) -> None:
        """Show the rows that a filter accepts."""
        self._filter = condition
        self._update_rows()

    def texts(self) -> list[str]:
        """Return the texts of the document."""
        return [record[self.text_column] for record in self.document.records]

    def label_counts(self) -> Counter[str]:
        """Return the number of rows with each label."""
        return Counter(label.name for label in self.labels if label is not None)

    def sort(self, column: int, order: Qt.SortOrder = Qt.SortOrder.AscendingOrder) -> None:
        """Sort by a column; -1 restores the order of the document."""
        self._sorted_by = None if column < 0 else (column, order)
        self._update_rows()

    def _update_rows(self) -> None:
        self.beginResetModel()
        self.rows = self._visible_rows()
        self.endResetModel()

    def _visible_rows(self) -> list[int]:
        accepts, records, labels = self._filter.accepts, self.document.records, self.labels
        rows = [row for row, record in enumerate(records) if accepts(record[self.text_column], labels[row])]
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

    # Overrides of QAbstractTableModel

    def rowCount(self, parent: Index = _NO_PARENT) -> int:
        """Return the number of visible rows."""
        return 0 if parent.isValid() else len(self.rows)

    def columnCount(self, parent: Index = _NO_PARENT) -> int:
        """Return the number of columns."""
        return 0 if parent.isValid() else len(self._headings)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return a cell as text, or the confidence as a number in the user role."""
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
        """Return the names of columns, and row numbers of the document from 1."""
        if role != Qt.ItemDataRole.DisplayRole:
            return None
        if orientation == Qt.Orientation.Vertical:
            return self.rows[section] + 1 if section < len(self.rows) else None
        return self._headings[section]
