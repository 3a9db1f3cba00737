"""What models answered, on disk, so that an interrupted evaluation goes on where it was.

Answers are filed under a digest of the model and the texts: nothing has to be told to resume, and what two evaluations
have in common is computed once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from mtllm_edge import __version__
from mtllm_edge.bundle.writer import list_files
from mtllm_edge.files.atomic import atomic_file
from mtllm_edge.inputs import Input

Ask = Callable[[Sequence[Input], str], list[str]]
"""What a task reads and the code of its language -> a label of each; or texts -> a translation of each."""


class Answers:
    """A folder of answers; it is made when there is something to keep."""

    def __init__(self, folder: Path) -> None:
        """Name the folder."""
        self._folder = folder
        self._used: set[Path] = set()

    def get(self, key: str, texts: Sequence[Input], language: str) -> list[str] | None:
        """Answers of the model `key`, None where they are not known."""
        path = self._path(key, texts, language)
        self._used.add(path)
        try:
            return msgspec.json.decode(path.read_bytes(), type=list[str])
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def put(self, key: str, texts: Sequence[Input], language: str, answers: Sequence[str]) -> None:
        """Keep answers."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(self._path(key, texts, language), force=True) as file:
            file.write(msgspec.json.encode(answers))

    def forget(self) -> None:
        """Remove what was asked for here, and the folder if nothing else is in it."""
        for path in self._used:
            path.unlink(missing_ok=True)
        if self._folder.is_dir() and not any(self._folder.iterdir()):
            self._folder.rmdir()

    def _path(self, key: str, texts: Sequence[Input], language: str) -> Path:
        return self._folder / f"{digest(key, language, *texts)}.json"


class Model:
    """A model that is loaded when its first unknown answer is asked for."""

    def __init__(self, key: str, load: Callable[[], Ask], answers: Answers) -> None:
        """Describe a model.

        Args:
            key: Digest of all that its answers depend on but the texts and their language.
            load: Loads it.
            answers: What it answered before.
        """
        self._key, self._load, self._answers = key, load, answers
        self._ask: Ask | None = None

    def __call__(self, texts: Sequence[Input], language: str) -> list[str]:
        """Its answers, in the order of the texts."""
        known = self._answers.get(self._key, texts, language)
        if known is not None:
            return known
        if self._ask is None:
            self._ask = self._load()
        found = self._ask(texts, language)
        self._answers.put(self._key, texts, language, found)
        return found


def digest(*parts: Input) -> str:
    """A name for some strings, or what else a task reads, and the version of this program."""
    return hashlib.sha256(msgspec.json.encode([__version__, *parts])).hexdigest()[:32]


def folder_digest(folder: Path) -> str:
    """A name for the content of a folder."""
    return digest(msgspec.json.encode(list_files(folder)).decode())
