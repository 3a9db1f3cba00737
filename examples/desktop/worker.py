"""All that takes time, on a thread of its own: the window asks by signals and is answered by signals."""

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
"""Texts that are labelled before the table shows them. The engines read the texts of a chunk sorted by length."""


class _CancelledError(Exception):
    """The user has had enough."""


class Worker(QObject):
    """One classifier and one document at a time; its slots run on the thread that it was moved to."""

    loaded = Signal(Bundle)
    read = Signal(files.Document)
    advanced = Signal(int, int, float)
    """Texts done, texts in all, seconds since the first."""
    labelled = Signal(object, object)
    """Numbers of rows, and their `files.Label`s."""
    finished = Signal(bool)
    """Whether all texts were labelled."""
    failed = Signal(str)
    """One line."""
    answered = Signal()
    """After all that is said of one request."""

    def __init__(self, threads: int | None = None) -> None:
        """Make a worker without a classifier; `threads` as for `Classifier.load`."""
        super().__init__()
        self.cancelled = threading.Event()
        """Set by the window at any time; looked at between batches."""
        self._threads = threads
        self._classifier: Classifier | None = None

    @Slot(str)
    def load(self, name: str) -> None:
        """Load a bundle in the place of the one before."""
        with self._told():
            self.close()  # two models at once may not fit
            bundle = Bundle.open(name)
            task = next(iter(bundle.manifest.tasks), None)
            self._classifier = Classifier.load(bundle, task=task, threads=self._threads)
            self.loaded.emit(bundle)

    @Slot(str)
    def open(self, path: str) -> None:
        """Read a file."""
        with self._told():
            self.read.emit(files.read(Path(path)))

    @Slot(object, str, str)
    def classify(self, texts: list[str], task: str, language: str) -> None:
        """Label texts; blank ones are left out. An empty `language` is none."""
        with self._told():
            complete = False
            try:
                self._label(texts, task, language or None)
                complete = True
            except _CancelledError:
                pass
            finally:
                self.finished.emit(complete)

    def _label(self, texts: list[str], task: str, language: str | None) -> None:
        assert self._classifier is not None, "the window asks only after `loaded`"
        rows = [row for row, text in enumerate(texts) if text.strip()]
        began, done = time.perf_counter(), 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            self.advanced.emit(done, len(rows), time.perf_counter() - began)
            if self.cancelled.is_set():
                raise _CancelledError

        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            predictions = self._classifier.classify(
                [texts[row] for row in chunk], task=task, language=language, progress=count
            )
            self.labelled.emit(chunk, [files.Label(each.label, each.confidence) for each in predictions])

    @Slot()
    def close(self) -> None:
        """Give the engines' memory back."""
        if self._classifier is not None:
            self._classifier.close()
            self._classifier = None

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Make one line of whatever goes wrong."""
        try:
            yield
        except MtllmError as error:
            self.failed.emit(one_line(error))
        except OSError as error:
            self.failed.emit(f"{error.filename}: {error.strerror}")
        except Exception as error:  # a bug: told in the window, and in full where the program was started
            traceback.print_exc(file=sys.stderr)
            self.failed.emit(f"unexpected {type(error).__name__}: {' '.join(str(error).split())}")
        finally:
            self.answered.emit()
