"""Streaming of a corpus: formats, interleaving, shuffling, and errors of one line."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from mtllm_edge.errors import DataError, MtllmError, UsageError
from mtllm_edge_train.data.streams import StreamedBatches, TextStream, survey

TEXTS = ["one", "two \u2028 with a line separator", "drei, mit Komma"]


def save(folder: Path, texts: list[str]) -> None:
    """Write the same texts in several formats."""
    lines = [text + "\n" for text in texts]
    (folder / "a.txt").write_text("\ufeff" + "\r\n".join(texts) + "\n\n", newline="")
    (folder / "b.txt.zst").write_bytes(
        zstandard.compress("".join(lines[:1]).encode()) + zstandard.compress("".join(lines[1:]).encode())
    )
    (folder / "c.csv").write_text("label;text\n" + "".join(f'x;"{text}"\n\n' for text in texts))
    rows = "".join(json.dumps({"text": text, "label": 1}) + "\n" for text in [*texts, None, " "])
    (folder / "d.jsonl").write_text(rows)
    (folder / "e.jsonl.zst").write_bytes(zstandard.compress(rows.encode()))
    pyarrow.parquet.write_table(pyarrow.table({"label": [1] * 4, "text": [*texts, None]}), folder / "f.parquet")


def test_all_formats_have_the_same_texts(tmp_path: Path) -> None:
    save(tmp_path, TEXTS)
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 6
    for path in paths:
        assert list(TextStream([path])) == TEXTS, path


def test_files_of_folders_globs_and_lists_are_interleaved(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    save(tmp_path / "deep", TEXTS)
    (tmp_path / "deep" / "readme.md").write_text("no text")
    interleaved = [text for text in TEXTS for _ in range(6)]
    assert list(TextStream([tmp_path])) == interleaved
    assert list(TextStream([tmp_path / "*" / "?.*"])) == interleaved
    assert list(TextStream(sorted((tmp_path / "deep").glob("?.*")))) == interleaved
    more = tmp_path / "more"
    more.mkdir()
    for number in range(40):
        (more / f"{number:02}.txt").write_text(f"{number} a\n{number} b\n")
    texts = list(TextStream([more]))
    assert texts[:17] == [*(f"{number} a" for number in range(16)), "0 b"]
    assert sorted(texts) == sorted(f"{number} {side}" for number in range(40) for side in "ab")


def test_streaming_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    for split, texts in (("train", TEXTS), ("test", ["four"])):
        rows = "".join(json.dumps({"body": text, "n": 1}) + "\n" for text in texts)
        (folder / f"{split}.jsonl").write_text(rows)
    stream = TextStream([f"hub:{folder}"], column="body")
    assert list(stream) == list(stream) == TEXTS
    assert list(TextStream([f"hub:{folder}:default:test"], column="body")) == ["four"]
    assert survey(stream, limit=10, sample=2, seed=0).total == 2  # a data set may be remote and is not read twice
    with pytest.raises(UsageError, match="has no column 'text', only 'body', 'n'"):
        list(TextStream([f"hub:{folder}"]))
    for name in (f"hub:{tmp_path}/none", f"hub:{folder}::validation"):
        with pytest.raises(DataError, match=r"^hub:.* cannot be read \(.*; check its name") as caught:
            list(TextStream([name]))
        assert "\n" not in str(caught.value)
    for name in ("hub:", "hub:a:b:c:d"):
        with pytest.raises(UsageError, match="names no data set; write hub:ID"):
            TextStream([name])


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.txt", b"", DataError, "holds no text"),
        ("a.txt", b" \n\n", DataError, "holds no text"),
        ("a.txt", b"fine\r\n\xff\n", DataError, r"line 2 is not valid UTF-8 \(byte 0xff\)"),
        ("a.txt", b"fine\nno\0text", DataError, "line 2 holds a NUL"),
        ("a.csv", b"", DataError, "holds no rows"),
        ("a.csv", b"text,label\n", DataError, "holds no rows"),
        ("a.csv", "text,label\nx,é\n".encode("latin-1"), DataError, "row 2 is not valid UTF-8"),
        ("a.csv", b"body,label\nx,y\n", UsageError, "no column 'text', only 'body', 'label'"),
        ("a.csv", b'text\n"x\n', DataError, "row 2 is not valid csv"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 5}\n', DataError, "line 2, column 'text', is a number"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "x"}\n', DataError, "line 2 has no column 'text', only 'body'"),
        ("a.jsonl", b"[1]\n", DataError, "line 1: "),
        ("a.jsonl", b'{"text": null}\n', DataError, "holds no text"),
        ("a.parquet", b"PAR1 no", DataError, "not a readable parquet file"),
        ("a.txt.zst", b"plain words", DataError, "not a readable zstd file"),
        ("a.md", b"text", UsageError, "files of texts end in .txt, .csv"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes, error: type[MtllmError], message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        list(TextStream([path]))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parquet_without_text(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2], "n": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="row 1, column 'text', is a number"):
        list(TextStream([tmp_path / "a.parquet"]))
    with pytest.raises(UsageError, match="no column 'body'"):
        list(TextStream([tmp_path / "a.parquet"], column="body"))


@pytest.mark.parametrize("keep", [0.5, 0.99, 1.0])
def test_a_truncated_archive_is_an_error(tmp_path: Path, keep: float) -> None:
    lines = "".join(f"sentence number {number}\n" for number in range(50_000))
    packed = zstandard.compress(lines.encode())
    (tmp_path / "a.txt.zst").write_bytes(packed[: int(keep * len(packed))])
    texts = TextStream([tmp_path / "a.txt.zst"])
    if keep == 1:
        assert list(texts) == lines.splitlines()
        return
    with pytest.raises(DataError, match="cut short"):
        survey(texts, limit=10**6, sample=2, seed=0)


def test_missing_files(tmp_path: Path) -> None:
    for name, message in (
        ("a.txt", "does not exist; check the path"),
        ("a.txt.zst", "does not exist; check the path"),
        ("a*.txt", "matches no file; check the pattern"),
        ("", "holds no file that ends in .txt, .csv"),
    ):
        with pytest.raises(UsageError, match=message):
            TextStream([tmp_path / name])


def test_a_survey_reads_the_texts_of_the_run(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"{number}\n" for number in range(1000)))
    texts = [str(number) for number in range(1000)]
    result = survey(TextStream([path]), limit=2000, sample=100, seed=0)
    assert result == survey(texts, limit=2000, sample=100, seed=0)
    assert (result.total, len(result.sample), len(set(result.sample))) == (1000, 100, 100)
    assert 300 < sum(map(int, result.sample)) / 100 < 700
    assert survey([*texts, "more"], limit=1000, sample=1, seed=0).digest == result.digest
    assert survey([*texts[:-1], "other"], limit=1000, sample=1, seed=0).digest != result.digest
    assert (
        survey(["ab", "c"], limit=9, sample=1, seed=0).digest != survey(["a", "bc"], limit=9, sample=1, seed=0).digest
    )
    assert survey(["a"], limit=9, sample=5, seed=0).sample == ["a"]


def test_batches_cover_an_epoch_in_windows_and_are_reproducible() -> None:
    lengths = [*range(1, 51)]
    random.Random(0).shuffle(lengths)
    texts = ["x" * length for length in lengths]
    batches = StreamedBatches(texts, 4, seed=3, window=16)
    first, second = ([batches[step] for step in range(start, start + 12)] for start in (0, 12))
    for epoch in (first, second):  # 50 texts: 3 windows of 4 batches, and 2 texts that no batch holds
        for window in range(3):
            batch_texts = [text for batch in epoch[4 * window : 4 * window + 4] for text in batch]
            assert sorted(batch_texts) == sorted(texts[16 * window : 16 * window + 16])
    assert first != second
    assert [sorted(batch) for batch in first] != [sorted(texts[4 * step : 4 * step + 4]) for step in range(12)]
    for order in ((23, 11, 2, 7), (2, 7, 11, 23)):
        again = StreamedBatches(list(texts), 4, seed=3, window=16)
        assert [again[step] for step in order] == [[*first, *second][step] for step in order]
    other = StreamedBatches(texts, 4, seed=4, window=16)
    assert [other[step] for step in range(12)] != first


def test_batches_hold_texts_of_similar_length() -> None:
    texts = ["x" * length for length in random.Random(0).choices(range(1, 1000), k=1024)]
    batches = StreamedBatches(texts, 16, seed=0)
    spans = [max(map(len, batch)) - min(map(len, batch)) for batch in (batches[step] for step in range(64))]
    assert sum(spans) / 64 < 100


def test_a_corpus_smaller_than_a_batch_is_one_batch() -> None:
    batches = StreamedBatches(["a", "b", "c"], 8, seed=0)
    assert [sorted(batches[step]) for step in range(3)] == [["a", "b", "c"]] * 3


def test_texts_that_cannot_be_read_twice_are_refused() -> None:
    batches = StreamedBatches(iter(["a", "b"]), 2, seed=0)
    assert sorted(batches[0]) == ["a", "b"]
    with pytest.raises(UsageError, match="only once"):
        batches[1]


class Endless:
    """An endless corpus, which counts its texts."""

    read = 0

    def __iter__(self) -> Iterator[str]:
        while True:
            self.read += 1
            yield f"text number {self.read} " + "x" * 1000


def test_memory_is_bounded() -> None:
    corpus = Endless()
    batches = StreamedBatches(corpus, 10, seed=0, window=1000)
    tracemalloc.start()
    try:
        for step in range(2000):
            batches[step]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert corpus.read == 20_000
    assert peak < 6e6  # two windows and their bookkeeping; all texts together have 20 MB


def test_a_large_file_is_not_read_to_its_end_for_its_first_batch(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"some words\n" * 500_000 + b"\xff\n")
    batches = StreamedBatches(TextStream([path]), 8, seed=0, window=1000)
    assert batches[200] == ["some words"] * 8
    assert list(islice(TextStream([path]), 3)) == ["some words"] * 3
    with pytest.raises(DataError, match="line 500001 is not valid UTF-8"):
        survey(TextStream([path]), limit=10**6, sample=2, seed=0)
