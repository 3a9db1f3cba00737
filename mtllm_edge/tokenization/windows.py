"""Long texts in windows: nothing of a text is lost where it is longer than the encoder takes.

A text gets as few windows as it can, all of nearly the same length, so that none is a stub; neighbours share tokens.
A window begins and ends where a token does, not a word or a sentence: what is cut in two at the end of one stands whole
in the next, as long as it is shorter than what they share. To the engines windows are texts like any other, and go
through the same batches.
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
"""Tokens that neighbouring windows share, but a quarter of a window at most."""


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows of some texts, one after another."""

    encodings: list[Encoding]
    counts: list[int]
    """How many of them each text has, at least one."""

    @property
    def by_text(self) -> list[list[Encoding]]:
        """The windows of each text."""
        ends = np.cumsum(self.counts, dtype=int).tolist()
        return [self.encodings[end - count : end] for end, count in zip(ends, self.counts, strict=True)]

    def mean(self, rows_WX: NDArray[np.float32]) -> NDArray[np.float32]:
        """The mean over each text's windows, (texts, X), of what stands for each window, weighted by their tokens.

        What stands for a text's only window is given back as it is, to the last bit.
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
        """A `progress` that is told of windows, and tells of texts: the same share of them, rounded down."""
        if progress is None or len(self.encodings) == len(self.counts):
            return progress
        read, told = 0, 0

        def advance(windows: int) -> None:
            nonlocal read, told
            read += windows
            reached = read * len(self.counts) // len(self.encodings)
            progress(reached - told)
            told = reached

        return advance


def check_long_texts(long_texts: str, kind: Kind, reader: str) -> None:
    """Refuse windows where the parts of a text belong together.

    The windows of a premise would each be compared with the whole hypothesis, and the mean of that judges no pair.

    Args:
        long_texts: One of `LongTexts`.
        kind: The kind of what is read.
        reader: What the message calls the task.

    Raises:
        UsageError: No such way, or one with windows for another kind than ``sequence``.
    """
    ways = get_args(LongTexts)
    if long_texts not in ways:
        raise UsageError(f"long_texts is {long_texts!r}, expected {' or '.join(map(repr, ways))}")
    if long_texts != "cut" and kind != "sequence":
        raise UsageError(f"{reader} is of the kind {kind!r}, and only single texts are read in windows; choose 'cut'")


def split_into_windows(texts: Sequence[Encoding], *, before: int, after: int, max_tokens: int) -> Windows:
    """Split whole texts into windows, each with the special tokens of the whole.

    Args:
        texts: Single texts as `mtllm_edge.tokenization.tokenizer.Tokenizer.encode` gives them where nothing is cut.
        before: Special tokens at the beginning of each.
        after: Special tokens at the end of each.
        max_tokens: Longest window, the special ones included.
    """
    windows: list[Encoding] = []
    counts = []
    for text in texts:
        prefix, suffix = text.ids[:before], text.ids[len(text.ids) - after :]
        spans = window_spans(len(text.ids) - before - after, max_tokens - before - after)
        if len(spans) == 1:
            windows.append(text)
        else:
            windows += [
                replace(text, ids=[*prefix, *text.ids[before + begin : before + end], *suffix]) for begin, end in spans
            ]
        counts.append(len(spans))
    return Windows(windows, counts)


def window_spans(length: int, room: int) -> list[tuple[int, int]]:
    """First place and end (excluded) of each window.

    Args:
        length: Tokens of the text, without special ones.
        room: Most of them in a window, at least one.
    """
    if length <= room:
        return [(0, length)]
    overlap = min(OVERLAP, room // 4)
    count = -(-(length - overlap) // (room - overlap))
    starts = [number * (length - overlap) // count for number in range(count + 1)]
    return [(begin, next_begin + overlap) for begin, next_begin in itertools.pairwise(starts)]
