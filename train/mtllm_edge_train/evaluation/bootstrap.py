"""Accuracy and macro-F1 with bootstrap intervals (Efron 1979), of several systems on the same resamples.

Texts with the same label and the same predictions of all systems are interchangeable. A resample of N texts is
therefore a multinomial draw over the distinct combinations: the exact bootstrap, at a cost that does not grow with N.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from mtllm_edge.tasks.metrics import macro_f1

CONFIDENCE = 0.95
MEASURES = ("accuracy", "macro_f1")
"""Last axis of the result of `bootstrap_scores`."""


class Interval(msgspec.Struct, frozen=True):
    """A score and its percentile interval."""

    value: float
    low: float
    high: float


def bootstrap_scores(
    labels: Sequence[str], predictions: Sequence[Sequence[str]], *, resamples: int, seed: Sequence[int]
) -> NDArray[np.float64]:
    """Score the predictions of each system on texts and on bootstrap resamples of the same size.

    Returns:
        Scores (1 + resamples, systems, measures): the first row is of the texts themselves. A resample is the same for
        all systems, so differences between systems are paired. A label that is neither in a resample nor predicted
        there has no F1.
    """
    names, codes = np.unique(np.array([labels, *predictions]), return_inverse=True)
    cells_KA, counts_K = np.unique(codes.reshape(1 + len(predictions), -1).T, axis=0, return_counts=True)
    resampled_BK = np.random.default_rng(seed).multinomial(len(labels), counts_K / len(labels), size=resamples)
    counts_BK = np.concatenate([counts_K[None], resampled_BK]).astype(np.float64)
    one_hot_KAC = (cells_KA[..., None] == np.arange(len(names))).astype(np.float64)
    labels_KC, *systems = one_hot_KAC.swapaxes(0, 1)
    return np.stack([_scores(counts_BK, labels_KC, predicted_KC) for predicted_KC in systems], axis=1)


def _scores(
    counts_BK: NDArray[np.float64], labels_KC: NDArray[np.float64], predicted_KC: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Accuracy and macro-F1 (B, 2), given how often each combination K of label and predictions occurs."""
    hits_BC = counts_BK @ (labels_KC * predicted_KC)
    occurrences_BC = counts_BK @ (labels_KC + predicted_KC)
    return np.stack([hits_BC.sum(1) / counts_BK.sum(1), macro_f1(hits_BC, occurrences_BC)], axis=1)


def score(labels: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Accuracy and macro-F1 of one system, without intervals."""
    values = bootstrap_scores(labels, [predictions], resamples=0, seed=(0,))[0, 0]
    return dict(zip(MEASURES, values.tolist(), strict=True))


def interval(values_B: NDArray[np.float64]) -> Interval:
    """Interval of a score: the first value is the score, the others are those of the resamples."""
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values_B[1:], [tail, 100 - tail])
    return Interval(*(round(float(value), 4) for value in (values_B[0], low, high)))
