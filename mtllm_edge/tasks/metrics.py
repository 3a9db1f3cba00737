"""Metrics of classifiers: accuracy, F1, calibration error, log loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15
"""Confidence bins of equal width."""


@dataclass(frozen=True)
class LabelScore:
    """Precision, recall and F1 of one label."""

    texts: int
    """Texts with this label."""
    precision: float
    recall: float
    f1: float


def accuracy(probabilities_NC: NDArray[np.float64], classes_N: NDArray[np.int64]) -> float:
    """Share of the texts whose most probable label is the right one."""
    return float((probabilities_NC.argmax(axis=1) == classes_N).mean())


def label_scores(
    predicted_N: NDArray[np.int64], classes_N: NDArray[np.int64], labels: Sequence[str]
) -> dict[str, LabelScore]:
    """Precision, recall and F1 of every label; each has one text or more."""
    hits_C, predicted_C, texts_C = (
        np.bincount(values, minlength=len(labels))
        for values in (classes_N[predicted_N == classes_N], predicted_N, classes_N)
    )
    columns_4C = (texts_C, hits_C / np.maximum(predicted_C, 1), hits_C / texts_C, f1(hits_C, predicted_C + texts_C))
    rows = zip(*(column.tolist() for column in columns_4C), strict=True)
    return {label: LabelScore(*row) for label, row in zip(labels, rows, strict=True)}


def f1(hits: NDArray[Any], occurrences: NDArray[Any]) -> NDArray[np.float64]:
    """F1, element by element, 0 without occurrences: texts with the label plus predictions of it."""
    return np.asarray(2.0 * hits / np.maximum(occurrences, 1), np.float64)


def macro_f1(hits_BC: NDArray[Any], occurrences_BC: NDArray[Any]) -> NDArray[np.float64]:
    """Mean F1 of the labels on the last axis, without labels that have no occurrence. Arguments as for `f1`."""
    return np.asarray(f1(hits_BC, occurrences_BC).sum(-1) / (occurrences_BC > 0).sum(-1), np.float64)


def calibration_error(probabilities_NC: NDArray[np.float64], classes_N: NDArray[np.int64]) -> float:
    """Expected calibration error: mean distance of confidence and accuracy in `BINS` bins, weighted by texts."""
    bins = reliability(probabilities_NC, classes_N)
    return float(sum(share * abs(confidence - correct) for share, confidence, correct in bins))


def reliability(
    probabilities_NC: NDArray[np.float64], classes_N: NDArray[np.int64]
) -> list[tuple[float, float, float]]:
    """Share of the texts, mean confidence and accuracy of each confidence bin; zeros for an empty one."""
    confidence_N = probabilities_NC.max(axis=1)
    correct_N = probabilities_NC.argmax(axis=1) == classes_N
    bins_N = np.minimum((confidence_N * BINS).astype(int), BINS - 1)
    texts_B = np.bincount(bins_N, minlength=BINS)
    means = (np.bincount(bins_N, values_N, BINS) / np.maximum(texts_B, 1) for values_N in (confidence_N, correct_N))
    columns = (texts_B / len(classes_N), *means)
    return [*zip(*(column_B.tolist() for column_B in columns), strict=True)]


def log_loss(probabilities_NC: NDArray[np.float64], classes_N: NDArray[np.int64]) -> float:
    """Mean negative log-likelihood of the right labels, in nats."""
    likelihood_N = probabilities_NC[np.arange(len(classes_N)), classes_N]
    return float(-np.log(np.maximum(likelihood_N, 1e-300)).mean())
