"""Batch jobs with languages per row, windows of long texts, and abstention."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet
import pytest

from mtllm_edge import Classifier
from tests.fixtures.cli_result import Result, Run
from tests.fixtures.interruption import Stop
from tests.fixtures.tolerances import LLAMA_CPP, assert_probabilities_close

CODES = ("deu_Latn", "eng_Latn", "swh_Latn", "zho_Hans")
LANGUAGES = ["eng_Latn", "German", "sw", "zh-CN", ""]
READ_AS = ["eng_Latn", "deu_Latn", "swh_Latn", "zho_Hans", "deu_Latn"]
"""With `--lang de` for the row that names none."""
UNKNOWN, ROWS, THRESHOLD = 13, 40, 0.9
LONG = "the team is good and the match was bad " * 20
OPTIONS = ("--language-column", "lang", "--lang", "de", "--long", "pool")


@pytest.fixture(scope="module")
def language_bundle(tiny_variant: Callable[..., Path]) -> Path:
    """A bundle with an encoder that requires a language code, like NLLB."""
    return tiny_variant(languages=CODES)


@pytest.fixture
def classify(run: Run, language_bundle: Path) -> Iterator[Run]:
    """Run `classify` on a file with the same text in several languages, and one row with an unknown language."""
    with Path("in.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "lang"])
        for number in range(ROWS):
            language = "Klingonese" if number == UNKNOWN else LANGUAGES[number % 5]
            writer.writerow([number, text_of(number), language])

    def classify(*arguments: object, output: str = "out.csv") -> Result:
        return run("classify", "-b", language_bundle, "-t", "topic", "in.csv", "-o", output, *OPTIONS, *arguments)

    yield classify
    assert not list(Path().glob(".*")), "a journal remains"


def text_of(number: int) -> str:
    return f"{LONG}{number // 5}" if number == 3 else f"the team is good {number // 5}"


def rows_of(path: str) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_languages_windows_and_abstention_in_a_resumed_job(classify: Run, language_bundle: Path, stop: Stop) -> None:
    stop.after(2, KeyboardInterrupt())
    assert classify("--threshold", THRESHOLD).code == 130
    assert "(--threshold was 0.9, not 0.8)" in classify("--threshold", 0.8).err
    result = classify("--threshold", THRESHOLD)
    assert result.err.startswith("going on after 21 rows of an interrupted run\n"), "16 texts, 4 repeated, 1 bad"
    rows = rows_of("out.csv")
    assert list(rows[0]) == [
        *("id", "text", "lang", "label", "confidence", "truncated", "language", "windows", "abstained")
    ]
    numbers = [number for number in range(ROWS) if number != UNKNOWN]
    assert [int(row["id"]) for row in rows] == numbers
    assert [row["language"] for row in rows] == [READ_AS[number % 5] for number in numbers]
    with Classifier.load(language_bundle, task="topic") as classifier:
        expected = classifier.classify(
            [text_of(number) for number in numbers],
            language=[READ_AS[number % 5] for number in numbers],
            long_texts="pool",
            threshold=THRESHOLD,
        )
    for row, prediction in zip(rows, expected, strict=True):
        assert_probabilities_close(float(row["confidence"]), prediction.confidence, LLAMA_CPP)
        assert int(row["windows"]) == prediction.windows
        assert row["truncated"] == "false"
        assert row["label"] == prediction.label
        assert (row["abstained"] == "true") == (row["label"] == "unsure") == (float(row["confidence"]) < THRESHOLD)
    assert [int(row["id"]) for row in rows if int(row["windows"]) > 1] == [3]
    unsure = [row["abstained"] for row in rows].count("true")
    assert 0 < unsure < len(rows)
    assert "note: 1 text longer than " in result.err
    assert f"note: unsure of {unsure} text" in result.err
    summary = [line.split()[:2] for line in result.err.splitlines() if line.startswith(CODES)]
    assert summary == [["deu_Latn", "16"], ["eng_Latn", "8"], ["swh_Latn", "8"], ["zho_Hans", "7"]]


def test_a_row_with_an_unknown_language_is_rejected(classify: Run) -> None:
    result = classify(output="out.parquet")
    assert result.code == 0
    assert "note: 1 row rejected, see out.rejected.csv; the first: in.csv row 15, " in result.err
    (rejected,) = rows_of("out.rejected.csv")
    assert rejected["line"] == str(UNKNOWN + 2)
    assert rejected["reason"].startswith("column 'lang': unknown language 'Klingonese'; ")
    table = pyarrow.parquet.read_table("out.parquet")
    assert table.num_rows == ROWS - 1
    assert table.schema.field("windows").type == pyarrow.int64()
    assert set(table.column("language").to_pylist()) == set(CODES)


def test_results_are_cached_per_language(classify: Run) -> None:
    assert classify().code == 0
    confidences = {row["language"]: row["confidence"] for row in rows_of("out.csv") if int(row["id"]) in range(5, 10)}
    assert len(set(confidences.values())) == len(CODES)


def test_a_strict_job_stops_at_an_unknown_language(classify: Run) -> None:
    result = classify("--strict")
    assert result.code == 1
    assert result.err.startswith("error: in.csv row 15, column 'lang': unknown language 'Klingonese'; ")
    assert not Path("out.csv").exists()
