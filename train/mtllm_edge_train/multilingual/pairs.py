"""Sentence pairs with English, and the order in which training draws them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import tokenizers

from mtllm_edge.errors import DataError

_WINDOW = 32
"""Batches that are drawn together; within them, pairs of similar length go together, which saves padding."""
_PATIENCE = 20
"""Draws of a window that may bring nothing that fits before it is given up."""


class Pair(NamedTuple):
    """A sentence and its English translation."""

    language: str
    text: str
    english: str
    weight: float = 1.0
    """How often it is drawn, relative to the others."""


class TokenPair(NamedTuple):
    """A pair as the models read it."""

    source: list[int]
    """The text as the encoder reads it."""
    english: list[int]
    """The translation as the encoder reads it."""
    target: list[int]
    """The translation as the decoder writes it, its end token included."""

    def lengths(self) -> tuple[int, ...]:
        """Tokens of the text, of its translation as written, and as read."""
        return len(self.source), len(self.target), len(self.english)


class TranslationReader:
    """Pairs as an encoder-decoder reads them."""

    def __init__(self, encoder_tokenizer_json: str, target_tokenizer_json: str) -> None:
        """Take both tokenizers.

        Args:
            encoder_tokenizer_json: Tokenizer of the encoder, with its frame.
            target_tokenizer_json: Tokenizer of the decoder; it has the end token ``</s>``.
        """
        self._encoder_tokenizer = _plain(encoder_tokenizer_json)
        self._target_tokenizer = _plain(target_tokenizer_json)
        self._end = self._target_tokenizer.get_vocab()["</s>"]

    def __call__(self, pairs: Sequence[Pair]) -> list[TokenPair]:
        """Pairs as tokens, whatever their length."""
        texts = self._encoder_tokenizer.encode_batch_fast([pair.text for pair in pairs])
        english = self._encoder_tokenizer.encode_batch_fast([pair.english for pair in pairs])
        targets = self._target_tokenizer.encode_batch_fast([pair.english for pair in pairs], add_special_tokens=False)
        sides = zip(texts, english, targets, strict=True)
        return [TokenPair(text.ids, same.ids, [*target.ids, self._end]) for text, same, target in sides]


Row = TypeVar("Row")


class DrawnPairs(Generic[Row]):
    """Batches of pairs drawn with replacement in proportion to their weight: batch `step` depends on the seed alone."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        read: Callable[[Sequence[Pair]], list[Row]],
        *,
        lengths: Callable[[Row], tuple[int, ...]],
        max_tokens: int,
        batch_size: int,
        seed: int,
    ) -> None:
        """Prepare to draw.

        Args:
            pairs: Where to draw from.
            read: Turns pairs into what a model reads.
            lengths: Tokens of each side of such a row; rows of similar lengths go together.
            max_tokens: Rows with a longer side are passed over.
            batch_size: Pairs in a batch.
            seed: Decides what is drawn.
        """
        self._pairs, self._read, self._lengths = pairs, read, lengths
        weights = np.array([pair.weight for pair in pairs], np.float64)
        self._borders = np.cumsum(weights) / weights.sum()
        self._max_tokens, self._batch_size, self._seed = max_tokens, batch_size, seed
        self._current = -1
        self._batches: list[list[Row]] = []

    def __getitem__(self, step: int) -> list[Row]:
        """One batch.

        Raises:
            DataError: Hardly any pair is short enough.
        """
        window, index = divmod(step, _WINDOW)
        if window != self._current:
            self._current, self._batches = window, self._drawn(window)
        return self._batches[index]

    def _drawn(self, window: int) -> list[list[Row]]:
        rng = np.random.default_rng((self._seed, window))
        wanted = _WINDOW * self._batch_size
        fitting: list[Row] = []
        for _ in range(_PATIENCE):
            places = np.searchsorted(self._borders, rng.random(wanted), side="right")
            drawn = self._read([self._pairs[min(int(place), len(self._pairs) - 1)] for place in places])
            fitting += [row for row in drawn if max(self._lengths(row)) <= self._max_tokens]
            if len(fitting) >= wanted:
                break
        else:
            raise DataError(f"hardly any sentence pair has at most {self._max_tokens} tokens on each side; allow more")
        fitting = sorted(fitting[:wanted], key=self._lengths)
        batches = [fitting[start : start + self._batch_size] for start in range(0, wanted, self._batch_size)]
        return [batches[place] for place in rng.permutation(len(batches))]


def digest(pairs: Sequence[Pair]) -> str:
    """SHA-256 of pairs and weights."""
    sha256 = hashlib.sha256()
    for pair in pairs:
        sha256.update(repr(pair).encode("utf-8", "surrogatepass"))
    return sha256.hexdigest()


def _plain(tokenizer_json: str) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
