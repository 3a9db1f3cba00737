"""Worker for everything slow, on its own thread; it communicates with the window by signals."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PySide6.QtCore import QObject, Signal, Slot

from examples.desktop import files
from mtllm_edge import Bundle, Classifier, MtllmError
from mtllm_edge.safe_text import one_line

CHUNK = 512
"""Texts per update of the table. The engines sort the texts of a chunk by length."""


class _CanceledError(Exception):
    """The user has canceled the labeling."""


class Worker(QObject):
    """Loads bundles and documents and labels texts, on the thread that it was moved to."""

    bundle_loaded = Signal(Bundle)
    document_loaded = Signal(files.Document)
    progressed = Signal(int, int, float)
    """Labeled texts, total texts, elapsed seconds."""
    labeled = Signal(object, object)
    """Row indices and their `files.Label`s."""
    finished = Signal(bool)
    """Whether all texts were labeled."""
    failed = Signal(str)
    """Error message of one line."""
    request_done = Signal()
    """Emitted last for each request."""

    def __init__(self, threads: int | None = None) -> None:
        """Create a worker without a classifier; `threads` as for `Classifier.load`."""
        super().__init__()
        self.canceled = threading.Event()
        """Set by the window at any time; checked between batches."""
        self._threads = threads
        self._classifier: Classifier | None = None

    @Slot(str)
    def load(self, name: str) -> None:
        """Load a bundle, and unload the previous one first."""
        with self._errors_reported():
            self.close()  # two models may not fit into memory
            bundle = Bundle.open(name)
            task = next(iter(bundle.manifest.tasks), None)
            self._classifier = Classifier.load(bundle, task=task, threads=self._threads)
            self.bundle_loaded.emit(bundle)

    @Slot(str)
    def open(self, path: str) -> None:
        """Read a file."""
        with self._errors_reported():
            self.document_loaded.emit(files.read(Path(path)))

    @Slot(object, str, str)
    def classify(self, texts: list[str], task: str, language: str) -> None:
        """Label all texts that are not blank. An empty `language` means None."""
        with self._errors_reported():
            complete = False
            try:
                self._label(texts, task, language or None)
                complete = True
            except _CanceledError:
                pass
            finally:
                self.finished.emit(complete)

    def _label(self, texts: list[str], task: str, language: str | None) -> None:
        assert self._classifier is not None, "the window waits for `bundle_loaded`"
        rows = [row for row, text in enumerate(texts) if text.strip()]
        started, done = time.perf_counter(), 0

        def report(count: int) -> None:
            nonlocal done
            done += count
            self.progressed.emit(done, len(rows), time.perf_counter() - started)
            if self.canceled.is_set():
                raise _CanceledError

        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            predictions = self._classifier.classify(
                [texts[row] for row in chunk], task=task, language=language, progress=report
            )
            self.labeled.emit(
                chunk, [files.Label(prediction.label, prediction.confidence) for prediction in predictions]
            )

    @Slot()
    def close(self) -> None:
        """Free the memory of the engines."""
        if self._classifier is not None:
            self._classifier.close()
            self._classifier = None

    @contextmanager
    def _errors_reported(self) -> Iterator[None]:
        """Report any error as one line."""
        try:
            yield
        except MtllmError as error:
            self.failed.emit(one_line(error))
        except OSError as error:
            self.failed.emit(f"{error.filename}: {error.strerror}")
        except Exception as error:  # a bug: the window shows one line, stderr has the traceback
            traceback.print_exc(file=sys.stderr)
            self.failed.emit(f"unexpected {type(error).__name__}: {' '.join(str(error).split())}")
        finally:
            self.request_done.emit()
