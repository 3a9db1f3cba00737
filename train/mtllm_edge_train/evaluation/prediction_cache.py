"""Predictions on disk, so that an interrupted evaluation resumes.

The file name is a digest of the model and the texts: a repeated command finds its predictions without further state,
and evaluations share the predictions that they have in common.
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
from mtllm_edge_train.checkpoints.config import StackConfig, resolve_source

Predictor = Callable[[Sequence[Input], str], list[str]]
"""Inputs of a task and their language code -> a label each; or texts -> a translation each."""


class PredictionCache:
    """A folder of predictions, created with its first file."""

    def __init__(self, folder: Path) -> None:
        """Set the folder."""
        self._folder = folder
        self._used: set[Path] = set()

    def get(self, model: str, texts: Sequence[Input], language: str) -> list[str] | None:
        """Return the predictions of a model, named by its digest; None if they are not cached."""
        path = self._path(model, texts, language)
        self._used.add(path)
        try:
            return msgspec.json.decode(path.read_bytes(), type=list[str])
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def put(self, model: str, texts: Sequence[Input], language: str, predictions: Sequence[str]) -> None:
        """Save predictions."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(self._path(model, texts, language), force=True) as file:
            file.write(msgspec.json.encode(predictions))

    def remove_used(self) -> None:
        """Remove the files that were requested since the start, and the folder if it is empty then."""
        for path in self._used:
            path.unlink(missing_ok=True)
        if self._folder.is_dir() and not any(self._folder.iterdir()):
            self._folder.rmdir()

    def _path(self, model: str, texts: Sequence[Input], language: str) -> Path:
        return self._folder / f"{digest(model, language, *texts)}.json"


class CachedPredictor:
    """A model that is loaded for the first predictions that are not cached."""

    def __init__(self, model: str, load: Callable[[], Predictor], cache: PredictionCache) -> None:
        """Describe a model by a digest of all that determines its predictions, besides texts and language."""
        self._model, self._load, self._cache = model, load, cache
        self._predict: Predictor | None = None

    def __call__(self, texts: Sequence[Input], language: str) -> list[str]:
        """Return the predictions, in the order of the texts."""
        predictions = self._cache.get(self._model, texts, language)
        if predictions is None:
            self._predict = self._predict or self._load()
            predictions = self._predict(texts, language)
            self._cache.put(self._model, texts, language, predictions)
        return predictions


def digest(*parts: Input) -> str:
    """Digest of strings or other inputs of a task, and of the version of this program."""
    return hashlib.sha256(msgspec.json.encode([__version__, *parts])).hexdigest()[:32]


def folder_digest(folder: Path) -> str:
    """Digest of the files in a folder."""
    return digest(msgspec.json.encode(list_files(folder)).decode())


def checkpoint_digest(folder: Path, config: StackConfig) -> str:
    """Digest of a checkpoint and of the local models that it refers to; a model on the hub is identified by its id."""
    sources = [config.llm.source] + ([config.encoder.source] if config.encoder else [])
    paths = [Path(resolve_source(source, folder)) for source in sources]
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    stamps = [f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    return digest(folder_digest(folder), *sources, *stamps)
