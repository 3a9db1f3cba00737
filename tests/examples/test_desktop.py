"""The desktop example with simulated user input, on Qt's offscreen platform and with a tiny model."""

from __future__ import annotations

import csv
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mtllm_edge import Classifier
from mtllm_edge.errors import EngineError

pytest.importorskip("PySide6.QtWidgets", reason="PySide6 is not installed (extra [desktop])", exc_type=ImportError)
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import shiboken6
from PySide6.QtCore import QMimeData, QPointF, QSettings, Qt, QUrl
from PySide6.QtGui import QDropEvent
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QStyleOptionViewItem

from examples.desktop import worker as worker_module
from examples.desktop.files import Document, Label, read
from examples.desktop.model import CONFIDENCE, LABEL, TEXT, Filter, Table
from examples.desktop.painting import is_right_to_left
from examples.desktop.window import Window
from tests.fixtures.tiny_bundle import TASKS
from tests.fixtures.tolerances import LLAMA_CPP, assert_probabilities_close

TIMEOUT_S = 60
TEXTS = ["the team is good", "ein Hotel", "хороший матч", "الفندق جيد.", "a, b and c", "der Zug", "bad match", "好"]


@pytest.fixture(scope="module")
def application() -> QApplication:
    return QApplication.instance() or QApplication(["desktop"])  # type: ignore[return-value]


@pytest.fixture
def settings(tmp_path: Path) -> QSettings:
    return QSettings(str(tmp_path / "settings.ini"), QSettings.Format.IniFormat)


@pytest.fixture
def window(application: QApplication, settings: QSettings) -> Iterator[Window]:
    window = Window(settings, threads=1)
    window.show()
    yield window
    window.close()
    shiboken6.delete(window)  # garbage collection would do it on any thread, or after the application has ended


@pytest.fixture
def csv_file(tmp_path: Path) -> Path:
    path = tmp_path / "mails.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *enumerate(TEXTS)])
    return path


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end, "timeout"
        QTest.qWait(10)


def click(button: object) -> None:
    QTest.mouseClick(button, Qt.MouseButton.LeftButton)  # type: ignore[call-overload]


def drop(window: Window, path: Path) -> None:
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(path))])
    buttons, keys = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    window.dropEvent(QDropEvent(QPointF(9, 9), Qt.DropAction.CopyAction, data, buttons, keys))


def labeled(window: Window) -> bool:
    return bool(window.table.labels) and all(window.table.labels) and not window.controls.cancel.isEnabled()


def cells(table: Table, column: int) -> list[str]:
    return [table.data(table.index(row, column)) for row in range(table.rowCount())]


def test_label_filter_and_export_a_file(
    window: Window, settings: QSettings, csv_file: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    controls, table = window.controls, window.table
    assert not controls.run.isEnabled()
    drop(window, tiny_bundle)
    drop(window, csv_file)
    wait(controls.run.isEnabled)
    assert [controls.tasks.itemText(index) for index in range(controls.tasks.count())] == list(TASKS)
    controls.tasks.setCurrentText("topic")
    click(controls.run)
    wait(lambda: labeled(window))
    assert controls.status.text().startswith("done: 8 of 8 texts · ")
    with Classifier.load(tiny_bundle, task="topic", threads=1) as classifier:
        expected = classifier.classify(TEXTS)
    assert cells(table, LABEL) == [prediction.label for prediction in expected]
    assert_probabilities_close(table.labels[3].confidence, expected[3].confidence, LLAMA_CPP)  # type: ignore[union-attr]

    label = controls.labels.itemData(1)
    controls.labels.setCurrentIndex(1)
    controls.labels.activated.emit(1)
    assert set(cells(table, LABEL)) == {label}
    assert controls.shown.text() == f"{table.rowCount()} of 8 texts"
    controls.view.sortByColumn(CONFIDENCE, Qt.SortOrder.DescendingOrder)
    confidences = sorted((prediction.confidence for prediction in expected if prediction.label == label), reverse=True)
    window.export(tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "text", "label", "confidence"]
    assert_probabilities_close([float(row["confidence"]) for row in rows], confidences, LLAMA_CPP)
    assert all(row["text"] == TEXTS[int(row["id"])] and row["label"] == label for row in rows)
    assert settings.value("bundle") == str(tiny_bundle)


def test_the_window_responds_while_the_model_loads(
    window: Window, csv_file: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resume = threading.Event()
    load = Classifier.load

    def slow_load(*arguments: object, **options: object) -> Classifier:
        assert resume.wait(TIMEOUT_S)
        return load(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(worker_module.Classifier, "load", slow_load)
    drop(window, tiny_bundle)
    QTest.keyClicks(window.controls.words, "team")
    assert window.controls.words.text() == "team"
    assert not window.controls.run.isEnabled()
    assert window.controls.status.text() == "loading the model …"
    drop(window, csv_file)
    resume.set()
    wait(window.controls.run.isEnabled)
    wait(lambda: cells(window.table, TEXT) == ["the team is good"])


def test_cancel_between_batches(
    window: Window, csv_file: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "CHUNK", 2)
    drop(window, tiny_bundle)
    drop(window, csv_file)
    wait(window.controls.run.isEnabled)
    reached, resume = threading.Event(), threading.Event()
    classify = Classifier.classify

    def blocking_classify(self: Classifier, texts: list[str], **options: object) -> list[object]:
        if TEXTS[4] in texts:
            reached.set()
            assert resume.wait(TIMEOUT_S)
        return classify(self, texts, **options)  # type: ignore[arg-type,return-value]

    monkeypatch.setattr(worker_module.Classifier, "classify", blocking_classify)
    click(window.controls.run)
    wait(reached.is_set)
    click(window.controls.cancel)
    resume.set()
    wait(window.controls.run.isEnabled)
    assert [label is not None for label in window.table.labels] == [True] * 4 + [False] * 4
    assert window.controls.status.text().startswith("canceled: 6 of 8 texts")
    click(window.controls.run)
    wait(lambda: labeled(window))


def test_errors_are_one_line(
    window: Window, csv_file: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = window.controls.status

    def check_error(*words: str) -> None:
        wait(lambda: all(word in status.text() for word in words))
        assert status.property("error")
        assert "\n" not in status.text()

    drop(window, tmp_path)
    check_error(str(tmp_path), "Is a directory")
    window.load(str(tmp_path))
    check_error("holds no bundle.json")
    (tmp_path / "latin.csv").write_bytes(b"text\nf\xfcr\n")
    drop(window, tmp_path / "latin.csv")
    check_error("latin.csv is not UTF-8 text")
    (tmp_path / "empty.txt").write_text("\n")
    drop(window, tmp_path / "empty.txt")
    check_error("empty.txt has no text")

    drop(window, tiny_bundle)
    drop(window, csv_file)
    wait(window.controls.run.isEnabled)
    monkeypatch.setattr(worker_module.Classifier, "classify", _refuse)
    click(window.controls.run)
    check_error("llm.gguf: no memory")
    wait(window.controls.run.isEnabled)
    window.export(tmp_path / "nowhere" / "out.csv")
    check_error("does not exist")


def _refuse(*_: object, **__: object) -> None:
    raise EngineError("llm.gguf:\nno memory")


def test_pasted_texts_and_blank_cells(window: Window, tiny_bundle: Path, tmp_path: Path) -> None:
    QApplication.clipboard().setText("ein Hotel\n\nder Zug\n")
    window.paste()
    assert window.table.texts() == ["ein Hotel", "der Zug"]
    (tmp_path / "gaps.csv").write_text("note,body\n1,good match\n2,\n3,bad match\n", encoding="utf-8")
    drop(window, tmp_path / "gaps.csv")
    drop(window, tiny_bundle)
    wait(window.controls.run.isEnabled)
    assert window.controls.columns.currentText() == "body"
    click(window.controls.run)
    wait(lambda: window.controls.status.text().startswith("done: 2 of 2"))
    assert [label is None for label in window.table.labels] == [False, True, False]


def test_right_to_left_texts_are_painted_right_to_left(window: Window, csv_file: Path) -> None:
    drop(window, csv_file)
    wait(lambda: window.table.rowCount() == len(TEXTS))
    delegate = window.controls.view.itemDelegate()
    for row, text in enumerate(TEXTS):
        option = QStyleOptionViewItem()
        delegate.initStyleOption(option, window.table.index(row, TEXT))
        expected = Qt.LayoutDirection.RightToLeft if row == 3 else Qt.LayoutDirection.LeftToRight
        assert (option.text, option.direction) == (text, expected)
    assert [is_right_to_left(text) for text in ("1. שלום", "…", "OK سلام", "")] == [True, False, False, False]


def test_filter_and_sort_a_large_table(application: QApplication) -> None:
    rng = random.Random(4)
    records = [{"text": f"Text {rng.randrange(10**6)} über Züge", "day": str(row % 7)} for row in range(100_000)]
    table = Table()
    table.show(Document("large.csv", ["text", "day"], records), "text")
    assert (table.rowCount(), table.columnCount()) == (100_000, 4)
    names = ("a", "b", "c")
    table.set_labels(range(100_000), [Label(names[row % 3], row % 100 / 100) for row in range(100_000)])
    table.filter(Filter("b", 0.5, ("züge", "99")))
    expected = [
        row for row in range(100_000) if row % 3 == 1 and row % 100 >= 50 and "99" in records[row]["text"].casefold()
    ]
    assert table.rows == expected
    table.sort(3)
    assert table.rows == sorted(expected, key=lambda row: row % 7)
    table.filter(Filter())
    table.sort(-1)
    assert table.rows == list(range(100_000))
    assert table.headerData(5, Qt.Orientation.Vertical) == 6


def test_an_existing_label_column_is_kept(tmp_path: Path, application: QApplication) -> None:
    (tmp_path / "gold.csv").write_text("label;text\nsports;a match\n", encoding="utf-8")
    table = Table()
    document = read(tmp_path / "gold.csv")
    table.show(document, document.text_column)
    table.set_labels([0], [Label("travel", 0.5)])
    headings = [table.headerData(column, Qt.Orientation.Horizontal) for column in range(table.columnCount())]
    assert headings == ["text", "predicted_label", "confidence", "label"]
    assert [table.data(table.index(0, column)) for column in range(4)] == ["a match", "travel", "0.50", "sports"]


@pytest.mark.parametrize(("bundle", "code"), [("tiny", 0), ("nowhere", 1)])
def test_the_program_exports_without_interaction(
    tiny_bundle: Path, csv_file: Path, tmp_path: Path, bundle: str, code: int
) -> None:
    folder = str(tiny_bundle) if bundle == "tiny" else str(tmp_path / bundle)
    options = ["--bundle", folder, "--task", "topic", "--threads", "1", "--export", str(tmp_path / "out.csv")]
    child = subprocess.run(
        [sys.executable, "-m", "examples.desktop", str(csv_file), *options],
        env=os.environ | {"QT_QPA_PLATFORM": "offscreen", "XDG_CONFIG_HOME": str(tmp_path / "config")},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert child.returncode == code, child.stderr
    if code == 0:
        assert len(read(tmp_path / "out.csv").records) == len(TEXTS)
        assert (tmp_path / "config" / "mtllm-edge" / "desktop.ini").exists()
    else:
        assert "Traceback" not in child.stderr
        assert [line.startswith("error: ") for line in child.stderr.splitlines()].count(True) == 1
