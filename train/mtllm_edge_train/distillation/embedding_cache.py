"""Vectors of texts on disk, so that no teacher reads a text twice.

Repeated epochs, a resumed run and a second student of the same teacher find them there. SQLite, because it bears
several writers and a kill; one file per teacher, named by a digest of what decides its vectors. Needs no torch.
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

_PATIENCE = 600
"""Seconds to wait for another process that writes."""
_AT_ONCE = 500
"""Texts in one query; SQLite allows 999 variables and more."""


class VectorCache:
    """Vectors of texts in a folder, four bytes a dimension. Several processes may read and write it."""

    def __init__(self, folder: Path, key: Mapping[str, Any], *, width: int) -> None:
        """Open the file of one teacher, or make it.

        Args:
            folder: Where the files of all teachers are.
            key: What decides the vectors (`teacher_key`).
            width: D of the vectors.

        Raises:
            UsageError: The folder cannot be made.
            ModelError: The file is damaged or no cache of this teacher.
            EngineError: SQLite cannot use it, for want of room or of rights.
        """
        description = json.dumps({"vectors": 1, **key, "width": width}, sort_keys=True)
        self._width = width
        self._path = folder / f"{hashlib.sha256(description.encode()).hexdigest()[:16]}.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{folder} cannot be made ({error.strerror}); choose another folder") from None
        with self._one_line():
            self._connection = sqlite3.connect(self._path, timeout=_PATIENCE, isolation_level=None)
            with self._transaction():
                self._connection.execute("CREATE TABLE IF NOT EXISTS teacher (description TEXT PRIMARY KEY)")
                self._connection.execute(
                    "CREATE TABLE IF NOT EXISTS vectors (text BLOB PRIMARY KEY, vector BLOB, crc32 INTEGER)"
                )
                if not self._connection.execute("SELECT 1 FROM vectors LIMIT 1").fetchone():
                    self._connection.execute("INSERT OR IGNORE INTO teacher VALUES (?)", [description])
            described = self._connection.execute("SELECT description FROM teacher").fetchall()
        if described != [(description,)]:
            raise self._damaged("it is of another teacher")

    def get(self, texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The vectors (D,) of those texts that have one.

        Raises:
            ModelError: The file is damaged.
        """
        by_digest = {_digest(text): text for text in texts}
        digests = list(by_digest)
        found = {}
        for start in range(0, len(digests), _AT_ONCE):
            some = digests[start : start + _AT_ONCE]
            query = f"SELECT text, vector, crc32 FROM vectors WHERE text IN ({','.join('?' * len(some))})"
            with self._one_line():
                rows = self._connection.execute(query, some).fetchall()
            for digest, vector, crc32 in rows:
                if len(vector) != 4 * self._width or zlib.crc32(vector) != crc32:
                    raise self._damaged("a vector differs from its checksum")
                found[by_digest[digest]] = np.frombuffer(vector, "<f4").astype(np.float32)
        return found

    def put(self, texts: Sequence[str], vectors_ND: NDArray[np.float32]) -> None:
        """Add vectors (N, D); a text that has one by now keeps it."""
        rows = []
        for text, vector_D in zip(texts, vectors_ND, strict=True):
            vector = vector_D.astype("<f4").tobytes()
            rows.append((_digest(text), vector, zlib.crc32(vector)))
        with self._one_line(), self._transaction():
            self._connection.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?, ?)", rows)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise EngineError(
                f"{self._path} cannot be used ({error}); make room for it or choose another folder"
            ) from None
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from None

    def _damaged(self, reason: str) -> ModelError:
        return ModelError(
            f"{self._path} is no sound cache of teacher vectors ({reason}); remove it to have it made anew"
        )


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
