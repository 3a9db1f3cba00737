"""More of the pairs that say something good or bad.

Parallel corpora are mostly news, scripture and manuals, where next to nothing is of use to a student that is to learn
sentiment. VADER (Hutto and Gilbert 2014), a lexicon with rules, tells from the English sides which pairs are: well
enough to draw by; what is learned from them is what the teachers say.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mtllm_edge_train.multilingual.pairs import Pair
from mtllm_edge_train.recipes.reference.tasks import ENGLISH

_GOOD, _BAD = 0.6, -0.5
"""VADER's compound scores, from -1 to 1, that a sentence must at least reach, and at most have."""
_WORDS = range(4, 41)
"""Shorter texts are no sentences, and the score of longer ones is the sum of too many things."""


def sample_sentiment(pairs: Sequence[Pair], share: float) -> list[Pair]:
    """The pairs, those that say something good or bad with other weights.

    Args:
        pairs: Sentence pairs; those of English with itself are left as they are.
        share: What the good ones are to weigh together, and the bad ones, as a fraction of what all pairs weigh in
            `pairs`. A side without pairs stays empty.
    """
    signs = _signs({pair.english for pair in pairs if pair.language != ENGLISH})
    found = [0 if pair.language == ENGLISH else signs[pair.english] for pair in pairs]
    wanted = share * sum(pair.weight for pair in pairs)
    factors = {0: 1.0}
    for sign in {*found} - {0}:
        factors[sign] = wanted / sum(pair.weight for pair, own in zip(pairs, found, strict=True) if own == sign)
    return [pair._replace(weight=pair.weight * factors[sign]) for pair, sign in zip(pairs, found, strict=True)]


def _signs(sentences: Iterable[str]) -> dict[str, int]:
    """Sentence -> 1 where it says something good, -1 where it says something bad, else 0."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    score = SentimentIntensityAnalyzer().polarity_scores
    signs = dict.fromkeys(sentences, 0)
    for sentence in signs:
        if len(sentence.split()) in _WORDS:
            compound = score(sentence)["compound"]
            signs[sentence] = (compound >= _GOOD) - (compound <= _BAD)
    return signs
