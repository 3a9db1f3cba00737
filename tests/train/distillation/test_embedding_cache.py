"""Cache of a teacher's vectors: exact, safe with two writers, and refused if damaged."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mtllm_edge.errors import EngineError, ModelError, UsageError
from mtllm_edge_train.distillation.embedding_cache import EmbeddingCache

KEY = {"llm": "some", "layers": 2}


def create_cache(folder: Path, texts: Sequence[str] = ("a", "b")) -> Path:
    EmbeddingCache(folder, KEY).put(texts, np.arange(3 * len(texts), dtype=np.float32).reshape(-1, 3))
    [path] = folder.iterdir()
    return path


def test_vectors_are_returned_unchanged(tmp_path: Path) -> None:
    create_cache(tmp_path)
    cache = EmbeddingCache(tmp_path, KEY)
    cache.put(["b", "c"], np.full((2, 3), 9, np.float32))
    vectors = cache.get(["c", "none", "b", "b"])
    assert {text: vector.tolist() for text, vector in vectors.items()} == {"c": [9, 9, 9], "b": [3, 4, 5]}
    texts = [str(number) for number in range(1200)]
    cache.put(texts, np.zeros((1200, 3), np.float32))
    assert len(cache.get(texts)) == 1200
    assert EmbeddingCache().get(["a"]) == {}
    assert EmbeddingCache(tmp_path, {**KEY, "layers": 3}).get(["a"]) == {}


def test_damaged_or_foreign_cache_is_refused(tmp_path: Path) -> None:
    path = create_cache(tmp_path, [str(number) for number in range(2000)])
    valid = path.read_bytes()

    def refused(message: str) -> None:
        with pytest.raises(ModelError, match=message) as caught:
            EmbeddingCache(tmp_path, KEY).get([str(number) for number in range(2000)])
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    path.write_bytes(b"some words " * 1000)
    refused("not a database.*remove it")
    path.write_bytes(valid[: len(valid) // 2])
    refused("malformed")
    path.write_bytes(valid)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE vectors SET vector = zeroblob(12) WHERE vector = (SELECT max(vector) FROM vectors)")
    refused("differs from its checksum")
    path.unlink()
    path.mkdir()
    with pytest.raises(EngineError, match="unable to open"):
        EmbeddingCache(tmp_path, KEY)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be created"):
        EmbeddingCache(tmp_path / "file" / "cache", KEY)


WRITER = """
import sys
from pathlib import Path
import numpy as np
from mtllm_edge_train.distillation.embedding_cache import EmbeddingCache
cache = EmbeddingCache(Path(sys.argv[1]), {"llm": "some", "layers": 2})
for start in range(0, 2000, 10):
    texts = [str(number) for number in range(start, start + 10)]
    cache.get(texts)
    cache.put(texts, np.array([[int(text)] * 3 for text in texts], np.float32))
"""


def test_two_concurrent_writers(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    children = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    errors = [child.communicate(timeout=300)[1].decode() for child in children]
    assert [child.returncode for child in children] == [0, 0], errors
    vectors = EmbeddingCache(tmp_path, KEY).get([str(number) for number in range(2000)])
    assert {text: vector.tolist() for text, vector in vectors.items()} == {
        str(number): [number] * 3 for number in range(2000)
    }
