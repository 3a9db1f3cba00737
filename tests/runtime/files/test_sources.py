"""Input files: expansion of arguments, choice of columns, errors of rows."""

from __future__ import annotations

import datetime
import errno
import gzip
import io
import os
from collections.abc import Callable, Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from mtllm_edge.errors import DataError, MtllmError, NoRowsError, UsageError
from mtllm_edge.files import rows
from mtllm_edge.files.columns import Columns
from mtllm_edge.files.rows import RowError
from mtllm_edge.files.sources import find_sources
from mtllm_edge.inputs import Input
from mtllm_edge.jobs.inputs import InputReader, JobInput, ParsedRow

PLAIN = InputReader()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, so that messages name files as a user types them."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def inspect(*arguments: str, stdin: bytes = b"", reader: InputReader = PLAIN) -> list[JobInput]:
    return [reader.inspect(source) for source in find_sources(arguments, io.BytesIO(stdin))]


def inputs(*arguments: str, stdin: bytes = b"", reader: InputReader = PLAIN) -> list[Input | RowError]:
    """Read the inputs of the arguments twice, with the same result."""
    job_inputs = inspect(*arguments, stdin=stdin, reader=reader)
    rows = list(map(text_of, reader.read(job_inputs)))
    assert list(map(text_of, reader.read(job_inputs))) == rows
    return rows


def text_of(row: ParsedRow) -> Input | RowError:
    """Return the input of a row, without its language."""
    item = row[3]
    return item if isinstance(item, RowError) else item[1]


def errors_of(name: str, content: bytes, reader: InputReader = PLAIN) -> list[str | Input]:
    """Return the inputs of one file, or the error messages of a strict reader."""
    Path(name).write_bytes(content)
    job_inputs = inspect(name, reader=reader)
    return [
        f"{job_input.source.place(number)}{item.message}" if isinstance(item, RowError) else item[1]
        for job_input, number, _, item in reader.read(job_inputs)
    ]


def write_xlsx(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(list(row))
    book.save(path)


def write_parquet(path: Path, columns: dict[str, Any]) -> None:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def test_all_kinds_of_inputs_in_order(folder: Path) -> None:
    (folder / "a.txt").write_bytes(b"one\n\ntwo\n")
    (folder / "b.csv").write_bytes(b"id,text\n7,three\n")
    (folder / "c.JSONL").write_bytes(b'{"text": "four", "n": [1]}\n')
    (folder / "d.tsv").write_bytes(b'id\ttext\n8\t"five, or so"\n')
    write_parquet(folder / "e.parquet", {"n": [1], "text": ["six"]})
    write_xlsx(folder / "f.xlsx", [("n", "text"), (1, "seven"), (None, None), (2, "eight")])
    (folder / "g.csv.gz").write_bytes(gzip.compress(b"text\nnine\n") + gzip.compress(b"ten\n"))
    (folder / "h.txt.zst").write_bytes(zstandard.compress(b"eleven\n") + zstandard.compress(b"twelve\n"))
    names = ("a.txt", "b.csv", "c.JSONL", "d.tsv", "e.parquet", "f.xlsx", "g.csv.gz", "h.txt.zst")
    texts = inputs("zero", *names, "-", "last", stdin=b"piped\r\n")
    assert texts == [
        *("zero", "one", "two", "three", "four", "five, or so", "six", "seven", "eight", "nine", "ten", "eleven"),
        *("twelve", "piped", "last"),
    ]


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_byte_order_mark_and_line_ends(folder: Path, line_end: bytes, mark: bytes) -> None:
    (folder / "a.txt").write_bytes(mark + line_end.join([b"eins", b"", "zw\u2028ei".encode()]))
    (folder / "b.csv").write_bytes(mark + line_end.join([b"text,n", b"drei,3", b"", b"vier,4", b""]))
    (folder / "c.jsonl").write_bytes(mark + line_end.join([b'{"text": "five"}', b" ", b'{"text": "six"}']))
    job_inputs = inspect("a.txt", "b.csv", "c.jsonl")
    rows = list(PLAIN.read(job_inputs))
    assert list(map(text_of, rows)) == ["eins", "zw\u2028ei", "drei", "vier", "five", "six"]
    assert [number for _, number, _, _ in rows] == [1, 3, 2, 4, 1, 3]
    assert [job_input.blank for job_input in job_inputs] == [1, 1, 1]


def test_folders_and_globs(folder: Path) -> None:
    (folder / "in/deep/.hidden").mkdir(parents=True)
    for name in (
        "in/b.txt",
        "in/a.txt",
        "in/deep/c.txt",
        "in/deep/.hidden/d.txt",
        "in/.e.txt",
        "in/f.json",
        "in/out.txt",
    ):
        (folder / name).write_text(name)
    assert inputs("in") == ["in/a.txt", "in/b.txt", "in/deep/c.txt", "in/out.txt"]
    assert inputs("in/*.txt", "in/*/*.txt") == ["in/a.txt", "in/b.txt", "in/out.txt", "in/deep/c.txt"]
    sources = find_sources(["in", "in/*.txt", "in/a.txt"], io.BytesIO(), [Path("in/out.txt"), Path("in/a.txt")])
    assert [source.name for source in sources] == ["in/b.txt", "in/deep/c.txt", "in/b.txt", "in/a.txt"]
    assert inputs("What is a*b?", "really?", "[this]") == ["What is a*b?", "really?", "[this]"]
    assert inputs("x" * 100_000 + ".txt", "first line\nsee notes.txt") == [
        "x" * 100_000 + ".txt",
        "first line\nsee notes.txt",
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["none.csv"], UsageError, "none.csv does not exist; to use a text that ends like a file name, pipe it in"),
        (["data.json"], UsageError, "data.json is a file, but files of texts end in .txt, .csv, .tsv, .jsonl"),
        (["empty"], UsageError, "empty is a folder without files that end in .txt"),
        (["*.tsv"], UsageError, "*.tsv matches no file; check the pattern"),
        (["-", "-"], UsageError, "'-' (stdin) is given more than once; give it once"),
        (["a", "  "], DataError, "argument 2 is empty; fill it or remove it"),
        ([os.fsdecode(b"caf\xe9")], DataError, "argument 1 is not valid UTF-8"),
        (["two\0words"], DataError, "argument 1 holds a NUL character"),
        (["blank.txt"], NoRowsError, "blank.txt holds no text; write one text per line"),
        (["-"], NoRowsError, "stdin holds no text"),
        (["header.csv"], NoRowsError, "header.csv holds no rows; write a row per text"),
        (["twins.csv"], DataError, "twins.csv has several columns called 'id'; rename all but one"),
        (["wide.csv"], DataError, "wide.csv line 1 is not valid UTF-8 (byte 0xff); save it as UTF-8"),
        (["broken.parquet"], DataError, "broken.parquet is not a readable parquet file"),
        (["broken.xlsx"], DataError, "broken.xlsx is not a readable xlsx file"),
        (["broken.txt.gz"], DataError, "broken.txt.gz is not a readable gzip file"),
        (["broken.txt.zst"], DataError, "broken.txt.zst is not a readable zstd file"),
        (["numbers.csv"], UsageError, "numbers.csv has no column 'text', only 'a', 'b'; name one with --text-column"),
    ],
)
def test_errors_before_a_job_starts(folder: Path, arguments: list[str], error: type[MtllmError], message: str) -> None:
    (folder / "empty").mkdir()
    (folder / "data.json").write_text("{}")
    (folder / "blank.txt").write_text("\n \n")
    (folder / "header.csv").write_text("id,text\n")
    (folder / "twins.csv").write_text("text,id,id\nx,1,2\n")
    (folder / "wide.csv").write_text("text\nx\n", encoding="utf-16")
    (folder / "numbers.csv").write_text("a,b\n1,2020-01-01\n")
    for name in ("broken.parquet", "broken.xlsx", "broken.txt.gz", "broken.txt.zst"):
        (folder / name).write_bytes(b"plain words, and more of them")
    with pytest.raises(error) as caught:
        inspect(*arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


FAULTY: dict[str, tuple[str, bytes, list[str]]] = {
    "latin-1": ("a.txt", b"one\r\ncaf\xe9\r\nthree", ["one", "a.txt line 2 is not valid UTF-8 (byte 0xe9)", "three"]),
    "nul": ("a.txt", b"one\ntw\0o\nthree\n", ["one", "a.txt line 2 holds a NUL character; remove it", "three"]),
    "utf-16 without mark": ("a.txt", "ab\n".encode("utf-16-le"), ["a.txt line 1 holds a NUL", "a.txt line 2 holds"]),
    "ragged": ("a.csv", b"id,text\n1,a\n\n2,b,c\n3,d\n", ["a", "a.csv row 4 has 3 cells, the header has 2 col", "d"]),
    "short": ("a.csv", b"id,text\n1\n2,b\n", ["a.csv row 2 has 1 cells, the header has 2 columns; put", "b"]),
    "latin-1 in csv": ("a.csv", b"n,text\n\xe9,a\n2,b\n", ["a.csv row 2 is not valid UTF-8 (byte 0xe9)", "b"]),
    "open quote": (
        "a.csv",
        b'text,id\na,1\n"b,2\nc,3\n"d, ""e""",4\n',
        ["a", "a.csv row 3 is not valid csv", "c", 'd, "e"'],
    ),
    "open quote at the end": ("a.csv", b'text,id\na,1\n"b,2\nc,3\n', ["a", "a.csv row 3 is not valid csv", "c"]),
    "text after a quote": ("a.csv", b'text,id\n"a"b,1\nc,2\n', ["a.csv row 2 is not valid csv", "c"]),
    "row of many lines": (
        "a.csv",
        b'id,text\n1,"a\nb"\n2,"c\nd",3\n4,e\n',
        ["a\nb", "a.csv row 3 has 3 cells", "e"],
    ),
    "empty cell": ("a.csv", b"id,text\n1, \n2,b\n", ["a.csv row 2, column 'text', is empty; fill it or remove", "b"]),
    "not json": (
        "a.jsonl",
        b'{"text": "a"}\n{text}\n[1]\n',
        ["a", "a.jsonl line 2: ", "a.jsonl line 3: Expected `object`"],
    ),
    "half a surrogate": ("a.jsonl", rb'{"text": "\ud800 more text"}' b'\n{"text": "b"}', ["a.jsonl line 1: ", "b"]),
    "endless": ("a.jsonl", b'{"text": ' + b"[" * 100_000 + b'\n{"text": "b"}', ["a.jsonl line 1: ", "b"]),
    "no column": (
        "a.jsonl",
        b'{"text": "a"}\n{"body": "b"}\n',
        ["a", "a.jsonl line 2 has no column 'text', only 'body'"],
    ),
    "null": ("a.jsonl", b'{"text": null}\n{"text": "b"}', ["a.jsonl line 1, column 'text', is null, expected a", "b"]),
    "number": ("a.jsonl", b'{"text": 1.5}\n{"text": "b"}', ["a.jsonl line 1, column 'text', is a number, exp", "b"]),
    "escaped nul": ("a.jsonl", rb'{"text": "a\u0000"}', ["a.jsonl line 1, column 'text', holds a NUL character"]),
}


@pytest.mark.parametrize(("name", "content", "expected"), FAULTY.values(), ids=FAULTY)
def test_rows_around_an_unreadable_row_are_read(folder: Path, name: str, content: bytes, expected: list[str]) -> None:
    items = errors_of(name, content)
    assert len(items) == len(expected), items
    for item, start in zip(items, expected, strict=True):
        assert str(item).startswith(start)


@pytest.mark.parametrize("argument", ["in", "in/locked/a.csv"])
def test_a_missing_permission_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch, argument: str) -> None:
    """Simulated, since root has all permissions."""
    (folder / "in/locked").mkdir(parents=True)
    for name in ("in/a.csv", "in/locked/a.csv"):
        (folder / name).write_text("text\na\n")

    def guarded(function: Callable[..., Any], locked: str) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any) -> Any:
            if str(path).endswith(locked):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return function(path, *arguments)

        return call

    monkeypatch.setattr(os, "scandir", guarded(os.scandir, "locked"))
    monkeypatch.setattr(Path, "is_file", guarded(Path.is_file, "locked/a.csv"))
    with pytest.raises(PermissionError) as caught:
        find_sources([argument], io.BytesIO())
    assert caught.value.filename == ("in/locked" if argument == "in" else argument)


def test_a_row_error_has_its_line_and_row(folder: Path) -> None:
    Path("a.csv").write_bytes(b'id,text\n1,"a\nb"\n\n2,"c\nd",3\n4,caf\xe9\n')
    errors = [item for item in inputs("a.csv") if isinstance(item, RowError)]
    assert [(fault.line, fault.raw) for fault in errors] == [(5, '2,"c\nd",3'), (7, "4,caf\\xe9")]
    assert errors[0].reason.startswith("has 3 cells")
    Path("a.jsonl").write_bytes(b'{"text": 5}\n{"text": "b"}\n')
    assert inputs("a.jsonl")[0] == RowError(", column 'text', is a number, expected a string", 1, '{"text":5}')


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_the_rows_of_a_truncated_file_are_read(folder: Path, suffix: str) -> None:
    lines = "".join(f"{os.urandom(20).hex()} {number}\n" for number in range(20_000)).encode()
    packed = gzip.compress(lines) if suffix == ".gz" else zstandard.compress(lines)
    (folder / f"a.txt{suffix}").write_bytes(packed[: len(packed) // 2])
    *texts, fault = inputs(f"a.txt{suffix}", "last")[:-1]
    assert len(texts) > 5000
    assert isinstance(fault, RowError)
    assert fault.reason == f"a.txt{suffix} is cut short; copy or download it again"


def test_an_unclosed_quote_costs_one_row_and_little_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_CELL_LIMIT", 2**14)
    lines = "".join(f"{number},text {number}\n" for number in range(3000))
    Path("a.csv").write_text(f'id,text\n0,"open\n{lines}')
    parsed = inputs("a.csv")
    assert isinstance(parsed[0], RowError)
    assert parsed[1:] == [f"text {number}" for number in range(3000)]


def chosen(*arguments: str, reader: InputReader = PLAIN) -> list[tuple[str | None, str | None]]:
    return [(job_input.text_column, job_input.note) for job_input in inspect(*arguments, reader=reader)]


def test_choice_of_the_text_column(folder: Path) -> None:
    (folder / "text.csv").write_text("subject,text\na long subject,no\n")
    (folder / "only.csv").write_text("review\nyes\n")
    (folder / "body.csv").write_text("id,url,when,body\nA1,https://example.org/a/long/one,2020-01-01,short\n")
    (folder / "none.jsonl").write_text('{"id": 1}\n{"id": 2, "text": "late"}\n')
    (folder / "plain.txt").write_text("a\n")
    assert chosen("text.csv") == [("text", None)]
    assert chosen("only.csv") == [
        ("review", "text is column 'review', which is the only one; --text-column names another")
    ]
    assert chosen("body.csv")[0][0] == "body"
    assert "has the longest texts" in str(chosen("body.csv")[0][1])
    assert chosen("none.jsonl") == [("text", None)]
    named = InputReader(text_column="subject")
    assert chosen("text.csv", "plain.txt", "word", reader=named) == [("subject", None), ("text", None), ("text", None)]
    with pytest.raises(
        UsageError, match=r"body\.csv has no column 'subject', only 'id', 'url', 'when', 'body'; name one"
    ):
        chosen("body.csv", reader=named)


def test_pairs_and_choices(folder: Path) -> None:
    pair = InputReader("pair")
    assert errors_of("a.csv", b"text,text_pair,n\na,b,1\nc,,2\n", pair) == [
        ("a", "b"),
        "a.csv row 3, column 'text_pair', is empty; fill it or remove it",
    ]
    choices = InputReader("multiple_choice", columns=Columns(choices=("c1", "c2")))
    assert errors_of("b.csv", b"text,c1,c2\na,b,c\n", choices) == [("a", ("b", "c"))]
    lists = InputReader("multiple_choice")
    rows = b'{"text": "a", "choices": ["b", "c"]}\n{"text": "a", "choices": ["b"]}\n{"text": "a"}\n'
    assert [str(item)[:40] for item in errors_of("c.jsonl", rows, lists)] == [
        "('a', ('b', 'c'))",
        "c.jsonl line 2, column 'choices', has 1 ",
        "c.jsonl line 3 has no column 'choices', ",
    ]
    with pytest.raises(UsageError, match="argument 1 has no column 'text_pair', only 'text'"):
        inspect("a text", reader=pair)


def test_workbooks(folder: Path) -> None:
    when = datetime.datetime(2020, 1, 2, 3, 4)
    write_xlsx(
        folder / "a.xlsx",
        [(), ("n", None, "text", "when"), (1, "x", "one", when), (2, None, 5, None), (3, None, "three", None, "extra")],
    )
    rows = list(PLAIN.read(inspect("a.xlsx")))
    assert rows[0][2] == {"n": 1, "": "x", "text": "one", "when": when}
    assert [item.message if isinstance(item, RowError) else item for item in map(text_of, rows)] == [
        "one",
        ", column 'text', is a number, expected a string",
        " has 5 cells, the header has 4 columns; give every column a name",
    ]
    assert [number for _, number, _, _ in rows] == [3, 4, 5]


def test_parquet_keeps_all_types(folder: Path) -> None:
    columns = {
        "id": pyarrow.array([1, 2], pyarrow.int16()),
        "text": pyarrow.array(["a", None]).dictionary_encode(),
        "price": pyarrow.array([Decimal("1.50"), None]),
        "at": pyarrow.array([1, 2], pyarrow.timestamp("ns")),
        "tags": [["x"], []],
    }
    write_parquet(folder / "a.parquet", columns)
    job_inputs = inspect("a.parquet")
    rows = list(PLAIN.read(job_inputs))
    assert rows[0][2] == {
        "id": 1,
        "text": "a",
        "price": Decimal("1.50"),
        "at": "1970-01-01 00:00:00.000000001",
        "tags": ["x"],
    }
    assert isinstance(rows[1][3], RowError)
    assert rows[1][3].raw.startswith('{"id":2,"text":null,"price":null,')


def test_progress_of_a_source(folder: Path) -> None:
    (folder / "a.txt").write_text("some words\n" * 10_000)
    write_parquet(folder / "b.parquet", {"text": ["some words"] * 10_000})
    makers: list[Callable[[], Any]] = [lambda: inspect("a.txt"), lambda: inspect("b.parquet")]
    for make in makers:
        (job_input,) = make()
        rows = PLAIN.read([job_input])
        shares = [job_input.source.progress for _ in rows]
        assert shares == sorted(shares)
        assert shares[0] < 0.2
        assert 0.4 < shares[5000] < 0.7
        assert job_input.source.progress == 1
