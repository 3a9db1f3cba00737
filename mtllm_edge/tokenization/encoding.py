"""Encodings: special tokens around the parts of an input, truncation, and deduplication."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

Spans: TypeAlias = tuple[tuple[int, int], ...]
"""Begin and end (excluded) of each span of a text that gets a vector of its own; empty: one vector for the text."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """Token ids of one text, pair, or text with choices."""

    ids: list[int]
    """Token ids, including the special ones."""
    truncated: bool
    """Whether the longest parts were cut at the end, to the model's maximum length."""
    choice_spans: Spans = ()
    """Span of each choice in `ids`; empty without choices."""
    language: str | None = None
    """Language code that the text is encoded with; None if unknown."""

    @property
    def vector_count(self) -> int:
        """Number of pooled vectors: one, or one per choice."""
        return len(self.choice_spans) or 1


@dataclass(frozen=True, slots=True)
class SpecialTokenTemplate:
    """Ids of the special tokens of an input."""

    prefix: Sequence[int]
    separator: Sequence[int]
    """Before every part but the first."""
    suffix: Sequence[int]
    language: str | None = None
    """Code of the language in the special tokens."""

    def join(self, parts: Sequence[Sequence[int]], *, choices: bool, max_tokens: int) -> Encoding:
        """Join the ids of parts with special tokens, and truncate them to `max_tokens`, at least `min_length`.

        The longest parts are cut at the end, so that all parts stay as long as possible: of a long text with short
        choices, the text is cut. No part is dropped. With `choices`, the parts after the first get vectors of their
        own.
        """
        lengths = [len(part) for part in parts]
        allocated = allocate_lengths(lengths, max_tokens - self.min_length(len(parts)) + len(parts))
        ids = [*self.prefix, *parts[0][: allocated[0]]]
        spans = []
        for part, length in zip(parts[1:], allocated[1:], strict=True):
            ids += self.separator
            spans.append((len(ids), len(ids) + length))
            ids += part[:length]
        return Encoding([*ids, *self.suffix], allocated != lengths, tuple(spans) if choices else (), self.language)

    def min_length(self, parts: int) -> int:
        """Return the minimum length of a number of parts: a token of each, and the special tokens."""
        return len(self.prefix) + len(self.separator) * (parts - 1) + len(self.suffix) + parts


def deduplicate(encodings: Sequence[Encoding]) -> tuple[list[Encoding], list[int]]:
    """Return the distinct encodings in their first order, and for each encoding its index among them."""
    indices: dict[tuple[tuple[int, ...], Spans], int] = {}
    distinct: list[Encoding] = []
    inverse = []
    for encoding in encodings:
        index = indices.setdefault((tuple(encoding.ids), encoding.choice_spans), len(distinct))
        if index == len(distinct):
            distinct.append(encoding)
        inverse.append(index)
    return distinct, inverse


def downsample_spans(spans: Spans, stride: int) -> Spans:
    """Return spans of a sequence in which `stride` positions became one; spans may then share a position."""
    return tuple((begin // stride, -(-end // stride)) for begin, end in spans)


def allocate_lengths(lengths: Sequence[int], total: int) -> list[int]:
    """Allocate a total length to parts: the longest are cut first, to nearly equal lengths."""
    allocated = [0] * len(lengths)
    shortest_first = sorted(range(len(lengths)), key=lengths.__getitem__)
    for done, index in enumerate(shortest_first):
        allocated[index] = min(lengths[index], total // (len(lengths) - done))
        total -= allocated[index]
    return allocated
