"""Reading training files: what is accepted, and one clear line for what is not."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from mtllm_edge.errors import DataError, MtllmError, UsageError
from mtllm_edge_train.data import read_labelled


def test_labels_of_every_kind_of_file(tmp_path: Path) -> None:
    texts = ["one", "two \u2028 with a line separator", "drei, mit Komma"]
    (tmp_path / "a.csv").write_text("label,text\n" + "".join(f'x,"{text}"\n' for text in texts))
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{text}", "label": 1}}\n\n' for text in texts))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": [1, 2, 1]}), tmp_path / "a.parquet")
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        assert read_labelled(tmp_path / name).texts == texts, name
    assert read_labelled(tmp_path / "a.csv").labels == ["x", "x", "x"]
    assert read_labelled(tmp_path / "a.parquet").counts == {"1": 2, "2": 1}


def test_a_cell_may_be_long(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"text,label\n{'word ' * 40_000},x\n")
    assert len(read_labelled(tmp_path / "a.csv").texts[0]) > 131_072


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.md", b"text", UsageError, "has the suffix '.md'"),
        ("a.csv", b"text,label\n", DataError, "holds a header but no rows"),
        ("a.csv", b"body,label\nx,y\n", UsageError, "no column 'text', only 'body', 'label'"),
        ("a.csv", b"text,label\nx\n", DataError, "row 2 has 1 cells"),
        ("a.jsonl", b'{"text": null, "label": "a"}', DataError, "column 'text', is null"),
        ("a.jsonl", b'{"text": "x", "label": null}', DataError, "text 1 has the label None"),
        ("a.jsonl", b'{"text": "x", "label": " "}', DataError, "text 1 has the label ' '"),
        ("a.jsonl", b'{"text": "x"}', UsageError, "text 1 has no column 'label'"),
        ("a.jsonl", b'{"text": "\\ud800", "label": "a"}', DataError, "line 1"),
        ("a.jsonl", b"[1]", DataError, "line 1"),
        ("a.parquet", b"PAR1 no", DataError, "not a readable parquet file"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, error: type[MtllmError], message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        read_labelled(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parquet_with_what_is_no_text(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2], "label": ["a", "b"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="row 1, column 'text', is a number"):
        read_labelled(tmp_path / "a.parquet")


def test_a_missing_file(tmp_path: Path) -> None:
    for name in ("a.csv", "a.parquet"):
        with pytest.raises(UsageError, match="is no file; check the path"):
            read_labelled(tmp_path / name)
