"""Oversampling of pairs with positive or negative sentiment."""

from __future__ import annotations

import pytest

from mtllm_edge_train.multilingual.pairs import SentencePair
from mtllm_edge_train.recipes.reference.sentiment_sampling import sample_sentiment

POSITIVE = "This is a wonderful day and I love it."
NEGATIVE = "The terrible war killed and destroyed everything."
PLAIN = "The committee met in the town on Monday."
PAIRS = [
    SentencePair("deu_Latn", "gut", POSITIVE, 1.0),
    SentencePair("swh_Latn", "nzuri", POSITIVE, 3.0),
    SentencePair("deu_Latn", "schlecht", NEGATIVE, 2.0),
    SentencePair("deu_Latn", "schlicht", PLAIN, 50.0),
    SentencePair("deu_Latn", "knapp", "I love it", 10.0),  # too short to be scored
    SentencePair("deu_Latn", "lang", " ".join([POSITIVE] * 5), 14.0),  # too long
    SentencePair("eng_Latn", POSITIVE, POSITIVE, 20.0),
]


def test_positive_and_negative_pairs_get_their_share() -> None:
    sampled = sample_sentiment(PAIRS, 0.15)
    assert [pair[:3] for pair in sampled] == [pair[:3] for pair in PAIRS]
    # the total weight is 100, so each sentiment gets 15
    assert [pair.weight for pair in sampled] == pytest.approx([3.75, 11.25, 15.0, 50.0, 10.0, 14.0, 20.0])


def test_a_missing_sentiment_is_left_out() -> None:
    assert sample_sentiment(PAIRS[3:], 0.15) == PAIRS[3:]
    assert [pair.weight for pair in sample_sentiment(PAIRS[2:4], 0.5)] == pytest.approx([26.0, 50.0])
    assert sample_sentiment([], 0.15) == []
