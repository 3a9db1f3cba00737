"""Windows of texts that are longer than the encoder's maximum length.

A text is split into as few windows as possible, of nearly equal length, and consecutive windows overlap. Boundaries are
those of tokens, not of words or sentences: a phrase that one boundary cuts is whole in the next window if it is shorter
than the overlap. The engines treat windows as texts, in the same batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.errors import UsageError
from mtllm_edge.inputs import Kind
from mtllm_edge.tokenization.encoding import Encoding

LongTexts = Literal["cut", "pool"]
"""Treatment of a text longer than the encoder takes: drop its end, or read it in windows and average their vectors."""
OVERLAP = 64
"""Overlap of consecutive windows in tokens, but at most a quarter of a window."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of several texts, text after text."""

    encodings: list[Encoding]
    counts: list[int]
    """Windows of each text, at least one."""

    @property
    def by_text(self) -> list[list[Encoding]]:
        """Windows of each text."""
        ends = np.cumsum(self.counts, dtype=int).tolist()
        return [self.encodings[end - count : end] for end, count in zip(ends, self.counts, strict=True)]

    def mean(self, rows_WX: NDArray[np.float32]) -> NDArray[np.float32]:
        """Average the rows of each text's windows, weighted by their tokens: (windows, X) to (texts, X).

        The row of a single window is returned unchanged.
        """
        if len(self.encodings) == len(self.counts):
            return rows_WX
        counts_N = np.array(self.counts)
        first_N = np.cumsum(counts_N) - counts_N
        tokens_W = np.array([len(window.ids) for window in self.encodings], np.float64)
        sums_NX = np.add.reduceat(rows_WX * tokens_W[:, None], first_N)
        means_NX = (sums_NX / np.add.reduceat(tokens_W, first_N)[:, None]).astype(rows_WX.dtype)
        means_NX[counts_N == 1] = rows_WX[first_N[counts_N == 1]]
        return means_NX

    def text_progress(self, progress: Callable[[int], None] | None) -> Callable[[int], None] | None:
        """Return a callback for numbers of windows that calls `progress` with numbers of texts, rounded down."""
        if progress is None or len(self.encodings) == len(self.counts):
            return progress
        windows_done, texts_done = 0, 0

        def advance(windows: int) -> None:
            nonlocal windows_done, texts_done
            windows_done += windows
            texts = windows_done * len(self.counts) // len(self.encodings)
            progress(texts - texts_done)
            texts_done = texts

        return advance


def check_long_texts(long_texts: str, kind: Kind, name: str) -> None:
    """Refuse windows for inputs of several parts; `name` is the task in messages.

    Each window of a premise would be compared with the whole hypothesis, and the mean is no comparison of the pair.

    Raises:
        UsageError: `long_texts` is invalid, or requires windows for another kind than ``sequence``.
    """
    options = get_args(LongTexts)
    if long_texts not in options:
        raise UsageError(f"long_texts is {long_texts!r}, expected {' or '.join(map(repr, options))}")
    if long_texts != "cut" and kind != "sequence":
        raise UsageError(f"{name} is of the kind {kind!r}, and only single texts are read in windows; choose 'cut'")


def split_into_windows(texts: Sequence[Encoding], *, prefix: int, suffix: int, max_tokens: int) -> Windows:
    """Split single texts, encoded without truncation, into windows of at most `max_tokens`, special tokens included.

    Each window has the text's special tokens: `prefix` at the beginning, `suffix` at the end.
    """
    windows: list[Encoding] = []
    counts = []
    for text in texts:
        end_of_text = len(text.ids) - suffix
        spans = window_spans(end_of_text - prefix, max_tokens - prefix - suffix)
        if len(spans) == 1:
            windows.append(text)
        else:
            head, body, tail = text.ids[:prefix], text.ids[prefix:end_of_text], text.ids[end_of_text:]
            windows += [replace(text, ids=[*head, *body[begin:end], *tail]) for begin, end in spans]
        counts.append(len(spans))
    return Windows(windows, counts)


def window_spans(length: int, max_length: int) -> list[tuple[int, int]]:
    """Return begin and end (excluded) of each window of a text of `length` tokens, special tokens excluded."""
    if length <= max_length:
        return [(0, length)]
    overlap = min(OVERLAP, max_length // 4)
    count = -(-(length - overlap) // (max_length - overlap))
    starts = [number * (length - overlap) // count for number in range(count + 1)]
    return [(begin, next_begin + overlap) for begin, next_begin in itertools.pairwise(starts)]
