"""Cache of a teacher's vectors, for repeated texts and epochs and, on disk, for resumed runs and other students.

In SQLite, which is safe with several writers and killed processes. One file per teacher, named by a digest of its key.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.errors import EngineError, ModelError, UsageError

_LOCK_TIMEOUT = 600
"""Seconds to wait for the writes of other processes."""
_QUERY_SIZE = 500
"""Texts in one query; SQLite allows at least 999 variables."""


class EmbeddingCache:
    """Vectors by text, four bytes per dimension. Several processes may use a file at the same time."""

    def __init__(self, folder: Path | None = None, key: Mapping[str, Any] | None = None) -> None:
        """Open or create the file of one teacher in a folder; without a folder, the cache is in memory.

        The key contains everything that the vectors depend on (`teacher.plain_llm_key`).

        Raises:
            UsageError: The folder cannot be created.
            ModelError: The file is damaged.
            EngineError: SQLite cannot open or write it, because of permissions or a full disk.
        """
        self._path: Path | str = ":memory:"
        if folder is not None:
            description = json.dumps({"vectors": 1, **(key or {})}, sort_keys=True)
            self._path = folder / f"{hashlib.sha256(description.encode()).hexdigest()[:16]}.sqlite"
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UsageError(f"{folder} cannot be created ({error.strerror}); choose another folder") from None
        with self._translate_errors():
            self._connection = sqlite3.connect(self._path, timeout=_LOCK_TIMEOUT, isolation_level="IMMEDIATE")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS vectors (text BLOB PRIMARY KEY, vector BLOB, crc32 INTEGER)"
            )

    def get(self, texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Vectors (D,) of the texts that are in the cache.

        Raises:
            ModelError: The file is damaged.
        """
        by_digest = {_digest(text): text for text in texts}
        digests = list(by_digest)
        vectors = {}
        for start in range(0, len(digests), _QUERY_SIZE):
            part = digests[start : start + _QUERY_SIZE]
            query = f"SELECT text, vector, crc32 FROM vectors WHERE text IN ({','.join('?' * len(part))})"
            with self._translate_errors():
                rows = self._connection.execute(query, part).fetchall()
            for digest, vector, crc32 in rows:
                if zlib.crc32(vector) != crc32:
                    raise self._damaged("a vector differs from its checksum")
                vectors[by_digest[digest]] = np.frombuffer(vector, "<f4").astype(np.float32)
        return vectors

    def put(self, texts: Sequence[str], vectors_ND: NDArray[np.float32]) -> None:
        """Add vectors (N, D); existing entries are not replaced."""
        rows = []
        for text, vector_D in zip(texts, vectors_ND, strict=True):
            vector = vector_D.astype("<f4").tobytes()
            rows.append((_digest(text), vector, zlib.crc32(vector)))
        with self._translate_errors(), self._connection:
            self._connection.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?, ?)", rows)

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise EngineError(
                f"{self._path} cannot be used ({error}); free disk space or choose another folder"
            ) from None
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from None

    def _damaged(self, reason: str) -> ModelError:
        return ModelError(f"{self._path} is no valid cache of teacher vectors ({reason}); remove it to create it again")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
