"""Parallel sentences with English, and their sampling."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import tokenizers

from mtllm_edge.errors import DataError

_WINDOW = 32
"""Batches that are sampled together; pairs of similar length go into one batch, which reduces padding."""
_MAX_DRAWS = 20
"""Draws for a window before too few pairs within the length limit are an error."""


class SentencePair(NamedTuple):
    """A sentence and its English translation."""

    language: str
    text: str
    english: str
    weight: float = 1.0
    """Relative sampling probability."""


class TokenPair(NamedTuple):
    """A tokenized pair."""

    source: list[int]
    """The sentence in the encoder's tokens."""
    english: list[int]
    """The translation in the encoder's tokens."""
    target: list[int]
    """The translation in the decoder's tokens, with the end token."""

    def lengths(self) -> tuple[int, ...]:
        """Numbers of tokens."""
        return len(self.source), len(self.target), len(self.english)


class PairTokenizer:
    """Tokenizes sentence pairs for an encoder-decoder."""

    def __init__(self, encoder_tokenizer_json: str, target_tokenizer_json: str) -> None:
        """Load the tokenizers of the encoder, with special tokens, and the decoder, with the end token ``</s>``."""
        self._encoder_tokenizer = _load(encoder_tokenizer_json)
        self._target_tokenizer = _load(target_tokenizer_json)
        self._end = self._target_tokenizer.get_vocab()["</s>"]

    def __call__(self, pairs: Sequence[SentencePair]) -> list[TokenPair]:
        """Tokenize pairs without truncation."""
        texts = self._encoder_tokenizer.encode_batch_fast([pair.text for pair in pairs])
        english = self._encoder_tokenizer.encode_batch_fast([pair.english for pair in pairs])
        targets = self._target_tokenizer.encode_batch_fast([pair.english for pair in pairs], add_special_tokens=False)
        sides = zip(texts, english, targets, strict=True)
        return [TokenPair(text.ids, same.ids, [*target.ids, self._end]) for text, same, target in sides]


class Tokenized(Protocol):
    """An example of a batch."""

    def lengths(self) -> tuple[int, ...]:
        """Numbers of tokens."""


Example = TypeVar("Example", bound=Tokenized)


class PairSampler(Generic[Example]):
    """Batches of pairs, sampled by weight with replacement: a batch depends on seed and step only."""

    def __init__(
        self,
        pairs: Sequence[SentencePair],
        tokenize: Callable[[Sequence[SentencePair]], list[Example]],
        *,
        max_tokens: int,
        batch_size: int,
        seed: int,
    ) -> None:
        """Prepare the sampling; examples with more than `max_tokens` tokens are skipped."""
        self._pairs, self._tokenize = pairs, tokenize
        weights = np.array([pair.weight for pair in pairs], np.float64)
        self._cumulative_weights = np.cumsum(weights) / weights.sum()
        self._max_tokens, self._batch_size, self._seed = max_tokens, batch_size, seed
        self._current = -1
        self._batches: list[list[Example]] = []

    def __getitem__(self, step: int) -> list[Example]:
        """Examples of one batch.

        Raises:
            DataError: Almost no pair is within the length limit.
        """
        window, index = divmod(step, _WINDOW)
        if window != self._current:
            self._current, self._batches = window, self._sample(window)
        return self._batches[index]

    def _sample(self, window: int) -> list[list[Example]]:
        rng = np.random.default_rng((self._seed, window))
        count = _WINDOW * self._batch_size
        examples: list[Example] = []
        for _ in range(_MAX_DRAWS):
            indices = np.searchsorted(self._cumulative_weights, rng.random(count), side="right")
            drawn = self._tokenize([self._pairs[min(int(index), len(self._pairs) - 1)] for index in indices])
            examples += [example for example in drawn if max(example.lengths()) <= self._max_tokens]
            if len(examples) >= count:
                break
        else:
            raise DataError(
                f"almost no sentence pair has at most {self._max_tokens} tokens per side; increase max_tokens"
            )
        examples = sorted(examples[:count], key=lambda example: example.lengths())
        batches = [examples[start : start + self._batch_size] for start in range(0, count, self._batch_size)]
        return [batches[index] for index in rng.permutation(len(batches))]


def digest(pairs: Sequence[SentencePair]) -> str:
    """SHA-256 of pairs and weights."""
    sha256 = hashlib.sha256()
    for pair in pairs:
        sha256.update(repr(tuple(pair)).encode("utf-8", "surrogatepass"))
    return sha256.hexdigest()


def _load(tokenizer_json: str) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
