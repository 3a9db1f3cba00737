"""Oversampling of sentence pairs with positive or negative sentiment.

Parallel corpora are mostly news, scripture and manuals, with few examples of sentiment. VADER (Hutto and Gilbert 2014),
a lexicon with rules, finds them by the English side. It only weights the pairs; the training targets come from the
teachers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from mtllm_edge_train.multilingual.pairs import SentencePair
from mtllm_edge_train.recipes.reference.tasks import ENGLISH

_GOOD, _BAD = 0.6, -0.5
"""Thresholds of the compound score of VADER, from -1 to 1."""
_WORDS = range(4, 41)
"""Number of words of scored sentences: shorter texts are no sentences, and longer ones mix sentiments."""


def sample_sentiment(pairs: Sequence[SentencePair], share: float) -> list[SentencePair]:
    """Reweight the pairs with positive or negative sentiment; pairs of English with itself do not change.

    The new weight of all positive pairs, and of all negative ones, is `share`, a fraction of the weight of all pairs.
    """
    signs = _signs({pair.english for pair in pairs if pair.language != ENGLISH})
    signed = [(0 if pair.language == ENGLISH else signs[pair.english], pair) for pair in pairs]
    target = share * sum(pair.weight for pair in pairs)
    weights: dict[int, float] = defaultdict(float)
    for sign, pair in signed:
        weights[sign] += pair.weight
    factors = {sign: target / weight if sign else 1.0 for sign, weight in weights.items()}
    return [pair._replace(weight=pair.weight * factors[sign]) for sign, pair in signed]


def _signs(sentences: Iterable[str]) -> dict[str, int]:
    """Sentence -> 1 for positive, -1 for negative, else 0."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    score = SentimentIntensityAnalyzer().polarity_scores
    signs = dict.fromkeys(sentences, 0)
    for sentence in signs:
        if len(sentence.split()) in _WORDS:
            compound = score(sentence)["compound"]
            signs[sentence] = (compound >= _GOOD) - (compound <= _BAD)
    return signs
