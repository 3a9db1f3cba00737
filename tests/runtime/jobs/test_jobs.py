"""Batch jobs on the command line: formats, rejected rows, repeated texts, and resuming after an interruption."""

from __future__ import annotations

import contextlib
import csv
import datetime
import io
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import openpyxl
import pyarrow
import pyarrow.parquet
import pytest

from mtllm_edge import Classifier, Embedder
from mtllm_edge.errors import DataError, EngineError
from mtllm_edge.inputs import Input
from mtllm_edge.jobs import runner
from mtllm_edge.jobs.journal import Journal, open_journal
from mtllm_edge.jobs.spec import Job
from mtllm_edge.tasks.prediction import Prediction
from tests.fixtures.cli_result import Run
from tests.fixtures.interruption import Stop
from tests.fixtures.tolerances import LLAMA_CPP, assert_vectors_close
from tests.tools.kill_jobs import Harness, kill_jobs

COLUMNS = ["label", "confidence", "truncated"]


@pytest.fixture
def classify(run: Run, tiny_bundle: Path) -> Run:
    """Run `classify` on the task `topic` of the tiny bundle."""
    return lambda *arguments, stdin=b"": run("classify", "-b", tiny_bundle, "-t", "topic", *arguments, stdin=stdin)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[list[Input]]:
    """The texts of each call of the classifier."""
    calls: list[list[Input]] = []
    classify = Classifier.classify

    def spy(self: Classifier, texts: Sequence[Input], **options: Any) -> list[Prediction]:
        calls.append(list(texts))
        return classify(self, texts, **options)

    monkeypatch.setattr(Classifier, "classify", spy)
    return calls


def rows_of(path: str) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: str, count: int) -> list[str]:
    texts = [f"the team is good {number}" for number in range(count)]
    Path(path).write_text("id,text\n" + "".join(f"{number},{text}\n" for number, text in enumerate(texts)))
    return texts


def names() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


def test_all_formats_have_the_same_content(classify: Run) -> None:
    Path("in.jsonl").write_text('{"n": 1, "text": "one", "tags": ["a"]}\n{"text": "=1+1", "n": 2.5, "more": null}\n')
    for form in ("csv", "tsv", "jsonl", "parquet", "xlsx"):
        assert classify("in.jsonl", "-o", f"out.{form}").code == 0
    expected = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [list(row) for row in expected] == [
        ["n", "text", "tags", *COLUMNS, "probabilities"],
        ["text", "n", "more", *COLUMNS, "probabilities"],
    ]
    header = ["n", "text", "tags", "more", *COLUMNS]
    flat = [["1", "one", '["a"]', ""], ["2.5", "=1+1", "", ""]]
    result_cells = [[str(row["label"]), str(row["confidence"]), "false"] for row in expected]
    for form, delimiter in (("csv", ","), ("tsv", "\t")):
        rows = list(csv.reader(io.StringIO(Path(f"out.{form}").read_text()), delimiter=delimiter))
        assert rows == [header, *(cells + answer for cells, answer in zip(flat, result_cells, strict=True))]
    table = pyarrow.parquet.read_table("out.parquet")
    assert table.column_names == [*header, "probabilities"]
    assert table.schema.field("n").type == pyarrow.float64()
    assert table.column("tags").to_pylist() == ['["a"]', None]
    assert table.column("confidence").to_pylist() == [row["confidence"] for row in expected]
    assert [dict(row) for row in table.column("probabilities").to_pylist()] == [
        row["probabilities"] for row in expected
    ]
    sheet = list(openpyxl.load_workbook("out.xlsx").active.iter_rows())
    assert [cell.value for cell in sheet[0]] == header
    assert [cell.value for cell in sheet[2]][:2] == [2.5, "=1+1"]
    assert sheet[2][1].data_type == "s", "a text, no formula"
    assert [cell.value for cell in sheet[1]][4:] == [expected[0][name] for name in COLUMNS]


def test_parquet_keeps_the_types_of_parquet(classify: Run) -> None:
    table = pyarrow.table(
        {
            "id": pyarrow.array([1, 2], pyarrow.int16()),
            "text": pyarrow.array(["a", "b"], pyarrow.large_string()),
            "price": pyarrow.array([Decimal("1.50"), None]),
            "day": [datetime.date(2020, 1, 2), None],
            "at": pyarrow.array([1, None], pyarrow.timestamp("ns", "UTC")),
            "opens": pyarrow.array([1, None], pyarrow.time64("ns")),
            "took": pyarrow.array([1, None], pyarrow.duration("s")),
            "deep": [{"a": [1, 2], "at": datetime.datetime(2020, 1, 2, 3)}, None],
            "raw": [b"\xff\x00", None],
        }
    )
    pyarrow.parquet.write_table(table, "in.parquet")
    assert classify("in.parquet", "-o", "out.parquet").code == 0
    output = pyarrow.parquet.read_table("out.parquet")
    assert output.select(table.column_names).equals(table)
    assert classify("in.parquet", "-o", "out.csv").code == 0
    assert {name: rows_of("out.csv")[0][name] for name in ("price", "day", "at")} == {
        "price": "1.50",
        "day": "2020-01-02",
        "at": "1970-01-01 00:00:00.000000001Z",
    }
    assert classify("in.parquet", "-o", "out.jsonl").code == 0
    assert classify("in.parquet", "-o", "out.xlsx").code == 0


@pytest.mark.parametrize(
    ("table", "error"),
    [
        (
            pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], ["text", "text"]),
            "error: in.parquet has several columns called 'text'; rename all but one\n",
        ),
        (
            pyarrow.table({"text": ["a"], "at": pyarrow.array([10**18], pyarrow.timestamp("us"))}),
            "error: in.parquet is not a readable parquet file (",
        ),
    ],
)
def test_parquet_that_python_cannot_represent(classify: Run, table: pyarrow.Table, error: str) -> None:
    pyarrow.parquet.write_table(table, "in.parquet")
    result = classify("in.parquet", "-o", "out.csv")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert result.err.startswith(error)


def test_late_columns_and_name_conflicts(classify: Run) -> None:
    Path("in.jsonl").write_text('{"text": "a"}\n' * 200 + '{"text": "b", "label": "mine"}\n')
    result = classify("in.jsonl", "-o", "out.csv")
    rows = rows_of("out.csv")
    assert list(rows[0]) == ["text", "label", "predicted_label", "confidence", "truncated"]
    assert (rows[0]["label"], rows[200]["label"]) == ("", "mine")
    assert rows[200]["predicted_label"] in ("science", "sports", "travel")
    assert "note: the input has a column 'label'; the new one is called 'predicted_label'\n" in result.err


def test_unreadable_rows_are_rejected(classify: Run) -> None:
    Path("a.csv").write_bytes(b'id,text\n1,one\n2,caf\xe9\n3,\n4,"four\n4",x\n5,five\n')
    Path("b.jsonl").write_bytes(b'{"text": 6}\n{"text": "seven"}\nnonsense\n')
    Path("empty.txt").write_bytes(b"")
    result = classify("a.csv", "b.jsonl", "empty.txt", "-o", "out.csv")
    assert result.code == 0
    assert [row["text"] for row in rows_of("out.csv")] == ["one", "five", "seven"]
    rejected = rows_of("out.rejected.csv")
    assert [(row["file"], row["line"], row["row"]) for row in rejected] == [
        ("a.csv", "3", "2,caf\\xe9"),
        ("a.csv", "4", '{"id":"3","text":""}'),
        ("a.csv", "5", '4,"four\n4",x'),
        ("b.jsonl", "1", '{"text":6}'),
        ("b.jsonl", "3", "nonsense"),
    ]
    assert rejected[0]["reason"] == "is not valid UTF-8 (byte 0xe9); save it as UTF-8"
    assert rejected[1]["reason"] == "column 'text', is empty; fill it or remove it"
    assert "note: 1 file without texts left out, the first: empty.txt holds no text" in result.err
    assert "note: 5 rows rejected, see out.rejected.csv; the first: a.csv row 3 is not valid UTF-8" in result.err
    assert names() == ["a.csv", "b.jsonl", "empty.txt", "out.csv", "out.rejected.csv"]
    second_run = classify("b.jsonl", "-o", "out.csv")
    assert (second_run.code, second_run.err) == (
        2,
        "error: out.csv exists; add --force to replace it, or name another --output\n",
    )
    Path("c.txt").write_text("all is well\n")
    assert classify("c.txt", "-o", "out.csv", "--force").code == 0
    assert names() == ["a.csv", "b.jsonl", "c.txt", "empty.txt", "out.csv"], "the old rejects are of another output"


def test_no_readable_row_is_an_error_and_leaves_no_file(classify: Run) -> None:
    Path("in.csv").write_text("id,text\n1,\n2, \n")
    result = classify("in.csv", "-o", "out.csv")
    assert (result.code, names()) == (1, ["in.csv"])
    assert result.err == (
        "error: no row can be read; the first error: in.csv row 2, column 'text', is empty; fill it or remove it\n"
    )


def test_texts_that_the_model_refuses_are_rejected(
    classify: Run, small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Classifier.classify

    def picky(self: Classifier, texts: Sequence[Input], **options: Any) -> list[Prediction]:
        for index, text in enumerate(texts):
            if str(text).endswith((" 3", " 11")):
                raise DataError(f"text {index} has no tokens, only characters that the tokenizer drops; remove it")
        return usual(self, texts, **options)

    monkeypatch.setattr(Classifier, "classify", picky)
    texts = write_rows("in.csv", 20)
    with Path("in.csv").open("a") as file:
        file.write(f"20,{texts[3]}\n")
    assert classify("in.csv", "-o", "out.csv").code == 0
    assert [int(row["id"]) for row in rows_of("out.csv")] == [n for n in range(20) if n not in (3, 11)]
    rejected = rows_of("out.rejected.csv")
    assert [row["line"] for row in rejected] == ["5", "13", "22"]
    assert rejected[0]["reason"] == "has no tokens, only characters that the tokenizer drops; remove it"
    strict = classify("in.csv", "-o", "strict.csv", "--strict")
    assert (strict.code, strict.err) == (
        1,
        "error: in.csv row 5 has no tokens, only characters that the tokenizer drops; remove it\n",
    )


def test_repeated_texts_are_computed_once_across_chunks(
    classify: Run, small_chunks: None, computed: list[list[Input]]
) -> None:
    texts = [f"the team is good {number}" for number in (0, 1, 2, 1, 0, *range(3, 20), 5, 5, 19, *range(20, 25), 3)]
    Path("in.txt").write_text("\n".join(texts))
    assert classify("in.txt", "-o", "out.jsonl").code == 0
    computed_texts = [text for call in computed for text in call]
    assert sorted(computed_texts) == sorted(set(texts))
    assert max(map(len, computed)) == 8
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == texts
    by_text: dict[str, set[float]] = {}
    for row in rows:
        by_text.setdefault(row["text"], set()).add(row["confidence"])
    assert all(len(confidences) == 1 for confidences in by_text.values())


def test_the_result_cache_has_a_limit(
    classify: Run, small_chunks: None, computed: list[list[Input]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_CACHE_BYTES", 10 * 300)
    texts = [f"the team is good {number}" for number in [*range(40), 0, 39]]
    Path("in.txt").write_text("\n".join(texts))
    assert classify("in.txt", "-o", "out.csv").code == 0
    computed_texts = [text for call in computed for text in call]
    assert computed_texts.count(texts[0]) == 2
    assert computed_texts.count(texts[39]) == 1


def test_an_interrupted_job_resumes(classify: Run, stop: Stop, computed: list[list[Input]]) -> None:
    texts = write_rows("in.csv", 50)
    assert classify("in.csv", "-o", "whole.csv").code == 0
    for calls, stored_rows in ((2, 16), (1, 24), (0, 24)):
        stop.after(calls, KeyboardInterrupt())
        result = classify("in.csv", "-o", "out.csv")
        assert result.code == 130
        message = f"stopped after {stored_rows} rows, which are kept; run the same command again to go on"
        assert result.err.splitlines()[-1] == message
        assert not Path("out.csv").exists()
    computed.clear()
    result = classify("in.csv", "-o", "out.csv")
    assert result.code == 0
    assert result.err.startswith("going on after 24 rows of an interrupted run\n50 texts, 26 of them now in ")
    assert [text for call in computed for text in call] == texts[24:]
    assert Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()
    assert names() == ["in.csv", "out.csv", "whole.csv"]


def test_a_job_resumes_after_an_engine_error(classify: Run, stop: Stop) -> None:
    write_rows("in.csv", 30)
    stop.after(2, EngineError("llama.cpp refused"))
    assert classify("in.csv", "-o", "out.csv").code == 1
    assert classify("in.csv", "-o", "out.csv").err.startswith("going on after 16 rows")
    assert len(rows_of("out.csv")) == 30


def test_a_job_over_stdin_resumes(classify: Run, stop: Stop) -> None:
    data = "".join(f"the team is good {number}\n" for number in range(30)).encode()
    stop.after(2, KeyboardInterrupt())
    assert classify("-o", "out.csv", stdin=data).code == 130
    other = classify("-o", "out.csv", stdin=data + b"one more\n")
    assert other.err == (
        "error: out.csv was begun by another job (stdin has changed since); run that one again, or discard its "
        "results with --restart\n"
    )
    assert classify("-o", "out.csv", stdin=data).err.startswith("going on after 16 rows")
    assert [row["text"] for row in rows_of("out.csv")] == data.decode().splitlines()


@pytest.fixture
def interrupted_job(classify: Run, stop: Stop) -> Run:
    """Like `classify`, with an interrupted job from `in.csv` to `out.csv`."""
    write_rows("in.csv", 30)
    stop.after(2, KeyboardInterrupt())
    assert classify("in.csv", "-o", "out.csv").code == 130
    return classify


OTHER_JOBS: dict[str, tuple[Sequence[str], str]] = {
    "task": (("in.csv", "-t", "sentiment"), "--task was topic, not sentiment"),
    "column": (("in.csv", "--text-column", "text"), "--text-column was none, not text"),
    "format": (("in.csv", "--format", "jsonl"), "--format was csv, not jsonl"),
    "inputs": (("in.csv", "a text"), "it had other inputs"),
}


@pytest.mark.parametrize(("arguments", "difference"), OTHER_JOBS.values(), ids=OTHER_JOBS)
def test_the_journal_of_another_job_is_refused(interrupted_job: Run, arguments: Sequence[str], difference: str) -> None:
    before = sorted(path.name for path in Path(".out.csv.job").iterdir())
    result = interrupted_job(*arguments, "-o", "out.csv")
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        f"error: out.csv was begun by another job ({difference}); run that one again, or discard its results with "
        "--restart\n"
    )
    assert sorted(path.name for path in Path(".out.csv.job").iterdir()) == before
    assert interrupted_job("in.csv", "-o", "out.csv").err.startswith("going on after 16 rows")


def test_a_changed_input_is_refused_and_restart_starts_over(interrupted_job: Run) -> None:
    Path("in.csv").write_text(Path("in.csv").read_text().replace("good", "nice"))
    assert "in.csv has changed since" in interrupted_job("in.csv", "-o", "out.csv").err
    result = interrupted_job("in.csv", "-o", "out.csv", "--restart")
    assert (result.code, "going on" in result.err) == (0, False)
    assert rows_of("out.csv")[0]["text"] == "the team is nice 0"
    assert names() == ["in.csv", "out.csv"]


def test_a_changed_input_with_its_old_time_is_refused(interrupted_job: Run) -> None:
    about = Path("in.csv").stat()
    Path("in.csv").write_text(Path("in.csv").read_text().replace("good", "nice"))
    os.utime("in.csv", ns=(about.st_atime_ns, about.st_mtime_ns))
    result = interrupted_job("in.csv", "-o", "out.csv")
    assert result.code == 2
    assert "error: the texts of the inputs have changed since the job was begun; discard its results" in result.err


def test_another_model_is_refused(interrupted_job: Run, run: Run, fresh_bundle: Path) -> None:
    manifest = fresh_bundle / "bundle.json"
    manifest.write_text(manifest.read_text().replace('"tiny"', '"other"', 1))
    result = run("classify", "-b", fresh_bundle, "-t", "topic", "in.csv", "-o", "out.csv")
    assert "begun by another job (it had another model)" in result.err


def test_a_chunk_that_a_kill_interrupted_is_rolled_back(interrupted_job: Run) -> None:
    with contextlib.closing(sqlite3.connect(".out.csv.job/journal.sqlite")) as connection:
        connection.execute("PRAGMA cache_size = 1")  # so that changed pages are written before the commit
        connection.execute("UPDATE job SET read = 24")
        connection.executemany("INSERT INTO results (lines, crc) VALUES (?, 0)", [(b"x" * 5000,)] * 20)
        shutil.copytree(".out.csv.job", "copy")
    assert Path("copy/journal.sqlite-journal").stat().st_size
    shutil.rmtree(".out.csv.job")
    Path("copy").rename(".out.csv.job")
    assert interrupted_job("in.csv", "-o", "out.csv").err.startswith("going on after 16 rows")
    assert [int(row["id"]) for row in rows_of("out.csv")] == list(range(30))
    assert names() == ["in.csv", "out.csv"]


def damage_checksum() -> None:
    with contextlib.closing(sqlite3.connect(".out.csv.job/journal.sqlite")) as connection, connection:
        connection.execute("UPDATE results SET crc = crc + 1")


@pytest.mark.parametrize(
    "damage",
    [
        lambda: os.truncate(".out.csv.job/journal.sqlite", 5000),
        lambda: Path(".out.csv.job/journal.sqlite").write_bytes(b"no database " * 1000),
        damage_checksum,
    ],
)
def test_a_damaged_journal_is_one_line(interrupted_job: Run, damage: Callable[[], None]) -> None:
    damage()
    result = interrupted_job("in.csv", "-o", "out.csv")
    assert (result.code, result.err.splitlines()[-1]) == (
        2,
        f"error: the journal {Path('.out.csv.job').resolve()} is damaged; discard it with --restart",
    )
    assert not Path("out.csv").exists()
    assert interrupted_job("in.csv", "-o", "out.csv", "--restart").code == 0


def test_a_folder_without_a_journal_is_kept(classify: Run) -> None:
    write_rows("in.csv", 3)
    Path(".out.csv.job").mkdir()
    Path(".out.csv.job/mine.txt").write_text("mine")
    result = classify("in.csv", "-o", "out.csv", "--restart")
    assert result.code == 2
    assert ".out.csv.job is not the folder of a job; remove it, or name another --output" in result.err
    assert Path(".out.csv.job/mine.txt").read_text() == "mine"
    assert len(list(Path(".out.csv.job").iterdir())) == 1


@pytest.mark.parametrize("moment", ["before the names", "rejects named", "all named", "folder half removed"])
def test_a_job_killed_after_its_output_is_complete(classify: Run, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    Path("in.csv").write_text("id,text\n1,one\n2,\n3,three\n")
    Path("out.csv").write_text("old")
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "deliver", lambda *_: (_ for _ in ()).throw(SystemExit("killed")))
        with pytest.raises(SystemExit):
            classify("in.csv", "-o", "out.csv", "--force")
    folder = Path(".out.csv.job")
    assert Path("out.csv").read_text() == "old"
    if moment != "before the names":
        (folder / "rejected.csv").rename("out.rejected.csv")
    if moment in ("all named", "folder half removed"):
        (folder / "result").rename("out.csv")
    if moment == "folder half removed":
        for path in folder.iterdir():
            path.unlink()
    result = classify("in.csv", "-o", "out.csv", *(() if moment == "folder half removed" else ("--force",)))
    if moment == "folder half removed":
        assert result.err.startswith("error: out.csv exists; add --force")
    else:
        assert (result.code, result.err) == (0, "out.csv was finished by an earlier run; nothing to do\n")
    assert [row["id"] for row in rows_of("out.csv")] == ["1", "3"]
    assert [row["line"] for row in rows_of("out.rejected.csv")] == ["3"]
    assert names() == ["in.csv", "out.csv", "out.rejected.csv"]


def test_two_processes_do_not_share_a_journal(classify: Run, tmp_path: Path) -> None:
    write_rows("in.csv", 3)
    other = Job("classify", "", {}, [])
    with pytest.raises(KeyboardInterrupt), open_journal(tmp_path / "out.csv", other):  # noqa: PT012
        result = classify("in.csv", "-o", "out.csv")
        assert result.code == 2
        assert "another process is at work on out.csv; wait for it, or name another --output" in result.err
        raise KeyboardInterrupt
    assert classify("in.csv", "-o", "out.csv").code == 0


def test_a_full_disk_is_one_line_and_the_journal_stays(
    classify: Run, small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows("in.csv", 30)
    append = Journal.append

    def append_to_full_disk(self: Journal, results: Sequence[bytes], *arguments: Any) -> None:
        if self.progress.read >= 16:
            pages = self._connection.execute("PRAGMA page_count").fetchone()[0]
            self._connection.execute(f"PRAGMA max_page_count = {pages}")
        append(self, [line.ljust(5000) for line in results], *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "append", append_to_full_disk)
        result = classify("in.csv", "-o", "out.csv")
    assert result.code == 1
    assert result.err.splitlines()[-1].startswith("error: out.csv: No space left on device; ")
    assert result.err.endswith(" rows are kept: make room, and run the same command again to go on\n")
    assert classify("in.csv", "-o", "out.csv").err.startswith("going on after ")
    assert [int(row["id"]) for row in rows_of("out.csv")] == list(range(30))


def test_an_output_may_replace_its_input(classify: Run) -> None:
    write_rows("in.csv", 5)
    assert classify("in.csv", "-o", "in.csv", "--force").code == 0
    assert list(rows_of("in.csv")[4]) == ["id", "text", *COLUMNS]


def test_the_rejected_rows_of_an_output_cannot_be_its_input(classify: Run) -> None:
    """With --force they would be replaced by the rejected rows of the job."""
    write_rows("out.rejected.csv", 5)
    before = Path("out.rejected.csv").read_bytes()
    result = classify("out.rejected.csv", "-o", "out.csv", "--force")
    assert (result.code, result.err) == (
        2,
        "error: out.rejected.csv is the file of rejected rows of out.csv; rename it, or name another --output\n",
    )
    assert Path("out.rejected.csv").read_bytes() == before
    assert classify("out.rejected.csv", "-o", "again.csv").code == 0


def test_the_output_in_an_input_folder_is_left_out(classify: Run) -> None:
    Path("in").mkdir()
    write_rows("in/a.csv", 3)
    Path("in/bad.csv").write_text("text\n \nx\n")
    for _ in range(2):
        assert classify("in", "-o", "in/out.csv", "--force").code == 0
        assert len(rows_of("in/out.csv")) == 4


def test_a_missing_extra_is_one_line(classify: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    Path("in.parquet").write_bytes(b"PAR1")
    for module, arguments in (
        ("pyarrow", ("a text", "-o", "out.parquet")),
        ("pyarrow", ("in.parquet",)),
        ("openpyxl", ("a text", "-o", "out.xlsx")),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        result = classify(*arguments)
        assert result.code == 2
        assert result.err == (
            f"error: this command needs the extra [files] ({module} not installed); run: pip install "
            "'mtllm-edge[files]'\n"
        )
    assert names() == ["in.parquet"]


def test_xlsx_limits_the_number_of_rows(classify: Run, small_chunks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtllm_edge.jobs import output

    monkeypatch.setitem(output.MAX_ROWS, "xlsx", 20)
    write_rows("in.csv", 30)
    result = classify("in.csv", "-o", "out.xlsx")
    assert result.err == "error: the output's format holds 20 rows at most; name another --output\n"


def test_embed_resumes(run: Run, tiny_bundle: Path, small_chunks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = write_rows("in.csv", 30)
    usual, calls = Embedder.pool, 0

    def pool(self: Embedder, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return usual(self, *arguments, **options)

    monkeypatch.setattr(Embedder, "pool", pool)
    assert run("embed", "-b", tiny_bundle, "in.csv", "-o", "out.npy").code == 130
    assert run("embed", "-b", tiny_bundle, "in.csv", "-o", "out.npy").err.startswith("going on after 16 rows")
    with Embedder.load(tiny_bundle) as embedder:
        expected_NE = embedder.embed(texts)
    assert_vectors_close(np.load("out.npy"), expected_NE, LLAMA_CPP)
    assert run("embed", "-b", tiny_bundle, "in.csv", "-o", "out.parquet").code == 0
    table = pyarrow.parquet.read_table("out.parquet")
    assert table.column_names == ["id", "text", "embedding", "truncated"]
    assert_vectors_close(table.column("embedding").to_pylist(), expected_NE, LLAMA_CPP)


def test_progress_lines_in_a_pipe(classify: Run, small_chunks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds: Iterator[int] = iter(range(0, 10_000, 4))
    monkeypatch.setattr("mtllm_edge.cli.progress.time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    write_rows("in.csv", 80)
    lines = [line for line in classify("in.csv", "-o", "out.csv").err.splitlines() if " of about " in line]
    assert [line.split(" of about ")[0] for line in lines] == ["24", "48", "72"]
    assert lines[0].endswith(" texts, 2.0 texts/s, 0 s left"), "of a file that is shorter than what is read at once"


def test_jobs_killed_at_random_moments(tiny_bundle: Path, tmp_path: Path) -> None:
    """Two of the fifty kills of `python -m tests.tools.kill_jobs`."""
    harness = Harness(tmp_path, tiny_bundle, rows=1500, seed=int.from_bytes(os.urandom(4), "little"))
    moments, stored_rows = kill_jobs(harness, 2)
    assert moments.total() >= 2
    assert stored_rows
