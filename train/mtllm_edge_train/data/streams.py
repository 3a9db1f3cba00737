"""Texts for general adaptation, read as they are needed: a corpus may be larger than memory.

A corpus is anything that gives its texts again every time it is iterated: a list, or a `TextStream` over files and data
sets. Every iteration is an epoch. `StreamedBatches` shuffles within a window of it.
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
from mtllm_edge_train.data.batches import BatchOrder
from mtllm_edge_train.data.hub import is_hub_dataset, parse_dataset_name
from mtllm_edge_train.data.texts import SUFFIXES, check_file, read_source

WINDOW = 65_536
"""Texts that are shuffled together, and in memory together."""
_OPEN = 16
"""Files that are read in turns; the others wait until one of them ends."""


class TextStream:
    """The texts of files, folders and data sets. Several are read in turns, text by text, so that they mix."""

    def __init__(self, names: Sequence[str | Path], *, column: str | None = None) -> None:
        """Find the files; nothing is read yet.

        Args:
            names: Files with one of `texts.SUFFIXES`, folders of such files (subfolders too), globs, and data sets,
                named as at `hub.HUB`; their configuration may be left empty, their split is ``train`` unless
                told.
            column: Where the text is, but in .txt; None takes ``text``, else the only column.

        Raises:
            UsageError: A name that is neither of these.
        """
        self._names = list(itertools.chain.from_iterable(map(_expanded, map(str, names))))
        self._column = column

    @property
    def remote(self) -> bool:
        """Whether some texts may come over a network, where reading them twice is dear."""
        return any(map(is_hub_dataset, self._names))

    def __repr__(self) -> str:
        return f"TextStream({self._names}, column={self._column!r})"

    def __iter__(self) -> Iterator[str]:
        """The texts of one epoch.

        Raises:
            UsageError: A column that is not there.
            DataError: Something that cannot be read as text, or a file without any.
        """
        waiting = iter(self._names)
        reading = [read_source(name, column=self._column) for name in itertools.islice(waiting, _OPEN)]
        while reading:
            for texts in list(reading):
                text = next(texts, None)
                if text is not None:
                    yield text
                    continue
                reading.remove(texts)
                reading += [read_source(name, column=self._column) for name in itertools.islice(waiting, 1)]


def _expanded(name: str) -> list[str]:
    if is_hub_dataset(name):
        parse_dataset_name(name)
        return [name]
    path = Path(name)
    if path.is_dir():
        found = sorted(str(file) for file in path.rglob("*") if file.is_file() and file.name.endswith(SUFFIXES))
        if not found:
            raise UsageError(f"{name} holds no file that ends in {', '.join(SUFFIXES)}; name a folder of texts")
        return found
    if not path.exists() and glob.has_magic(name):
        found = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
        if not found:
            raise UsageError(f"{name} matches no file; check the pattern")
        return list(itertools.chain.from_iterable(map(_expanded, found)))
    check_file(path)
    return [name]


class Survey(NamedTuple):
    """What there is to know of a corpus before training on it."""

    total: int
    """Texts that were read."""
    digest: str
    """SHA-256 of them, in their order."""
    sample: list[str]
    """Some of them, drawn evenly."""


def survey(texts: Iterable[str], *, limit: int, sample: int, seed: int) -> Survey:
    """Read what a run is going to read, so that what is wrong with it is found now.

    Args:
        texts: The corpus.
        limit: Stop after this many texts. Of a remote corpus no more than `sample` are read.
        sample: Texts to draw; the corpus may hold fewer.
        seed: Of the draw.
    """
    if isinstance(texts, TextStream) and texts.remote:
        limit = min(limit, sample)
    digest = hashlib.sha256(repr(texts).encode() if isinstance(texts, TextStream) and texts.remote else b"")
    rng = random.Random(seed)
    drawn: list[str] = []
    count = 0
    for count, text in enumerate(itertools.islice(texts, limit), 1):
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
        if count <= sample:
            drawn.append(text)
        elif (place := rng.randrange(count)) < sample:
            drawn[place] = text
    return Survey(count, digest.hexdigest(), drawn)


class StreamedBatches:
    """A reproducible order of batches over a corpus: batch `step` depends on the corpus, the seed and the sizes alone.

    A window of texts is read, shuffled, and cut into batches of texts of similar length (`BatchOrder`); the last window
    of an epoch is the rest, of which less than a batch is left out. The next epoch shuffles anew. Reading goes forward:
    asked for a later step, as a resumed run does, it reads past what is between, and for an earlier one from the start.
    """

    def __init__(self, texts: Iterable[str], batch_size: int, *, seed: int, window: int = WINDOW) -> None:
        """Plan batches; a corpus of fewer than `batch_size` texts is one batch."""
        self._texts, self._batch_size, self._seed = texts, batch_size, seed
        self._span = max(1, window // batch_size) * batch_size
        self._rewind()

    def _rewind(self) -> None:
        self._windows = enumerate(self._read())
        self._first = self._end = 0
        """Steps that the present window serves: from the first one to the one before the end."""

    def __getitem__(self, step: int) -> list[str]:
        """The texts of one batch."""
        if step < self._first:
            self._rewind()
        while step >= self._end:
            self._number, self._window = next(self._windows)
            self._order = BatchOrder([len(text) for text in self._window], self._batch_size, seed=self._seed)
            self._first, self._end = self._end, self._end + self._order.batches_per_epoch
        index = self._number * self._order.batches_per_epoch + step - self._first
        return [self._window[place] for place in self._order[index]]

    def _read(self) -> Iterator[list[str]]:
        """Windows, epoch after epoch."""
        while True:
            empty = True
            texts = iter(self._texts)
            while window := list(itertools.islice(texts, self._span)):
                if len(window) >= self._batch_size or empty:
                    yield window
                empty = False
            if empty:
                raise UsageError("the texts can be read only once, but the run needs them again; give a list or files")
