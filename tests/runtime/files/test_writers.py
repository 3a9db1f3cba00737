from __future__ import annotations

import csv
import errno
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtllm_edge.errors import UsageError
from mtllm_edge.files.atomic import atomic_file
from mtllm_edge.files.writers import free_names, write_csv, write_jsonl, write_npy


def test_atomic_file_writes_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    with atomic_file(target, force=False) as file:
        file.write(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_atomic_file_keeps_the_old_file_when_the_block_fails(tmp_path: Path, failure: type[BaseException]) -> None:
    target = tmp_path / "out.csv"
    target.write_bytes(b"old")
    with pytest.raises(failure), atomic_file(target, force=True) as file:  # noqa: PT012 (the block is what fails)
        file.write(b"half")
        raise failure
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_atomic_file_refuses_what_it_must_not_touch(tmp_path: Path) -> None:
    old = tmp_path / "old.csv"
    old.write_bytes(b"old")
    for path, force, message in (
        (old, False, "old.csv exists; add --force"),
        (tmp_path, True, "is not a plain file"),
        (Path(os.devnull), True, "is not a plain file"),
        (tmp_path / "none" / "out.csv", False, "none does not exist; create it"),
        (old / "out.csv", False, "old.csv does not exist; create it"),
    ):
        with pytest.raises(UsageError, match=message), atomic_file(path, force=force):
            pytest.fail("the block must not run")
    assert old.read_bytes() == b"old"


def test_atomic_file_follows_a_link_and_keeps_usual_permissions(tmp_path: Path) -> None:
    target, link, plain = tmp_path / "target.csv", tmp_path / "link.csv", tmp_path / "plain.csv"
    target.write_bytes(b"old")
    link.symlink_to(target)
    with atomic_file(link, force=True) as file:
        file.write(b"new")
    plain.write_bytes(b"")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode == plain.stat().st_mode


def test_a_full_disk_is_reported_with_the_name_that_the_user_gave(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"out\.csv") as caught, atomic_file(tmp_path / "out.csv", force=False):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(tmp_path / "out.csv")
    assert not list(tmp_path.iterdir())


def test_free_names_avoid_existing_columns() -> None:
    assert free_names(["label", "confidence"], ["text", "label"]) == {
        "label": "predicted_label",
        "confidence": "confidence",
    }
    assert free_names(["label"], ["label", "predicted_label"]) == {"label": "predicted_predicted_label"}


def test_csv_reads_back_as_it_was() -> None:
    records: list[dict[str, Any]] = [
        {"text": 'a "quoted", b', "n": "1"},
        {"text": "lines\nof\r\nany\rkind", "n": None},
        {"text": "मराठी 中文", "n": True},
        {"text": " x ", "n": {"deep": [1, 0.5]}},
        {"text": "no n"},
    ]
    file = io.BytesIO()
    write_csv(file, ["text", "n"], records)
    rows = list(csv.reader(io.StringIO(file.getvalue().decode(), newline="")))
    assert rows[0] == ["text", "n"]
    assert [row[0] for row in rows[1:]] == [record["text"] for record in records]
    assert [row[1] for row in rows[1:]] == ["1", "", "true", '{"deep":[1,0.5]}', ""]
    assert file.getvalue().startswith(b"text,n\n")


def test_jsonl_is_utf8_with_an_object_per_line() -> None:
    file = io.BytesIO()
    write_jsonl(file, [{"text": "ä\n中", "n": None}, {"text": "b"}])
    assert file.getvalue() == '{"text":"ä\\n中","n":null}\n{"text":"b"}\n'.encode()


def test_npy_reads_back_bit_for_bit(tmp_path: Path) -> None:
    vectors_NE = np.random.default_rng(0).standard_normal((3, 4), np.float32)
    with atomic_file(tmp_path / "a.npy", force=False) as file:
        write_npy(file, vectors_NE.tolist(), vectors_NE.shape)
    loaded_NE = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert loaded_NE.dtype == np.float32
    np.testing.assert_array_equal(loaded_NE, vectors_NE)
    usual = io.BytesIO()
    np.save(usual, vectors_NE)
    assert (tmp_path / "a.npy").read_bytes() == usual.getvalue()
