"""The main window: connects the controls, the table and the worker."""

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
"""Delay before a changed filter is applied."""


class Window(QMainWindow):
    """Main window: choose a model, open a file, label, filter, export."""

    load_requested = Signal(str)
    open_requested = Signal(str)
    classify_requested = Signal(object, str, str)

    def __init__(self, settings: QSettings, *, threads: int | None = None) -> None:
        """Create the window, and start the thread of its worker.

        Args:
            settings: Stores the last bundle and folder.
            threads: CPU threads of the engines; None uses one per available core, at most 8.
        """
        super().__init__()
        self.table = Table()
        self.controls = Controls(self.table)
        self.error = ""
        """Last error message."""
        self._settings = settings
        self._pending_requests = 0
        self._labeling = self._ready = False
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
        """Load the given, last or first installed bundle, and open a file."""
        self._task = task
        installed = list(installed_bundles())
        for installed_name in installed:
            self.controls.bundles.addItem(installed_name, installed_name)
        if name := bundle or str(self._settings.value(_BUNDLE, "")) or next(iter(installed), ""):
            self.load(name)
        if file is not None:
            self.open(file)

    def load(self, bundle: str) -> None:
        """Load a bundle by folder or name."""
        self._ready = False
        self.controls.select_bundle(bundle)
        self.controls.show_status("loading the model …")
        self._request(self.load_requested, bundle)

    def open(self, path: Path) -> None:
        """Open a file of texts."""
        self._settings.setValue(_FOLDER, str(path.parent))
        self.controls.show_status(f"reading {path.name} …")
        self._request(self.open_requested, str(path))

    def classify(self) -> None:
        """Label all texts of the document."""
        controls = self.controls
        self._labeling = True
        self.worker.canceled.clear()
        self.table.clear_labels()
        controls.start_progress()
        task, language = controls.tasks.currentText(), controls.languages.currentText()
        self._request(self.classify_requested, self.table.texts(), task, language)

    def export(self, path: Path) -> None:
        """Write the visible rows in display order."""
        try:
            files.write(path, self.table.document, self.table.rows, self.table.labels)
        except MtllmError as error:
            self._fail(str(error))
        except OSError as error:
            self._fail(f"{path}: {error.strerror}")
        else:
            self.controls.show_status(f"{len(self.table.rows):,} rows written to {path}")

    def label_and_export(self, path: Path) -> None:
        """Label the document once it and the model are loaded, write it, and close; also close after an error."""
        self._export = path

    def paste(self) -> None:
        """Open the lines of the clipboard as texts."""
        try:
            self._show_document(files.from_lines("the clipboard", QApplication.clipboard().text().splitlines()))
        except MtllmError as error:
            self._fail(str(error))

    # User actions

    def _connect_controls(self) -> None:
        controls = self.controls
        controls.bundles.activated.connect(lambda _: self.load(controls.bundles.currentData()))
        controls.choose.clicked.connect(self._choose_bundle)
        controls.file.clicked.connect(self._choose_file)
        controls.paste.clicked.connect(self.paste)
        controls.columns.activated.connect(
            lambda _: self._set_document(self.table.document, controls.columns.currentText())
        )
        controls.run.clicked.connect(self.classify)
        controls.cancel.clicked.connect(self.worker.canceled.set)
        controls.export.clicked.connect(self._choose_export)
        controls.words.textChanged.connect(lambda _: self._typing.start())
        controls.confidence.valueChanged.connect(lambda _: self._typing.start())
        controls.labels.activated.connect(lambda _: self._filter())
        self._typing.timeout.connect(self._filter)
        self.table.modelReset.connect(self._refresh)
        QShortcut(QKeySequence.StandardKey.Paste, controls.view).activated.connect(self.paste)

    def _choose_bundle(self) -> None:
        last = str(self._settings.value(_BUNDLE, ""))
        if folder := QFileDialog.getExistingDirectory(self, "Folder of the bundle", last):
            self.load(folder)

    def _choose_file(self) -> None:
        last, kinds = str(self._settings.value(_FOLDER, "")), "Texts (*.csv *.tsv *.txt);;All files (*)"
        path, _ = QFileDialog.getOpenFileName(self, "File of texts", last, kinds)
        if path:
            self.open(Path(path))

    def _choose_export(self) -> None:
        path, _ = QFileDialog.getSaveFileName(self, "Export visible rows", "labeled.csv", "csv (*.csv)")
        if path:
            self.export(Path(path))

    def _filter(self) -> None:
        controls = self.controls
        words = tuple(controls.words.text().casefold().split())
        self.table.filter(Filter(controls.labels.currentData() or "", controls.confidence.value(), words))

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        """Accept files and folders."""
        if event.mimeData().hasUrls() and not self._labeling:
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        """Open a file of texts, or load the folder of a bundle."""
        path = Path(event.mimeData().urls()[0].toLocalFile())
        if (path / MANIFEST_NAME).exists():
            self.load(str(path))
        else:
            self.open(path)

    def closeEvent(self, event: QCloseEvent) -> None:
        """Stop after the current batch, and free the memory of the engines."""
        self.hide()
        self.worker.canceled.set()
        self._thread.quit()
        self._thread.wait()
        super().closeEvent(event)

    # Requests to the worker and its results

    def _connect_worker(self) -> None:
        """Connect signals to bound methods, so that Qt runs them on the window's thread."""
        worker = self.worker
        self.load_requested.connect(worker.load)
        self.open_requested.connect(worker.open)
        self.classify_requested.connect(worker.classify)
        worker.bundle_loaded.connect(self._use_bundle)
        worker.document_loaded.connect(self._show_document)
        worker.progressed.connect(self.controls.show_progress)
        worker.labeled.connect(self.table.set_labels)
        worker.finished.connect(self._finish)
        worker.failed.connect(self._fail)
        worker.request_done.connect(self._finish_request)
        self._thread.finished.connect(worker.close, Qt.ConnectionType.DirectConnection)

    def _request(self, signal: SignalInstance, *arguments: object) -> None:
        self._pending_requests += 1
        self._refresh()
        signal.emit(*arguments)

    def _finish_request(self) -> None:
        self._pending_requests -= 1
        self._refresh()
        if self._export and self.controls.run.isEnabled():
            self.classify()

    def _use_bundle(self, bundle: Bundle) -> None:
        tasks = [name for name, task in bundle.manifest.tasks.items() if task.kind == "sequence"]
        languages = bundle.manifest.languages if bundle.manifest.encoder.needs_language else ()
        self._settings.setValue(_BUNDLE, self.controls.bundles.currentData())
        self._ready = bool(tasks)
        self.controls.set_choices(tasks, languages, self._task)
        self.controls.show_status("the model is ready" if tasks else "the model has no task for single texts")

    def _show_document(self, document: files.Document) -> None:
        self.controls.show_document(document)
        self._set_document(document, document.text_column)

    def _set_document(self, document: files.Document, text_column: str) -> None:
        self.table.show(document, text_column)
        self.controls.unsort()
        self.controls.set_label_counts(self.table.label_counts())
        self._filter()

    def _finish(self, complete: bool) -> None:
        self._labeling = False
        self.controls.set_label_counts(self.table.label_counts())
        self.controls.finish_progress(complete)
        self._filter()
        if self._export and complete:
            self.export(self._export)
            self._export = None
            self.close()

    def _fail(self, message: str) -> None:
        self.error = message
        self.controls.show_status(message, error=True)
        if self._export:
            self._export = None
            self.close()

    def _refresh(self) -> None:
        rows = len(self.table.labels)
        ready = self._ready and rows > 0 and not self._pending_requests
        self.controls.enable(labeling=self._labeling, ready=ready, rows=rows)
        self.controls.shown.setText(f"{len(self.table.rows):,} of {rows:,} texts" if rows else "")
