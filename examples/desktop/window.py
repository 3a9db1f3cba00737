"""The window: what the user picks, what happens then, and what is shown of it."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QSettings, Qt, QThread, QTimer, Signal, SignalInstance
from PySide6.QtGui import QCloseEvent, QDragEnterEvent, QDropEvent, QKeySequence, QShortcut
from PySide6.QtWidgets import QApplication, QFileDialog, QMainWindow

from examples.desktop import files
from examples.desktop.layout import Controls
from examples.desktop.model import Filter, Table
from examples.desktop.worker import Worker
from mtllm_edge import Bundle, MtllmError
from mtllm_edge.bundle.installed import installed_bundles
from mtllm_edge.bundle.manifest import MANIFEST_NAME

_BUNDLE, _FOLDER = "bundle", "folder"
_TYPING_MS = 200
"""Pause after which a changed filter is applied."""


class Window(QMainWindow):
    """Pick a model, drop a file, watch, filter, export."""

    asked_to_load = Signal(str)
    asked_to_open = Signal(str)
    asked_to_classify = Signal(object, str, str)

    def __init__(self, settings: QSettings, *, threads: int | None = None) -> None:
        """Build the window and start its worker's thread.

        Args:
            settings: Where the last bundle and folder are remembered.
            threads: CPU threads of the engines; None takes what suits the machine.
        """
        super().__init__()
        self.table = Table()
        self.controls = Controls(self.table)
        self.error = ""
        """The last message of an error."""
        self._settings = settings
        self._unanswered = 0
        self._labelling = self._ready = False
        self._task: str | None = None
        self._export: Path | None = None
        self._typing = QTimer(self, singleShot=True, interval=_TYPING_MS)
        self._thread = QThread(self)
        self.worker = Worker(threads)
        self.worker.moveToThread(self._thread)
        self._connect_worker()
        self._connect_controls()
        self._thread.start()
        self.setAcceptDrops(True)
        self.setCentralWidget(self.controls)
        self.setWindowTitle("Texts to labels")
        self.resize(1120, 720)

    def start(self, bundle: str | None, task: str | None, file: Path | None) -> None:
        """Open what was named, or the last bundle, or an installed one."""
        self._task = task
        installed = list(installed_bundles())
        for name in installed:
            self.controls.bundles.addItem(name, name)
        if first := bundle or str(self._settings.value(_BUNDLE, "")) or next(iter(installed), ""):
            self.load(first)
        if file is not None:
            self.open(file)

    def load(self, bundle: str) -> None:
        """Load a bundle, by its folder or name."""
        self._ready = False
        self.controls.name_bundle(bundle)
        self.controls.tell("loading the model …")
        self._ask(self.asked_to_load, bundle)

    def open(self, path: Path) -> None:
        """Read a file of texts."""
        self._settings.setValue(_FOLDER, str(path.parent))
        self.controls.tell(f"reading {path.name} …")
        self._ask(self.asked_to_open, str(path))

    def classify(self) -> None:
        """Label all texts of the document."""
        controls = self.controls
        self._labelling = True
        self.worker.cancelled.clear()
        self.table.forget_labels()
        controls.begin()
        task, language = controls.tasks.currentText(), controls.languages.currentText()
        self._ask(self.asked_to_classify, self.table.texts(), task, language)

    def export(self, path: Path) -> None:
        """Write the rows that are shown, in the order in which they are."""
        try:
            files.write(path, self.table.document, self.table.rows, self.table.labels)
        except MtllmError as error:
            self._fail(str(error))
        except OSError as error:
            self._fail(f"{path}: {error.strerror}")
        else:
            self.controls.tell(f"{len(self.table.rows):,} rows written to {path}")

    def label_and_export(self, path: Path) -> None:
        """Label the document as soon as it and the model are there, write it, and close; an error closes, too."""
        self._export = path

    def paste(self) -> None:
        """Take the clipboard's lines as texts."""
        try:
            self._show(files.from_lines("the clipboard", QApplication.clipboard().text().splitlines()))
        except MtllmError as error:
            self._fail(str(error))

    # What the user does

    def _connect_controls(self) -> None:
        controls = self.controls
        controls.bundles.activated.connect(lambda _: self.load(controls.bundles.currentData()))
        controls.choose.clicked.connect(self._choose_bundle)
        controls.file.clicked.connect(self._choose_file)
        controls.paste.clicked.connect(self.paste)
        controls.columns.activated.connect(lambda _: self._put(self.table.document, controls.columns.currentText()))
        controls.run.clicked.connect(self.classify)
        controls.cancel.clicked.connect(self.worker.cancelled.set)
        controls.export.clicked.connect(self._choose_export)
        controls.words.textChanged.connect(lambda _: self._typing.start())
        controls.confidence.valueChanged.connect(lambda _: self._typing.start())
        controls.labels.activated.connect(lambda _: self._filter())
        self._typing.timeout.connect(self._filter)
        self.table.modelReset.connect(self._refresh)
        QShortcut(QKeySequence.StandardKey.Paste, controls.view).activated.connect(self.paste)

    def _choose_bundle(self) -> None:
        last = str(self._settings.value(_BUNDLE, ""))
        if folder := QFileDialog.getExistingDirectory(self, "The bundle's folder", last):
            self.load(folder)

    def _choose_file(self) -> None:
        last, kinds = str(self._settings.value(_FOLDER, "")), "Texts (*.csv *.tsv *.txt);;All files (*)"
        path, _ = QFileDialog.getOpenFileName(self, "A file of texts", last, kinds)
        if path:
            self.open(Path(path))

    def _choose_export(self) -> None:
        path, _ = QFileDialog.getSaveFileName(self, "Write what is shown", "labelled.csv", "csv (*.csv)")
        if path:
            self.export(Path(path))

    def _filter(self) -> None:
        controls = self.controls
        words = tuple(controls.words.text().casefold().split())
        self.table.filter(Filter(controls.labels.currentData() or "", controls.confidence.value(), words))

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        """Take files and folders."""
        if event.mimeData().hasUrls() and not self._labelling:
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        """Open a file of texts; the folder of a bundle is loaded."""
        path = Path(event.mimeData().urls()[0].toLocalFile())
        if (path / MANIFEST_NAME).exists():
            self.load(str(path))
        else:
            self.open(path)

    def closeEvent(self, event: QCloseEvent) -> None:
        """Stop between two batches, and give the engines' memory back."""
        self.hide()
        self.worker.cancelled.set()
        self._thread.quit()
        self._thread.wait()
        super().closeEvent(event)

    # What the worker is asked and answers

    def _connect_worker(self) -> None:
        """Its signals go to methods of this object, so that Qt runs them on this object's thread."""
        worker = self.worker
        self.asked_to_load.connect(worker.load)
        self.asked_to_open.connect(worker.open)
        self.asked_to_classify.connect(worker.classify)
        worker.loaded.connect(self._use)
        worker.read.connect(self._show)
        worker.advanced.connect(self.controls.advance)
        worker.labelled.connect(self.table.label)
        worker.finished.connect(self._finish)
        worker.failed.connect(self._fail)
        worker.answered.connect(self._count_answer)
        self._thread.finished.connect(worker.close, Qt.ConnectionType.DirectConnection)

    def _ask(self, signal: SignalInstance, *arguments: object) -> None:
        self._unanswered += 1
        self._refresh()
        signal.emit(*arguments)

    def _count_answer(self) -> None:
        self._unanswered -= 1
        self._refresh()
        if self._export and self.controls.run.isEnabled():
            self.classify()

    def _use(self, bundle: Bundle) -> None:
        tasks = [name for name, task in bundle.manifest.tasks.items() if task.kind == "sequence"]
        languages = bundle.manifest.languages if bundle.manifest.encoder.needs_language else ()
        self._settings.setValue(_BUNDLE, self.controls.bundles.currentData())
        self._ready = bool(tasks)
        self.controls.offer(tasks, languages, self._task)
        self.controls.tell("the model is ready" if tasks else "the model has no task that reads single texts")

    def _show(self, document: files.Document) -> None:
        self.controls.show_document(document)
        self._put(document, document.text_column)

    def _put(self, document: files.Document, text_column: str) -> None:
        self.table.show(document, text_column)
        self.controls.unsort()
        self.controls.count_labels(self.table.counts())
        self._filter()

    def _finish(self, complete: bool) -> None:
        self._labelling = False
        self.controls.count_labels(self.table.counts())
        self.controls.finish(complete)
        self._filter()
        if self._export and complete:
            self.export(self._export)
            self._export = None
            self.close()

    def _fail(self, message: str) -> None:
        self.error = message
        self.controls.tell(message, error=True)
        if self._export:
            self._export = None
            self.close()

    def _refresh(self) -> None:
        rows = len(self.table.labels)
        ready = self._ready and rows > 0 and not self._unanswered
        self.controls.enable(labelling=self._labelling, ready=ready, rows=rows)
        self.controls.shown.setText(f"{len(self.table.rows):,} of {rows:,} texts" if rows else "")
