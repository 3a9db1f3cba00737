"""Reading training files: formats, and errors of one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from mtllm_edge.errors import DataError, MtllmError, UsageError
from mtllm_edge.files.columns import Columns
from mtllm_edge.inputs import Input
from mtllm_edge_train.data.labeled import LabeledTexts, read_inputs, read_labeled


def test_labels_of_every_kind_of_file(tmp_path: Path) -> None:
    texts = ["one", "two \u2028 with a line separator", "drei, mit Komma"]
    (tmp_path / "a.csv").write_text("label,text\n" + "".join(f'x,"{text}"\n' for text in texts))
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{text}", "label": 1}}\n\n' for text in texts))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": [1, 2, 1]}), tmp_path / "a.parquet")
    (tmp_path / "a.tsv").write_text("label\ttext\n" + "".join(f"x\t{text}\n" for text in texts))
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.parquet"):
        assert read_labeled(tmp_path / name).texts == texts, name
    assert read_labeled(tmp_path / "a.csv").labels == ["x", "x", "x"]
    assert read_labeled(tmp_path / "a.parquet").counts == {"1": 2, "2": 1}


def test_a_cell_may_be_long(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"text,label\n{'word ' * 40_000},x\n")
    assert len(read_labeled(tmp_path / "a.csv").texts[0]) > 131_072


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.md", b"text", UsageError, "files of texts end in .txt, .csv"),
        ("a.csv", b"text,label\n", DataError, "holds no rows"),
        ("a.csv", b"body,label\nx,y\n", UsageError, "no column 'text', only 'body', 'label'"),
        ("a.csv", b"text,label\nx\n", DataError, "row 2 has 1 cells"),
        ("a.jsonl", b'{"text": null, "label": "a"}', DataError, "column 'text', is null"),
        ("a.jsonl", b'{"text": "x", "label": null}', DataError, "line 1 has the label None"),
        ("a.jsonl", b'{"text": "x", "label": " "}', DataError, "line 1 has the label ' '"),
        ("a.jsonl", b'{"text": "x"}', UsageError, "line 1 has no column 'label'"),
        ("a.jsonl", b'{"text": "\\ud800", "label": "a"}', DataError, "line 1"),
        ("a.jsonl", b"[1]", DataError, "line 1"),
        ("a.parquet", b"PAR1 no", DataError, "not a readable parquet file"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes, error: type[MtllmError], message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        read_labeled(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parquet_without_text(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2], "label": ["a", "b"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="row 1, column 'text', is a number"):
        read_labeled(tmp_path / "a.parquet")


def test_a_missing_file(tmp_path: Path) -> None:
    for name in ("a.csv", "a.parquet"):
        with pytest.raises(UsageError, match="does not exist; check the path"):
            read_labeled(tmp_path / name)


def data_set(folder: Path, columns: dict[str, list[Any]], **classes: list[str]) -> str:
    """Write a folder that `datasets` reads as a data set with class indices; return its name."""
    features = datasets.Dataset.from_dict(columns).features
    for column, names in classes.items():
        features[column] = datasets.ClassLabel(names=names)
    folder.mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "train.parquet")
    return f"hub:{folder}"


def test_classes_of_a_data_set_are_replaced_by_their_names(tmp_path: Path) -> None:
    texts = ["one", "two", "three"]
    name = data_set(tmp_path / "topics", {"body": texts, "topic": [1, 0, 1]}, topic=["earth", "sky"])
    data = read_labeled(name, text_column="body", label_column="topic")
    assert (data.texts, data.labels, data.counts) == (texts, ["sky", "earth", "sky"], {"earth": 1, "sky": 2})
    assert read_inputs(name, text_column="body") == texts
    pairs = {"text": texts, "text_pair": ["x", "y", "z"], "label": [5, 7, 5]}
    data = read_labeled(data_set(tmp_path / "pairs", pairs))
    assert (data.inputs[1], data.labels) == (("two", "y"), ["5", "7", "5"])


def test_choices_of_a_data_set_are_labeled_by_their_index(tmp_path: Path) -> None:
    """The class names of COPA are choice1 and choice2, those of MMLU A, B, C and D."""
    columns = {"premise": ["one", "two"], "choice1": ["a", "b"], "choice2": ["c", "d"], "label": [1, 0]}
    name = data_set(tmp_path / "copa", columns, label=["choice1", "choice2"])
    data = read_labeled(name, text_column="premise", columns=Columns(choices=("choice1", "choice2")))
    assert (data.inputs, data.labels) == ([("one", ("a", "c")), ("two", ("b", "d"))], ["1", "0"])
    lists = {"text": ["one"], "choices": [["a", "b", "c"]], "answer": [2]}
    assert read_labeled(data_set(tmp_path / "mmlu", lists, answer=["A", "B", "C"]), label_column="answer").labels == [
        "2"
    ]


@pytest.mark.parametrize(
    ("suffix", "options", "error", "message"),
    [
        ("", {}, DataError, "row 2 has the label None, expected a word"),  # -1, as in test sets
        ("", {"label_column": "topic"}, UsageError, "row 1 has no column 'topic', only 'text', 'label', 'empty'"),
        ("", {"text_column": "body"}, UsageError, "has no column 'body'"),
        ("", {"text_column": "empty"}, DataError, "row 1, column 'empty', is empty"),
        ("", {"text_column": "label"}, DataError, "row 2, column 'label', is null"),
        (":default:validation", {}, DataError, r"cannot be read \(.*\); check its name, as hub:ID:CONFIG:SPLIT"),
        (":a:b:c", {}, UsageError, "names no data set"),
    ],
)
def test_invalid_data_sets(
    tmp_path: Path, suffix: str, options: dict[str, str], error: type[MtllmError], message: str
) -> None:
    columns = {"text": ["one", "two"], "label": [0, -1], "empty": ["", ""]}
    name = data_set(tmp_path / "set", columns, label=["a", "b"]) + suffix
    with pytest.raises(error, match=message) as caught:
        read_labeled(name, **options)
    assert str(caught.value).startswith(name)
    assert "\n" not in str(caught.value)


def test_a_parquet_file_may_have_one_column(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"body": ["one", "two"]}), tmp_path / "a.parquet")
    assert read_inputs(tmp_path / "a.parquet") == ["one", "two"]


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        ([("a", ["b", "c"]), ("a", ["b", "c", "d"])], ["0", "0"], "text 1 has 3 choices, text 0 has 2; give all the"),
        ([("a", ["b", "c"]), ("a", ["b", "c"])], ["0", "2"], "text 1 has the label '2', expected the number .* to 1"),
        ([("a", ["b", "c"]), ("a", "b")], ["0", "0"], "reads a text with its choices .* but text 1 is a pair"),
        (["a", "b"], ["0"], "there are 2 texts, 1 labels; give one of each"),
        (["a", ("b", "c")], ["0", "1"], "there are 2 texts, 2 labels, 1 second texts"),
    ],
)
def test_inconsistent_sets(inputs: list[Input], labels: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        LabeledTexts.of(inputs, labels)
