"""The teacher's vectors on disk: exact, safe with two writers, and refused where they are damaged."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mtllm_edge.errors import EngineError, ModelError, UsageError
from mtllm_edge_train.distillation.embedding_cache import VectorCache

KEY = {"llm": "some", "layers": 2}


def filled(folder: Path, texts: Sequence[str] = ("a", "b")) -> Path:
    VectorCache(folder, KEY, width=3).put(texts, np.arange(3 * len(texts), dtype=np.float32).reshape(-1, 3))
    [path] = folder.iterdir()
    return path


def test_vectors_come_back_as_they_were(tmp_path: Path) -> None:
    filled(tmp_path)
    cache = VectorCache(tmp_path, KEY, width=3)
    cache.put(["b", "c"], np.full((2, 3), 9, np.float32))
    found = cache.get(["c", "none", "b", "b"])
    assert {text: vector.tolist() for text, vector in found.items()} == {"c": [9, 9, 9], "b": [3, 4, 5]}
    texts = [str(number) for number in range(1200)]
    cache.put(texts, np.zeros((1200, 3), np.float32))
    assert len(cache.get(texts)) == 1200
    assert VectorCache(tmp_path, {**KEY, "layers": 3}, width=3).get(["a"]) == {}


def test_a_damaged_or_foreign_cache_is_refused(tmp_path: Path) -> None:
    path = filled(tmp_path, [str(number) for number in range(2000)])
    sound = path.read_bytes()

    def refused(message: str) -> None:
        with pytest.raises(ModelError, match=message) as caught:
            VectorCache(tmp_path, KEY, width=3).get([str(number) for number in range(2000)])
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    path.write_bytes(b"some words " * 1000)
    refused("not a database.*remove it")
    path.write_bytes(sound[: len(sound) // 2])
    refused("malformed")
    path.write_bytes(sound)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE vectors SET vector = zeroblob(12) WHERE vector = (SELECT max(vector) FROM vectors)")
    refused("differs from its checksum")
    path.write_bytes(sound)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE teacher SET description = 'another'")
    refused("another teacher")
    path.unlink()
    path.mkdir()
    with pytest.raises(EngineError, match="unable to open"):
        VectorCache(tmp_path, KEY, width=3)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be made"):
        VectorCache(tmp_path / "file" / "cache", KEY, width=3)


WRITER = """
import sys
from pathlib import Path
import numpy as np
from mtllm_edge_train.distillation.embedding_cache import VectorCache
cache = VectorCache(Path(sys.argv[1]), {"llm": "some", "layers": 2}, width=3)
for start in range(0, 2000, 10):
    texts = [str(number) for number in range(start, start + 10)]
    cache.get(texts)
    cache.put(texts, np.array([[int(text)] * 3 for text in texts], np.float32))
"""


def test_two_writers_do_not_harm_each_other(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    children = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    errors = [child.communicate(timeout=300)[1].decode() for child in children]
    assert [child.returncode for child in children] == [0, 0], errors
    found = VectorCache(tmp_path, KEY, width=3).get([str(number) for number in range(2000)])
    assert {text: vector.tolist() for text, vector in found.items()} == {
        str(number): [number] * 3 for number in range(2000)
    }
