"""Calibrate a task, and report cross-validated metrics before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.errors import DataError
from mtllm_edge.tasks.calibration import Temperatures, fit_temperatures, frequent_languages, select_temperatures
from mtllm_edge.tasks.cross_validation import MAX_FOLDS, random_folds
from mtllm_edge.tasks.head import softmax
from mtllm_edge.tasks.metrics import accuracy, calibration_error, log_loss

MIN_TEXTS = 20
MIN_THRESHOLD_TEXTS = 10
"""Minimum number of texts at or above a chosen threshold."""


@dataclass(frozen=True)
class LanguageCalibration:
    """Metrics of the texts in one language."""

    texts: int
    accuracy: float
    error_before: float
    error_after: float


@dataclass(frozen=True)
class CalibrationReport:
    """Temperatures fitted to all texts, and cross-validated metrics of temperatures fitted in the same way."""

    fitted: Temperatures
    texts: int
    folds: int
    accuracy: float
    """Temperatures do not change it."""
    error_before: float
    """Expected calibration error with the previous temperatures."""
    error_after: float
    loss_before: float
    """Mean negative log-likelihood of the right labels, in nats."""
    loss_after: float
    languages: dict[str, LanguageCalibration]
    """Language code -> metrics, for languages with a temperature of their own."""
    threshold: float | None
    """Confidence below which the task abstains."""
    coverage: float
    """Share of the texts at or above the threshold."""
    accuracy_above: float
    """Accuracy on those texts; 0 where there are none."""


def validate_sample_size(texts: int) -> None:
    """Raise DataError for fewer than `MIN_TEXTS` texts."""
    if texts < MIN_TEXTS:
        raise DataError(f"there are {texts} different labeled texts; give {MIN_TEXTS} or more")


def fit_calibration(
    logits_NC: NDArray[np.float64],
    classes_N: NDArray[np.int64],
    languages: Sequence[str | None],
    previous_N: NDArray[np.float64],
    *,
    threshold: float | None = None,
    target_accuracy: float | None = None,
) -> CalibrationReport:
    """Fit a task's temperatures, and choose or evaluate its threshold.

    Args:
        logits_NC: Logits of different texts that the head was not trained on, (texts, labels).
        classes_N: Index of the right label of each text.
        languages: Language code of each text, or None.
        previous_N: Present temperature of each text.
        threshold: Confidence below which the task abstains; None never abstains.
        target_accuracy: Choose the threshold so that texts at or above it have this accuracy.

    Raises:
        DataError: There are too few texts, or no threshold reaches the accuracy.
    """
    validate_sample_size(len(classes_N))
    codes = frequent_languages(languages)
    before_NC = softmax(logits_NC, previous_N)
    after_NC, covered_N = _cross_validate(logits_NC, classes_N, languages, codes, threshold or 0.0, target_accuracy)
    fitted = fit_temperatures(logits_NC, classes_N, languages, codes)
    if target_accuracy is not None:
        threshold = find_threshold(_scaled_softmax(logits_NC, fitted, languages), classes_N, target_accuracy)
        if threshold is None:
            raise DataError(
                f"no threshold gives an accuracy of {target_accuracy:g} on {MIN_THRESHOLD_TEXTS} texts or more; "
                f"lower the target (all texts together have {accuracy(after_NC, classes_N):.3f})"
            )
    return CalibrationReport(
        fitted=fitted,
        texts=len(classes_N),
        folds=MAX_FOLDS,
        accuracy=accuracy(after_NC, classes_N),
        error_before=calibration_error(before_NC, classes_N),
        error_after=calibration_error(after_NC, classes_N),
        loss_before=log_loss(before_NC, classes_N),
        loss_after=log_loss(after_NC, classes_N),
        languages=_language_metrics(before_NC, after_NC, classes_N, languages, codes),
        threshold=threshold,
        coverage=float(covered_N.mean()),
        accuracy_above=accuracy(after_NC[covered_N], classes_N[covered_N]) if covered_N.any() else 0.0,
    )


def _cross_validate(
    logits_NC: NDArray[np.float64],
    classes_N: NDArray[np.int64],
    languages: Sequence[str | None],
    codes: Sequence[str],
    threshold: float,
    target_accuracy: float | None,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Probabilities of each text by temperatures fitted without it, and whether they reach the threshold."""
    after_NC, covered_N = np.empty_like(logits_NC), np.empty(len(classes_N), bool)
    for train, test in random_folds(len(classes_N)):
        train_languages = [languages[index] for index in train]
        fitted = fit_temperatures(logits_NC[train], classes_N[train], train_languages, codes)
        after_NC[test] = _scaled_softmax(logits_NC[test], fitted, [languages[index] for index in test])
        if target_accuracy is not None:
            train_NC = _scaled_softmax(logits_NC[train], fitted, train_languages)
            chosen = find_threshold(train_NC, classes_N[train], target_accuracy)
            threshold = np.inf if chosen is None else chosen
        covered_N[test] = after_NC[test].max(axis=1) >= threshold
    return after_NC, covered_N


def find_threshold(
    probabilities_NC: NDArray[np.float64], classes_N: NDArray[np.int64], target_accuracy: float
) -> float | None:
    """Return the lowest confidence at or above which texts have the target accuracy.

    0 where all texts together reach it; None where no `MIN_THRESHOLD_TEXTS` texts do.
    """
    confidence_N = probabilities_NC.max(axis=1)
    order_N = np.argsort(-confidence_N, kind="stable")
    correct_N = (probabilities_NC.argmax(axis=1) == classes_N)[order_N]
    ordered_N = confidence_N[order_N]
    sufficient_N = np.cumsum(correct_N) / np.arange(1, len(correct_N) + 1) >= target_accuracy
    sufficient_N[:-1] &= ordered_N[:-1] > ordered_N[1:]  # a threshold does not separate equal confidences
    candidates = np.flatnonzero(sufficient_N[MIN_THRESHOLD_TEXTS - 1 :])
    if not len(candidates):
        return None
    last = int(candidates[-1]) + MIN_THRESHOLD_TEXTS - 1
    return 0.0 if last == len(correct_N) - 1 else float(ordered_N[last] + ordered_N[last + 1]) / 2


def _scaled_softmax(
    logits_NC: NDArray[np.float64], fitted: Temperatures, languages: Sequence[str | None]
) -> NDArray[np.float64]:
    return softmax(logits_NC, select_temperatures(fitted, languages))


def _language_metrics(
    before_NC: NDArray[np.float64],
    after_NC: NDArray[np.float64],
    classes_N: NDArray[np.int64],
    languages: Sequence[str | None],
    codes: Sequence[str],
) -> dict[str, LanguageCalibration]:
    metrics = {}
    for code in codes:
        own_N = np.array([language == code for language in languages])
        before_LC, after_LC, classes_L = before_NC[own_N], after_NC[own_N], classes_N[own_N]
        errors = (calibration_error(before_LC, classes_L), calibration_error(after_LC, classes_L))
        metrics[code] = LanguageCalibration(len(classes_L), accuracy(after_LC, classes_L), *errors)
    return metrics
