"""Confidence that means something: of texts with a confidence of 0.8, eight in ten should be right.

A temperature divides the logits (Guo et al. 2017, arXiv 1706.04599): one number, which changes no label. A task has
one, and the languages that it was measured in have their own, for a model is surer of itself in some than in others.
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
"""Fewest texts that give a language a temperature of its own. It is drawn to the task's as if by as many texts more."""
_HALVINGS = 60


@dataclass(frozen=True)
class Temperatures:
    """What the logits of a task are divided by."""

    temperature: float
    """That of the task: of every text whose language is not known, or not measured."""
    temperatures: Mapping[str, float]
    """Language code -> that of texts in it."""


def temperature(task: Head | TaskSpec | Temperatures, language: str | None) -> float:
    """The temperature for a text in a language, by its code; None where the language is not known."""
    return task.temperature if language is None else task.temperatures.get(language, task.temperature)


def select_temperatures(task: Head | TaskSpec | Temperatures, languages: Sequence[str | None]) -> NDArray[np.float64]:
    """The temperature for each text, (texts,), by the codes of their languages."""
    return np.array([temperature(task, language) for language in languages], np.float64)


def resolve_abstention(task: Head | TaskSpec, threshold: float | None, abstain: str | None) -> tuple[float, str]:
    """Confidence below which a task abstains, and the label that it gives then.

    Args:
        task: The task, or its head.
        threshold: Instead of the task's own; 0 is never.
        abstain: Instead of the task's own label.

    Raises:
        UsageError: The threshold is not from 0 to 1, or the label is one of the task's answers, or no word.
    """
    limit = (task.threshold or 0.0) if threshold is None else threshold
    unsure = (task.abstain or UNSURE) if abstain is None else abstain
    if not 0 <= limit <= 1:
        raise UsageError(f"the threshold is {limit}, expected 0 to 1")
    fault = abstain_label_problem(task.kind, task.labels, unsure) if limit > 0 or abstain is not None else None
    if fault is not None:
        raise UsageError(f"the task {fault}")
    return limit, unsure


def fit_temperature(
    logits_NC: NDArray[np.float64],
    classes_N: NDArray[np.int64],
    prior_NC: NDArray[np.float64] | None = None,
    prior_texts: int | None = None,
) -> float:
    """The temperature under which logits of texts that the head has not seen are likeliest.

    The likelihood is convex in the inverse of the temperature, so its slope is bisected.

    Args:
        logits_NC: Logits, (texts, labels).
        classes_N: The right label of each text.
        prior_NC: Probabilities of the labels of each text as they were held before; None is all alike, so that a head
            without any error does not become infinitely sure (Platt's scaling).
        prior_texts: How many texts that counts for; None is one for every label.
    """
    n, labels = logits_NC.shape
    weight = labels if prior_texts is None else prior_texts
    targets_NC = weight * (np.full((n, labels), 1.0 / labels) if prior_NC is None else prior_NC)
    targets_NC[np.arange(n), classes_N] += n
    targets_NC /= n + weight
    low, high = 1e-4, 1e4
    for _ in range(_HALVINGS):
        inverse = np.sqrt(low * high)
        slope = ((softmax(logits_NC * inverse) - targets_NC) * logits_NC).sum()
        low, high = (low, inverse) if slope > 0 else (inverse, high)
    return float(1.0 / np.sqrt(low * high))


def frequent_languages(languages: Sequence[str | None]) -> list[str]:
    """Codes of the languages that have texts enough for a temperature of their own, sorted."""
    counts = Counter(languages)
    return sorted(code for code, texts in counts.items() if code is not None and texts >= LANGUAGE_TEXTS)


def fit_temperatures(
    logits_NC: NDArray[np.float64],
    classes_N: NDArray[np.int64],
    languages: Sequence[str | None],
    codes: Collection[str],
) -> Temperatures:
    """The temperature of a task, and those of some languages.

    Args:
        logits_NC: Logits of texts that the head was not trained on, (texts, labels).
        classes_N: The right label of each text.
        languages: The code of each text's language, or None.
        codes: The languages that get a temperature of their own; see `frequent_languages`.
    """
    overall = _rounded(fit_temperature(logits_NC, classes_N))
    places: dict[str, list[int]] = {code: [] for code in codes}
    for place, code in enumerate(languages):
        if code in places:
            places[code].append(place)
    own = {}
    for code, some in places.items():
        prior_NC = softmax(logits_NC[some] / overall)
        own[code] = _rounded(fit_temperature(logits_NC[some], classes_N[some], prior_NC, LANGUAGE_TEXTS))
    return Temperatures(overall, own)


def _rounded(value: float) -> float:
    """As many digits as mean anything, for `bundle.json`."""
    return float(f"{value:.4g}")
