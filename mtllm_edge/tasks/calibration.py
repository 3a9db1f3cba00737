"""Temperature scaling and abstention: confidences that match accuracies.

A temperature divides the logits (Guo et al. 2017, arXiv 1706.04599): one number, which changes no label. A task has
one temperature, and one for each language with enough labeled texts, because models are overconfident in some languages
and not in others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.bundle.manifest import UNSURE, TaskSpec
from mtllm_edge.bundle.validation import abstain_label_problem
from mtllm_edge.errors import UsageError
from mtllm_edge.tasks.head import Head, softmax

LANGUAGE_TEXTS = 50
"""Minimum number of texts for a temperature per language, and the weight of the task's temperature as its prior."""
_BISECTION_STEPS = 60


@dataclass(frozen=True)
class Temperatures:
    """Temperatures of a task."""

    temperature: float
    """For texts in an unknown language, or one without a temperature of its own."""
    temperatures: Mapping[str, float]
    """Language code -> temperature."""


def select_temperatures(task: Head | TaskSpec | Temperatures, languages: Sequence[str | None]) -> NDArray[np.float64]:
    """Temperature of each text, (texts,), by the codes of their languages; None is an unknown language."""
    return np.array(
        [task.temperature if code is None else task.temperatures.get(code, task.temperature) for code in languages],
        np.float64,
    )


def resolve_abstention(task: Head | TaskSpec, threshold: float | None, abstain: str | None) -> tuple[float, str]:
    """Return the confidence below which a task abstains, 0 for never, and the label of an abstention.

    Threshold and label replace those of the task, unless they are None.

    Raises:
        UsageError: The threshold is not from 0 to 1, or the label is blank or a label of the task.
    """
    threshold = (task.threshold or 0.0) if threshold is None else threshold
    label = (task.abstain or UNSURE) if abstain is None else abstain
    if not 0 <= threshold <= 1:
        raise UsageError(f"the threshold is {threshold}, expected 0 to 1")
    if threshold > 0 or abstain is not None:
        problem = abstain_label_problem(task.kind, task.labels, label)
        if problem is not None:
            raise UsageError(f"the task {problem}")
    return threshold, label


def fit_temperature(
    logits_NC: NDArray[np.float64],
    classes_N: NDArray[np.int64],
    prior_NC: NDArray[np.float64] | None = None,
    prior_texts: int | None = None,
) -> float:
    """Fit the temperature with the highest likelihood on held-out texts.

    The likelihood is convex in the inverse temperature, so its slope is bisected.

    Args:
        logits_NC: Logits, (texts, labels).
        classes_N: Index of the right label of each text.
        prior_NC: Prior probabilities of the labels of each text; None is uniform, which bounds the temperature of a
            head without errors (Platt's scaling).
        prior_texts: Weight of the prior, in texts; None is the number of labels.
    """
    n, labels = logits_NC.shape
    weight = labels if prior_texts is None else prior_texts
    targets_NC = weight * (np.full((n, labels), 1.0 / labels) if prior_NC is None else prior_NC)
    targets_NC[np.arange(n), classes_N] += n
    targets_NC /= n + weight
    low, high = 1e-4, 1e4
    for _ in range(_BISECTION_STEPS):
        inverse = np.sqrt(low * high)
        slope = ((softmax(logits_NC * inverse) - targets_NC) * logits_NC).sum()
        low, high = (low, inverse) if slope > 0 else (inverse, high)
    return float(1.0 / np.sqrt(low * high))


def frequent_languages(languages: Sequence[str | None]) -> list[str]:
    """Codes of the languages with enough texts for a temperature of their own, sorted."""
    counts = Counter(languages)
    return sorted(code for code, texts in counts.items() if code is not None and texts >= LANGUAGE_TEXTS)


def fit_temperatures(
    logits_NC: NDArray[np.float64],
    classes_N: NDArray[np.int64],
    languages: Sequence[str | None],
    codes: Collection[str],
) -> Temperatures:
    """Fit the temperature of a task to held-out texts, and those of the languages `codes`, as `fit_temperature`."""
    overall = _rounded(fit_temperature(logits_NC, classes_N))
    by_language = {}
    for code in codes:
        own_N = np.array([language == code for language in languages])
        logits_LC, classes_L = logits_NC[own_N], classes_N[own_N]
        fitted = fit_temperature(logits_LC, classes_L, softmax(logits_LC, overall), LANGUAGE_TEXTS)
        by_language[code] = _rounded(fitted)
    return Temperatures(overall, by_language)


def _rounded(value: float) -> float:
    """Round to four significant digits, for `bundle.json`."""
    return float(f"{value:.4g}")
