"""What calibration brings, told honestly: every text is judged by temperatures that were fitted without it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.errors import DataError
from mtllm_edge.tasks.calibration import Temperatures, fit_temperatures, frequent_languages, select_temperatures
from mtllm_edge.tasks.head import softmax
from mtllm_edge.tasks.metrics import calibration_error, log_loss

FEWEST_TEXTS = 20
FOLDS = 5
FEWEST_ANSWERS = 10
"""Fewest texts that a threshold is chosen by."""
_SEED = 0


@dataclass(frozen=True)
class LanguageCalibration:
    """Of the texts in one language."""

    texts: int
    accuracy: float
    error_before: float
    error_after: float


@dataclass(frozen=True)
class CalibrationReport:
    """Temperatures fitted to all texts; and what cross-validation says of ones that were fitted in the same way."""

    fitted: Temperatures
    texts: int
    folds: int
    accuracy: float
    """No temperature changes it."""
    error_before: float
    """Expected calibration error as the task was."""
    error_after: float
    loss_before: float
    """Mean negative log-likelihood of the right labels, in nats."""
    loss_after: float
    languages: dict[str, LanguageCalibration]
    """Of the languages that got a temperature of their own."""
    threshold: float | None
    """Confidence below which the task abstains."""
    coverage: float
    """Share of the texts that are at or above it."""
    accuracy_above: float
    """Accuracy on those, 0 where there are none."""


def validate_sample_size(texts: int) -> None:
    """Refuse a sheet that is too small.

    Raises:
        DataError: It has fewer than `FEWEST_TEXTS` different labelled texts.
    """
    if texts < FEWEST_TEXTS:
        raise DataError(f"there are {texts} different labelled texts; give {FEWEST_TEXTS} or more")


def calibrate(
    logits_NC: NDArray[np.float64],
    classes_N: NDArray[np.int64],
    languages: Sequence[str | None],
    before_N: NDArray[np.float64],
    *,
    threshold: float | None = None,
    target: float | None = None,
) -> CalibrationReport:
    """Fit a task's temperatures, and find or judge its threshold.

    Args:
        logits_NC: Logits of different texts that the head was not trained on, (texts, labels).
        classes_N: The right label of each text.
        languages: The code of each text's language, or None.
        before_N: The temperature of each text up to now.
        threshold: Confidence below which the task abstains; None is never.
        target: Accuracy that the texts above the threshold shall have; then the threshold is found.

    Raises:
        DataError: There are too few texts, or no threshold reaches the accuracy.
    """
    validate_sample_size(len(classes_N))
    codes = frequent_languages(languages)
    before_NC, after_NC = softmax(logits_NC / before_N[:, None]), np.empty_like(logits_NC)
    above_N = np.empty(len(classes_N), bool)
    for train, test in _folds(len(classes_N)):
        known = [languages[index] for index in train]
        fitted = fit_temperatures(logits_NC[train], classes_N[train], known, codes)
        after_NC[test] = softmax(_divided(logits_NC[test], fitted, [languages[index] for index in test]))
        limit = threshold or 0.0
        if target is not None:
            found = find_threshold(softmax(_divided(logits_NC[train], fitted, known)), classes_N[train], target)
            limit = np.inf if found is None else found
        above_N[test] = after_NC[test].max(axis=1) >= limit
    fitted = fit_temperatures(logits_NC, classes_N, languages, codes)
    if target is not None:
        threshold = find_threshold(softmax(_divided(logits_NC, fitted, languages)), classes_N, target)
        if threshold is None:
            raise DataError(
                f"no threshold gives an accuracy of {target:g} on {FEWEST_ANSWERS} texts or more; "
                f"ask for less (all texts together have {_accuracy(after_NC, classes_N):.3f})"
            )
    right_N = after_NC.argmax(axis=1) == classes_N
    return CalibrationReport(
        fitted=fitted,
        texts=len(classes_N),
        folds=FOLDS,
        accuracy=_accuracy(after_NC, classes_N),
        error_before=calibration_error(before_NC, classes_N),
        error_after=calibration_error(after_NC, classes_N),
        loss_before=log_loss(before_NC, classes_N),
        loss_after=log_loss(after_NC, classes_N),
        languages=_by_language(before_NC, after_NC, classes_N, languages, codes),
        threshold=threshold,
        coverage=float(above_N.mean()),
        accuracy_above=float(right_N[above_N].mean()) if above_N.any() else 0.0,
    )


def find_threshold(probabilities_NC: NDArray[np.float64], classes_N: NDArray[np.int64], target: float) -> float | None:
    """The lowest confidence so that the texts at or above it are right as often as they shall be.

    Args:
        probabilities_NC: Probabilities of the labels of each text.
        classes_N: The right label of each text.
        target: Accuracy of the texts at or above the threshold.

    Returns:
        The threshold, 0 where all texts together are accurate enough; None where no `FEWEST_ANSWERS` texts are.
    """
    confidence_N = probabilities_NC.max(axis=1)
    surest_N = np.argsort(-confidence_N, kind="stable")
    right_N = (probabilities_NC.argmax(axis=1) == classes_N)[surest_N]
    ordered_N = confidence_N[surest_N]
    accurate_N = np.cumsum(right_N) / np.arange(1, len(right_N) + 1) >= target
    accurate_N[:-1] &= ordered_N[:-1] > ordered_N[1:]  # no threshold stands between equals
    enough = np.flatnonzero(accurate_N[FEWEST_ANSWERS - 1 :])
    if not len(enough):
        return None
    last = int(enough[-1]) + FEWEST_ANSWERS - 1
    return 0.0 if last == len(right_N) - 1 else float(ordered_N[last] + ordered_N[last + 1]) / 2


def _divided(
    logits_NC: NDArray[np.float64], fitted: Temperatures, languages: Sequence[str | None]
) -> NDArray[np.float64]:
    divided_NC: NDArray[np.float64] = logits_NC / select_temperatures(fitted, languages)[:, None]
    return divided_NC


def _folds(texts: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Places that are fitted to and places that are judged, in each fold; every text is judged once."""
    parts = np.array_split(np.random.default_rng(_SEED).permutation(texts), FOLDS)
    for number, test in enumerate(parts):
        yield np.sort(np.concatenate(parts[:number] + parts[number + 1 :])), np.sort(test)


def _by_language(
    before_NC: NDArray[np.float64],
    after_NC: NDArray[np.float64],
    classes_N: NDArray[np.int64],
    languages: Sequence[str | None],
    codes: Sequence[str],
) -> dict[str, LanguageCalibration]:
    codes_N = np.array([code or "" for code in languages])
    found = {}
    for code in codes:
        some_N = codes_N == code
        found[code] = LanguageCalibration(
            texts=int(some_N.sum()),
            accuracy=_accuracy(after_NC[some_N], classes_N[some_N]),
            error_before=calibration_error(before_NC[some_N], classes_N[some_N]),
            error_after=calibration_error(after_NC[some_N], classes_N[some_N]),
        )
    return found


def _accuracy(probabilities_NC: NDArray[np.float64], classes_N: NDArray[np.int64]) -> float:
    return float((probabilities_NC.argmax(axis=1) == classes_N).mean())
