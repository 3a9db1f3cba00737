"""Widgets of the window and their layout; `window` has their behavior."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PySide6.QtCore import QAbstractTableModel, Qt
from PySide6.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QDoubleSpinBox,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QLineEdit,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QTableView,
    QVBoxLayout,
    QWidget,
)

from examples.desktop.files import Document
from examples.desktop.model import CONFIDENCE, LABEL, TEXT
from examples.desktop.painting import BarDelegate, TextDelegate

ALL_LABELS = "all labels"
_HEIGHT = 30
_STYLE = """
QTableView { border: 1px solid palette(mid); gridline-color: transparent; }
QHeaderView::section { padding: 4px 6px; border: none; border-bottom: 1px solid palette(mid); }
QLabel[error="true"] { color: #b3261e; font-weight: bold; }
"""


class Controls(QWidget):
    """All widgets of the window."""

    def __init__(self, model: QAbstractTableModel) -> None:
        """Create the widgets around a table view of `model`."""
        super().__init__()
        self.bundles, self.choose = QComboBox(), QPushButton("Choose model …")
        self.tasks, self.languages = QComboBox(), QComboBox()
        self.file, self.paste = QPushButton("Open texts …"), QPushButton("Paste")
        self.columns = QComboBox()
        self.run, self.cancel, self.export = QPushButton("Label"), QPushButton("Cancel"), QPushButton("Export …")
        self.words = QLineEdit(placeholderText="words in the text", clearButtonEnabled=True)
        self.labels, self.confidence = QComboBox(), QDoubleSpinBox(maximum=1.0, singleStep=0.05, prefix="from ")
        self.view = _table_view(model)
        self.bar, self.status, self.shown = QProgressBar(textVisible=False), QLabel(), QLabel()

        self.bundles.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.labels.addItem(ALL_LABELS, "")
        self.labels.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToContents)
        self.columns.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToContents)
        self.run.setDefault(True)
        self.status.setWordWrap(True)
        self.status.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.bar.setFixedWidth(180)
        self._progress = ""
        *top_rows, status_row = [
            _row(QLabel("Model"), self.bundles, self.choose, QLabel("Task"), self.tasks, self.languages),
            _row(self.file, self.paste, QLabel("Text in"), self.columns, None, self.run, self.cancel),
            _row(QLabel("Show"), self.words, self.labels, QLabel("Confidence"), self.confidence, self.export),
            _row(self.bar, self.status, self.shown),
        ]
        status_row.setStretchFactor(self.status, 1)
        layout = QVBoxLayout(self)
        for row in top_rows:
            layout.addLayout(row)
        layout.addWidget(self.view, 1)
        layout.addLayout(status_row)
        self.setStyleSheet(_STYLE)
        self.languages.hide()
        self.show_status("choose a model, and drop a file of texts here")
        self.enable(labeling=False, ready=False, rows=0)

    def show_status(self, message: str, *, error: bool = False) -> None:
        """Show a line in the status bar."""
        self.status.setProperty("error", error)
        self.status.style().unpolish(self.status)
        self.status.style().polish(self.status)
        self.status.setText(message)

    def enable(self, *, labeling: bool, ready: bool, rows: int) -> None:
        """Enable the controls for the current state."""
        for control in (self.bundles, self.choose, self.tasks, self.languages, self.file, self.paste, self.columns):
            control.setEnabled(not labeling)
        self.run.setEnabled(ready and not labeling)
        self.cancel.setEnabled(labeling)
        self.export.setEnabled(rows > 0 and not labeling)
        self.bar.setVisible(labeling)

    def select_bundle(self, name: str) -> None:
        """Select a bundle in the list, and add it if necessary."""
        if self.bundles.findData(name) < 0:
            self.bundles.addItem(Path(name).name, name)
        self.bundles.setCurrentIndex(self.bundles.findData(name))
        self.bundles.setToolTip(name)

    def set_choices(self, tasks: Sequence[str], languages: Sequence[str], task: str | None) -> None:
        """Fill the lists of tasks and languages."""
        self.tasks.clear()
        self.tasks.addItems(list(tasks))
        if task in tasks:
            self.tasks.setCurrentText(task)
        self.languages.clear()
        self.languages.addItems(list(languages))
        self.languages.setVisible(bool(languages))

    def show_document(self, document: Document) -> None:
        """Show columns and size of a document."""
        self.columns.clear()
        self.columns.addItems(document.columns)
        self.columns.setCurrentText(document.text_column)
        self.show_status(f"{len(document.records):,} texts in {document.name}")

    def unsort(self) -> None:
        """Restore the order of the file."""
        self.view.horizontalHeader().setSortIndicator(-1, Qt.SortOrder.AscendingOrder)

    def set_label_counts(self, counts: Counter[str]) -> None:
        """Fill the list of labels, the most frequent first."""
        selected = self.labels.currentData()
        self.labels.clear()
        self.labels.addItem(ALL_LABELS, "")
        for name, count in counts.most_common():
            self.labels.addItem(f"{name} ({count:,})", name)
        self.labels.setCurrentIndex(max(0, self.labels.findData(selected)))

    def start_progress(self) -> None:
        """Show that labeling has started."""
        self._progress = "no text"
        self.bar.setMaximum(0)  # unknown length
        self.show_status("labeling the first texts …")

    def show_progress(self, done: int, total: int, seconds: float) -> None:
        """Show the progress."""
        rate = done / max(seconds, 1e-9)
        self.bar.setMaximum(total)
        self.bar.setValue(done)
        self._progress = f"{done:,} of {total:,} texts · {rate:,.0f} texts/s"
        self.show_status(f"{self._progress} · {_duration((total - done) / rate)} left")

    def finish_progress(self, complete: bool) -> None:
        """Show that labeling has ended."""
        self.show_status(f"{'done' if complete else 'canceled'}: {self._progress}")


def _table_view(model: QAbstractTableModel) -> QTableView:
    view = QTableView()
    view.setModel(model)
    view.setItemDelegate(TextDelegate(view))
    view.setItemDelegateForColumn(CONFIDENCE, BarDelegate(view))
    view.setAlternatingRowColors(True)
    view.setShowGrid(False)
    view.setWordWrap(False)
    view.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    view.verticalHeader().setDefaultSectionSize(28)
    header = view.horizontalHeader()
    header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
    header.setSectionResizeMode(TEXT, QHeaderView.ResizeMode.Stretch)
    header.setDefaultSectionSize(120)
    header.resizeSection(LABEL, 160)
    header.setSortIndicator(-1, Qt.SortOrder.AscendingOrder)
    header.setSortIndicatorClearable(True)
    view.setSortingEnabled(True)
    return view


def _row(*widgets: QWidget | None) -> QHBoxLayout:
    """Lay out widgets side by side; None is a stretching gap."""
    row = QHBoxLayout()
    for widget in widgets:
        if widget is None:
            row.addStretch(1)
            continue
        row.addWidget(widget)
        if isinstance(widget, (QPushButton, QComboBox, QLineEdit, QDoubleSpinBox)):
            widget.setMinimumHeight(_HEIGHT)  # padding in a style sheet would break the frames of some widgets
    return row


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
