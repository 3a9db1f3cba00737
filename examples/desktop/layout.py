"""The window's widgets and where they stand; what they do is in `window`."""

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
    """The widgets by name, in a page."""

    def __init__(self, model: QAbstractTableModel) -> None:
        """Make the page, around a table that shows `model`."""
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
        *above, below = [
            _row(QLabel("Model"), self.bundles, self.choose, QLabel("Task"), self.tasks, self.languages),
            _row(self.file, self.paste, QLabel("Text in"), self.columns, None, self.run, self.cancel),
            _row(QLabel("Show"), self.words, self.labels, QLabel("Confidence"), self.confidence, self.export),
            _row(self.bar, self.status, self.shown),
        ]
        below.setStretchFactor(self.status, 1)
        layout = QVBoxLayout(self)
        for row in above:
            layout.addLayout(row)
        layout.addWidget(self.view, 1)
        layout.addLayout(below)
        self.setStyleSheet(_STYLE)
        self.languages.hide()
        self.tell("choose a model, and drop a file of texts here")
        self.enable(labelling=False, ready=False, rows=0)

    def tell(self, message: str, *, error: bool = False) -> None:
        """Say one line at the bottom."""
        self.status.setProperty("error", error)
        self.status.style().unpolish(self.status)
        self.status.style().polish(self.status)
        self.status.setText(message)

    def enable(self, *, labelling: bool, ready: bool, rows: int) -> None:
        """Leave only those controls that make sense now."""
        for control in (self.bundles, self.choose, self.tasks, self.languages, self.file, self.paste, self.columns):
            control.setEnabled(not labelling)
        self.run.setEnabled(ready and not labelling)
        self.cancel.setEnabled(labelling)
        self.export.setEnabled(rows > 0 and not labelling)
        self.bar.setVisible(labelling)

    def name_bundle(self, name: str) -> None:
        """Show a bundle in the list, by its folder's name."""
        if self.bundles.findData(name) < 0:
            self.bundles.addItem(Path(name).name, name)
        self.bundles.setCurrentIndex(self.bundles.findData(name))
        self.bundles.setToolTip(name)

    def offer(self, tasks: Sequence[str], languages: Sequence[str], task: str | None) -> None:
        """Put a bundle's tasks and languages into their lists."""
        self.tasks.clear()
        self.tasks.addItems(list(tasks))
        if task in tasks:
            self.tasks.setCurrentText(task)
        self.languages.clear()
        self.languages.addItems(list(languages))
        self.languages.setVisible(bool(languages))

    def show_document(self, document: Document) -> None:
        """Show what was read."""
        self.columns.clear()
        self.columns.addItems(document.columns)
        self.columns.setCurrentText(document.text_column)
        self.tell(f"{len(document.records):,} texts in {document.name}")

    def unsort(self) -> None:
        """Go back to the order of the file."""
        self.view.horizontalHeader().setSortIndicator(-1, Qt.SortOrder.AscendingOrder)

    def count_labels(self, counts: Counter[str]) -> None:
        """Offer the labels that were given, the most frequent first."""
        chosen = self.labels.currentData()
        self.labels.clear()
        self.labels.addItem(ALL_LABELS, "")
        for name, count in counts.most_common():
            self.labels.addItem(f"{name} ({count:,})", name)
        self.labels.setCurrentIndex(max(0, self.labels.findData(chosen)))

    def begin(self) -> None:
        """Show that work begins."""
        self._progress = "no text"
        self.bar.setMaximum(0)  # of unknown length
        self.tell("reading the first texts …")

    def advance(self, done: int, total: int, seconds: float) -> None:
        """Show how far the work is."""
        rate = done / max(seconds, 1e-9)
        self.bar.setMaximum(total)
        self.bar.setValue(done)
        self._progress = f"{done:,} of {total:,} texts · {rate:,.0f} texts/s"
        self.tell(f"{self._progress} · {_duration((total - done) / rate)} left")

    def finish(self, complete: bool) -> None:
        """Say that the work has ended."""
        self.tell(f"{'done' if complete else 'cancelled'}: {self._progress}")


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
    """Widgets side by side; None is a gap that grows."""
    row = QHBoxLayout()
    for widget in widgets:
        if widget is None:
            row.addStretch(1)
            continue
        row.addWidget(widget)
        if isinstance(widget, (QPushButton, QComboBox, QLineEdit, QDoubleSpinBox)):
            widget.setMinimumHeight(_HEIGHT)  # a style sheet's padding would break the frames of some
    return row


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
