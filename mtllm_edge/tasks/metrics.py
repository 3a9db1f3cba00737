"""Scores of classifiers: accuracy, F1, calibration error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 15


def calibration_error(probabilities_NC: NDArray[np.float64], classes_N: NDArray[np.int64]) -> float:
    """Expected calibration error: the mean distance of confidence and accuracy over `BINS` bins, weighted by texts.

    The bins of confidence are equally wide; an empty one counts for nothing.
    """
    return float(sum(texts * abs(sure - right) for texts, sure, right in reliability(probabilities_NC, classes_N)))


def reliability(
    probabilities_NC: NDArray[np.float64], classes_N: NDArray[np.int64]
) -> list[tuple[float, float, float]]:
    """Share of the texts, mean confidence and accuracy of each of the `BINS` bins; zeros of an empty one."""
    confidence_N = probabilities_NC.max(axis=1)
    right_N = probabilities_NC.argmax(axis=1) == classes_N
    bins_N = np.minimum((confidence_N * BINS).astype(int), BINS - 1)
    rows = []
    for number in range(BINS):
        inside_N = bins_N == number
        texts = int(inside_N.sum())
        means = (confidence_N[inside_N].mean(), right_N[inside_N].mean()) if texts else (0.0, 0.0)
        rows.append((texts / len(classes_N), float(means[0]), float(means[1])))
    return rows


def log_loss(probabilities_NC: NDArray[np.float64], classes_N: NDArray[np.int64]) -> float:
    """Mean negative log-likelihood of the right labels, in nats."""
    right_N = probabilities_NC[np.arange(len(classes_N)), classes_N]
    return float(-np.log(np.maximum(right_N, 1e-300)).mean())


@dataclass(frozen=True)
class LabelScore:
    """How well one label is told from the others, out of fold."""

    texts: int
    precision: float
    recall: float
    f1: float


def score_label(said_N: NDArray[np.bool_], true_N: NDArray[np.bool_], texts: int) -> LabelScore:
    """Precision, recall and F1 of one label."""
    both = float((said_N & true_N).sum())
    said = float(said_N.sum())
    return LabelScore(
        texts=texts,
        precision=both / said if said else 0.0,
        recall=both / texts,
        f1=2 * both / (said + texts),
    )
