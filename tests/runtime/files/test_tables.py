"""Several files as one table; `test_sources` covers the streaming readers."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtllm_edge.errors import DataError, UsageError
from mtllm_edge.files.tables import Table, read_table


def read(*files: str, text_column: str | None = None) -> Table:
    return read_table(files, text_column=text_column)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, so that messages name files as a user types them."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_files_keep_their_order(folder: Path) -> None:
    (folder / "a.txt").write_bytes(b"one\ntwo\n")
    (folder / "b.csv").write_bytes(b"id,text\n7,three\n")
    (folder / "c.JSONL").write_bytes(b'{"text": "four", "n": [1]}\n')
    table = read("a.txt", "b.csv", "c.JSONL")
    assert table.texts == ["one", "two", "three", "four"]
    assert table.rows[2:] == [{"id": "7", "text": "three"}, {"text": "four", "n": [1]}]


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_byte_order_mark_and_line_ends(folder: Path, line_end: bytes, mark: bytes) -> None:
    (folder / "a.txt").write_bytes(mark + line_end.join([b"eins", b"", b"zwei"]))
    (folder / "b.csv").write_bytes(mark + line_end.join([b"text,n", b"drei,3", b"", b"vier,4", b""]))
    (folder / "c.jsonl").write_bytes(mark + line_end.join([b'{"text": "five"}', b" ", b'{"text": "six"}']))
    table = read("a.txt", "b.csv", "c.jsonl")
    assert table.texts == ["eins", "zwei", "drei", "vier", "five", "six"]


def test_other_separators_do_not_end_a_line(folder: Path) -> None:
    (folder / "a.txt").write_text("a\u2028b\x0bc\x85d\n", encoding="utf-8")
    assert read("a.txt").texts == ["a\u2028b\x0bc\x85d"]


def test_csv_cells_with_commas_quotes_line_ends_and_long_texts(folder: Path) -> None:
    long = "word " * 60_000
    (folder / "a.csv").write_text(f'text,n\n"one, ""two""\nthree",1\n{long},2\n', newline="")
    assert read("a.csv").texts == ['one, "two"\nthree', long]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_delimiters_of_spreadsheets(folder: Path, delimiter: str) -> None:
    (folder / "a.csv").write_text(f"id{delimiter}text\n1{delimiter}hello\n")
    assert read("a.csv").rows == [{"id": "1", "text": "hello"}]


def test_choice_of_the_text_column(folder: Path) -> None:
    (folder / "named.csv").write_text("text,review\nno,yes\n")
    (folder / "only.csv").write_text("review\nyes\n")
    (folder / "only.jsonl").write_text('{"review": "yes"}\n')
    assert read("named.csv", text_column="review").texts == ["yes"]
    assert read("named.csv").texts == ["no"]
    assert read("only.csv", "only.jsonl").texts == ["yes", "yes"]


USAGE = {
    "missing file": (["none.csv"], None, "none.csv does not exist; check the path"),
    "folder": (["folder.txt"], None, "folder.txt is a folder; name a file of texts"),
    "other file": (
        ["data.json"],
        None,
        "data.json is a file, but files of texts end in .txt, .csv, .tsv, .jsonl, .parquet",
    ),
    "csv without text": (
        ["a.csv"],
        None,
        "a.csv has no column 'text', only 'id', 'review'; name one with --text-column",
    ),
    "csv without column": (["a.csv"], "body", "a.csv has no column 'body', only 'id', 'review'; name one of them"),
    "jsonl without text": (
        ["a.jsonl"],
        None,
        "a.jsonl has no column 'text', only 'a', 'b'; name one with --text-column",
    ),
    "jsonl without column": (["empty.jsonl"], "b", "empty.jsonl has no column 'b', only none; name one of them"),
}


@pytest.mark.parametrize(("arguments", "text_column", "message"), USAGE.values(), ids=USAGE)
def test_invalid_arguments(folder: Path, arguments: list[str], text_column: str | None, message: str) -> None:
    (folder / "folder.txt").mkdir()
    (folder / "data.json").write_text("{}")
    (folder / "a.csv").write_text("id,review\n1,x\n")
    (folder / "a.jsonl").write_text('{"a": "1", "b": "2"}\n')
    (folder / "empty.jsonl").write_text("{}\n")
    with pytest.raises(UsageError) as caught:
        read(*arguments, text_column=text_column)
    assert message in str(caught.value)


FAULTY = {
    "empty txt": ("a.txt", b"", "a.txt holds no text; write one text per line"),
    "blank txt": ("a.txt", b"\n \r\n\t", "a.txt holds no text"),
    "latin-1 txt": (
        "a.txt",
        b"one\r\ntwo\r\ncaf\xe9\r\n",
        "a.txt line 3 is not valid UTF-8 (byte 0xe9); save it as UTF-8",
    ),
    "latin-1 after a mark": ("a.txt", b"\xef\xbb\xbfone\n\xff\n", "a.txt line 2 is not valid UTF-8 (byte 0xff)"),
    "utf-16 csv": ("a.csv", "text\nhello\n".encode("utf-16"), "a.csv line 1 is not valid UTF-8"),
    "utf-16 without mark": ("a.csv", "text\nhello\n".encode("utf-16-le"), "a.csv line 1 holds a NUL character"),
    "nul": ("a.txt", b"one\ntw\0o\n", "a.txt line 2 holds a NUL character; remove it, or save"),
    "header only": ("a.csv", b"id,text\n", "a.csv holds no rows"),
    "same name twice": ("a.csv", b"text,id,id\nx,1,2\n", "a.csv has several columns called 'id'; rename all but one"),
    "ragged": ("a.csv", b"id,text\n1,a\n\n2,b,c\n", "a.csv row 4 has 3 cells, the header has 2 columns; put cells"),
    "short row": ("a.csv", b"id,text\n1\n", "a.csv row 2 has 1 cells, the header has 2 columns"),
    "open quote": ("a.csv", b'text,id\na,1\n"b,2\nc,3\n', "a.csv row 3 is not valid csv"),
    "text after quote": ("a.csv", b'text,id\n"a"b,1\n', "a.csv row 2 is not valid csv"),
    "empty cell": ("a.csv", b"id,text\n1,a\n2, \n", "a.csv row 3, column 'text', is empty; fill it or remove it"),
    "row of many lines": ("a.csv", b'id,text\n1,"a\nb\nc"\n2,\n', "a.csv row 3, column 'text', is empty"),
    "not json": ("a.jsonl", b'{"text": "a"}\n{"text": \n', "a.jsonl line 2: Input data was truncated; write one JSON"),
    "not an object": ("a.jsonl", b'\n["a"]\n', "a.jsonl line 2: Expected `object`, got `array`"),
    "endless nesting": ("a.jsonl", b'{"text": ' + b"[" * 100_000, "a.jsonl line 1: "),
    "half a surrogate": ("a.jsonl", rb'{"text": "\ud800 and some more text"}', "a.jsonl line 1: "),
    "nan": ("a.jsonl", b'{"text": "a", "n": NaN}', "a.jsonl line 1: JSON is malformed"),
    "column lost": ("a.jsonl", b'{"text": "a"}\n{"body": "b"}\n', "a.jsonl line 2 has no column 'text', only 'body'"),
    "empty string": ("a.jsonl", b'{"text": ""}\n', "a.jsonl line 1, column 'text', is empty"),
    "null": ("a.jsonl", b'{"text": null}\n', "a.jsonl line 1, column 'text', is null, expected a string"),
    "truth": ("a.jsonl", b'{"text": true}\n', "column 'text', is true or false, expected a string"),
    "number": ("a.jsonl", b'{"text": 1.5}\n', "a.jsonl line 1, column 'text', is a number, expected a string"),
    "array": ("a.jsonl", b'{"text": []}\n', "a.jsonl line 1, column 'text', is an array, expected a string"),
    "object": ("a.jsonl", b'{"text": {}}\n', "a.jsonl line 1, column 'text', is an object, expected a string"),
    "escaped nul": ("a.jsonl", rb'{"text": "a\u0000"}', "a.jsonl line 1, column 'text', holds a NUL character"),
}


@pytest.mark.parametrize(("name", "content", "message"), FAULTY.values(), ids=FAULTY)
def test_faulty_files(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
