"""Streaming of texts for general adaptation; a corpus may be larger than memory.

A corpus is an iterable of texts that can be iterated again: a list, or a `TextStream` over files and data sets. Every
iteration is an epoch. `StreamedBatches` shuffles within a window of the corpus.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mtllm_edge.errors import UsageError
from mtllm_edge.files.sources import SUFFIXES, open_source
from mtllm_edge_train.data.batches import BatchOrder
from mtllm_edge_train.data.hub import is_hub_dataset, parse_dataset_name
from mtllm_edge_train.data.texts import read_texts

WINDOW = 65_536
"""Number of texts that are in memory and shuffled together."""
_OPEN_FILES = 16
"""Number of files that are interleaved; the others follow when one of them ends."""


class TextStream:
    """The texts of files, folders and data sets, interleaved text by text."""

    def __init__(self, names: Sequence[str | Path], *, column: str | None = None) -> None:
        """Find the files; nothing is read yet.

        Args:
            names: Files with one of `sources.SUFFIXES`, folders with such files in any depth, globs, and data sets with
                names as in `hub.HUB`.
            column: Column of the text, except in .txt; None takes ``text`` or the only column.

        Raises:
            UsageError: A name is none of these.
        """
        self._names = list(itertools.chain.from_iterable(map(_expand, map(str, names))))
        self._column = column

    @property
    def remote(self) -> bool:
        """Whether the texts may come over a network, so that reading them twice is expensive."""
        return any(map(is_hub_dataset, self._names))

    def __repr__(self) -> str:
        return f"TextStream({self._names}, column={self._column!r})"

    def __iter__(self) -> Iterator[str]:
        """Iterate over the texts of an epoch.

        Raises:
            UsageError: A column is missing.
            DataError: A file cannot be read or has no texts.
        """
        names = iter(self._names)
        readers = [read_texts(name, column=self._column) for name in itertools.islice(names, _OPEN_FILES)]
        while readers:
            for texts in list(readers):
                text = next(texts, None)
                if text is not None:
                    yield text
                    continue
                readers.remove(texts)
                readers += [read_texts(name, column=self._column) for name in itertools.islice(names, 1)]


def _expand(name: str) -> list[str]:
    if is_hub_dataset(name):
        parse_dataset_name(name)
        return [name]
    path = Path(name)
    if path.is_dir():
        files = sorted(str(file) for file in path.rglob("*") if file.is_file() and file.name.lower().endswith(SUFFIXES))
        if not files:
            raise UsageError(f"{name} holds no file that ends in {', '.join(SUFFIXES)}; name a folder of texts")
        return files
    if not path.exists() and glob.has_magic(name):
        matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
        if not matches:
            raise UsageError(f"{name} matches no file; check the pattern")
        return list(itertools.chain.from_iterable(map(_expand, matches)))
    open_source(name)  # checks the name
    return [name]


class Survey(NamedTuple):
    """Properties of a corpus, measured before training."""

    total: int
    """Number of texts."""
    digest: str
    """SHA-256 of the texts in order."""
    sample: list[str]
    """A uniform random sample of the texts."""


def survey(texts: Iterable[str], *, limit: int, sample: int, seed: int) -> Survey:
    """Read the texts of a run once before it, to find errors early, and draw a sample of `sample` texts.

    At most `limit` texts are read, and of a remote corpus at most `sample`.
    """
    if isinstance(texts, TextStream) and texts.remote:
        limit = min(limit, sample)
    digest = hashlib.sha256(repr(texts).encode() if isinstance(texts, TextStream) and texts.remote else b"")
    rng = random.Random(seed)
    reservoir: list[str] = []
    count = 0
    for count, text in enumerate(itertools.islice(texts, limit), 1):
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
        if count <= sample:
            reservoir.append(text)
        elif (place := rng.randrange(count)) < sample:
            reservoir[place] = text
    return Survey(count, digest.hexdigest(), reservoir)


class StreamedBatches:
    """A reproducible order of batches over a corpus: batch `step` depends on the corpus, the seed and the sizes alone.

    A window of texts is read, shuffled, and cut into batches of texts of similar length by `BatchOrder`. The last
    window of an epoch is shorter, and its remainder below a batch is skipped. Every epoch is shuffled differently.
    For a later step, as in a resumed run, the texts before it are read and skipped; for an earlier step reading
    restarts.
    """

    def __init__(self, texts: Iterable[str], batch_size: int, *, seed: int, window: int = WINDOW) -> None:
        """Plan batches; a corpus with fewer than `batch_size` texts is one batch."""
        self._texts, self._batch_size, self._seed = texts, batch_size, seed
        self._span = max(1, window // batch_size) * batch_size
        self._rewind()

    def _rewind(self) -> None:
        self._windows = enumerate(self._read())
        self._first = self._end = 0
        """Range of the steps in the current window."""

    def __getitem__(self, step: int) -> list[str]:
        """Return the texts of a batch."""
        if step < self._first:
            self._rewind()
        while step >= self._end:
            self._number, self._window = next(self._windows)
            self._order = BatchOrder([len(text) for text in self._window], self._batch_size, seed=self._seed)
            self._first, self._end = self._end, self._end + self._order.batches_per_epoch
        index = self._number * self._order.batches_per_epoch + step - self._first
        return [self._window[place] for place in self._order[index]]

    def _read(self) -> Iterator[list[str]]:
        """The windows of all epochs."""
        while True:
            empty = True
            texts = iter(self._texts)
            while window := list(itertools.islice(texts, self._span)):
                if len(window) >= self._batch_size or empty:
                    yield window
                empty = False
            if empty:
                raise UsageError("the texts can be read only once, but the run needs them again; give a list or files")
