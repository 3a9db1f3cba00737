"""The tokens of one reading: parts, what stands around and between them, and what had to be cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

Spans: TypeAlias = tuple[tuple[int, int], ...]
"""First place and end (excluded) of each piece of a row that gets a vector of its own; empty: one for the whole row."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """One text, pair, or text with choices as a model reads it."""

    ids: list[int]
    """Token ids, the special ones included."""
    truncated: bool
    """Whether it was longer than the model takes; then the longest of its parts lost their ends."""
    choice_spans: Spans = ()
    """Where each choice stands in `ids`; empty where there are none."""
    language: str | None = None
    """Code of the language that it is read as; None where nothing was said of it."""

    @property
    def vector_count(self) -> int:
        """How many vectors it is turned into: one, or one per choice."""
        return len(self.choice_spans) or 1


@dataclass(frozen=True, slots=True)
class SpecialTokenTemplate:
    """The special tokens of a reading, as ids."""

    prefix: Sequence[int]
    between: Sequence[int]
    """Before every part but the first."""
    suffix: Sequence[int]
    language: str | None = None
    """Code of the language that texts in this frame are read as."""

    def join(self, parts: Sequence[Sequence[int]], *, choices: bool, max_tokens: int) -> Encoding:
        """Put parts together.

        What does not fit is cut from the ends of the longest parts, so that all parts stay as long as they can: of a
        long text with short choices the text loses its end, and a part is never lost whole.

        Args:
            parts: Ids of each part, at least one of them.
            choices: Whether the parts after the first get vectors of their own.
            max_tokens: Longest result, at least `min_length` of the number of parts.
        """
        lengths = [len(part) for part in parts]
        kept = allocate_lengths(lengths, max_tokens - self.min_length(len(parts)) + len(parts))
        ids = [*self.prefix, *parts[0][: kept[0]]]
        spans = []
        for part, length in zip(parts[1:], kept[1:], strict=True):
            ids += self.between
            spans.append((len(ids), len(ids) + length))
            ids += part[:length]
        return Encoding([*ids, *self.suffix], kept != lengths, tuple(spans) if choices else (), self.language)

    def min_length(self, parts: int) -> int:
        """Length of the shortest reading of a number of parts: a token of each, and the frame."""
        return len(self.prefix) + len(self.between) * (parts - 1) + len(self.suffix) + parts


def deduplicate(texts: Sequence[Encoding]) -> tuple[list[Encoding], list[int]]:
    """Texts without repetition, in the order of their first coming, and for each of `texts` its place among them."""
    found: dict[tuple[tuple[int, ...], Spans], int] = {}
    firsts: list[Encoding] = []
    places = []
    for text in texts:
        place = found.setdefault((tuple(text.ids), text.choice_spans), len(firsts))
        if place == len(firsts):
            firsts.append(text)
        places.append(place)
    return firsts, places


def downsample_spans(spans: Spans, stride: int) -> Spans:
    """The same pieces where every `stride` places of the row became one; pieces that meet in a group share it."""
    return tuple((begin // stride, -(-end // stride)) for begin, end in spans)


def allocate_lengths(lengths: Sequence[int], room: int) -> list[int]:
    """Split room among parts so that the longest are cut first: each gets its length, or the same as all that are cut.

    Args:
        lengths: What the parts would take.
        room: What there is.
    """
    shares = [0] * len(lengths)
    shortest_first = sorted(range(len(lengths)), key=lengths.__getitem__)
    for done, index in enumerate(shortest_first):
        shares[index] = min(lengths[index], room // (len(lengths) - done))
        room -= shares[index]
    return shares
