"""Fit a task's head on a laptop: logistic regression on the stack's vectors, cross-validated and calibrated.

The vectors of an LLM have a few huge dimensions, so each is standardised first. That is multiplied out in the end: a
head works on the raw vectors, and a fitted one is like any other.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.errors import DataError, UsageError
from mtllm_edge.inputs import Input, Kind, parts_of
from mtllm_edge.safe_text import has_control_characters
from mtllm_edge.tasks.calibration import fit_temperature
from mtllm_edge.tasks.cross_validation import Groups, assign_folds, count_folds
from mtllm_edge.tasks.head import Head, softmax
from mtllm_edge.tasks.metrics import LabelScore, calibration_error, log_loss, score_label

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Values of scikit-learn's C that are tried: the inverse of the regularisation, on standardised vectors."""
_Linear = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Weight (labels, n_embd) and bias (labels,) on raw vectors."""


@dataclass(frozen=True)
class FitReport:
    """What cross-validation says of a fitted head: every text was judged by a head that had not seen it or its group.

    Regularisation and temperature were chosen on the same folds: two numbers, whose effect is small.
    """

    texts: int
    folds: int
    accuracy: float
    macro_f1: float
    """Mean of the labels' F1."""
    calibration_error: float
    """Expected calibration error of the calibrated probabilities: how far confidence is from accuracy."""
    commonest: float
    """Share of the commonest label: the accuracy of whoever always says that."""
    labels: dict[str, LabelScore]
    c: float
    """The chosen one of `STRENGTHS`."""
    temperature: float
    """The logits are divided by it; above 1 where the head was too sure."""
    groups: int | None = None
    """Number of groups, where there are any: the texts of one were all judged by the same head."""


def validate_labels(labels: Sequence[str]) -> dict[str, int]:
    """Count labels and refuse those that nothing can be learned from.

    Returns:
        Label -> number of texts, labels sorted.

    Raises:
        DataError: No labels, something else than words, one label only, or a label that stands at one text only.
    """
    for index, label in enumerate(labels):
        if not isinstance(label, str) or not label.strip():
            raise DataError(f"the label of text {index} is {label!r}, expected a word")
        if has_control_characters(label):
            raise DataError(f"the label of text {index} is {label!r}, which has control characters; write it in a line")
    counts = dict(sorted(Counter(map(str, labels)).items()))
    if not counts:
        raise DataError("there are no labelled texts; give two or more of every label")
    if len(counts) == 1:
        raise DataError(f"the only label is {next(iter(counts))!r}; give texts of two labels or more")
    rare = [label for label, count in counts.items() if count < 2]
    if rare:
        more = f" and {len(rare) - 3} more labels" if len(rare) > 3 else ""
        raise DataError(
            f"{', '.join(map(repr, rare[:3]))}{more} of {len(counts)} labels: one text only; "
            "give two different texts or more of each label, or remove the row"
        )
    return counts


def validate_fit_kind(kind: Kind) -> None:
    """Refuse what no logistic regression learns.

    Raises:
        UsageError: Multiple choice.
    """
    if kind == "multiple_choice":
        raise UsageError(
            "fit learns tasks of texts and of pairs; train multiple choice with `mtllm-edge train finetune`"
        )


def unique_indices(inputs: Sequence[Input], labels: Sequence[str]) -> list[int]:
    """Index of the first of all equal texts with equal labels.

    A text that is in two folds would flatter the report: it would be judged by a head that has seen it.
    """
    first: dict[tuple[object, ...], int] = {}
    for index, (item, label) in enumerate(zip(inputs, labels, strict=True)):
        first.setdefault((*parts_of(item), label), index)
    return list(first.values())


def fit_head(
    pooled_NE: NDArray[np.float32],
    labels: Sequence[str],
    kind: Kind,
    progress: Callable[[int], None] | None = None,
    groups: Groups | None = None,
) -> tuple[Head, FitReport]:
    """Fit a head.

    Args:
        pooled_NE: Vectors of different texts or pairs.
        labels: The label of each; `validate_labels` says what is refused.
        kind: The kind of the task.
        progress: Called after every regression with 1; there are `count_regressions(labels, groups)` of them.
        groups: The group of each text; the texts of one stay in one fold. None is a group for each.

    Returns:
        The head, on raw vectors and calibrated, its labels sorted; and the cross-validated report.

    Raises:
        DataError: As for `validate_labels` and `mtllm_edge.tasks.cross_validation.assign_folds`.
        UsageError: The kind is multiple choice.
    """
    validate_fit_kind(kind)
    counts = validate_labels(labels)
    names = tuple(counts)
    vectors_NE = pooled_NE.astype(np.float64)
    classes_N = np.array([names.index(label) for label in labels])
    folds = assign_folds(labels, groups)
    best: tuple[float, float, float, NDArray[np.float64]] | None = None
    for c in STRENGTHS:
        logits_NC = np.empty((len(labels), len(names)))
        for train, test in folds:
            weight_CE, bias_C = _regress(vectors_NE[train], classes_N[train], c)
            logits_NC[test] = vectors_NE[test] @ weight_CE.T + bias_C
            if progress is not None:
                progress(1)
        temperature = fit_temperature(logits_NC, classes_N)
        loss = log_loss(softmax(logits_NC / temperature), classes_N)
        if best is None or loss < best[0]:
            best = loss, c, temperature, logits_NC
    assert best is not None
    _, c, temperature, logits_NC = best
    weight_CE, bias_C = _regress(vectors_NE, classes_N, c)
    if progress is not None:
        progress(1)
    head = Head(kind, names, weight_CE.astype(np.float32), bias_C.astype(np.float32), temperature)
    report = _report(softmax(logits_NC / temperature), classes_N, counts, len(folds), c, temperature)
    return head, report if groups is None else replace(report, groups=len(set(groups)))


def count_regressions(labels: Sequence[str], groups: Groups | None = None) -> int:
    """How many regressions `fit_head` computes."""
    return len(STRENGTHS) * count_folds(labels, groups) + 1


def _regress(vectors_NE: NDArray[np.float64], classes_N: NDArray[np.int64], c: float) -> _Linear:
    """Logistic regression on standardised vectors, as weight and bias on the raw ones."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean_E, deviation_E = vectors_NE.mean(axis=0), vectors_NE.std(axis=0)
    deviation_E[deviation_E == 0] = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # nearly there is as good: cross-validation judges it
        model = LogisticRegression(C=c, max_iter=1000).fit((vectors_NE - mean_E) / deviation_E, classes_N)
    weight_CE, bias_C = model.coef_ / deviation_E, model.intercept_
    if len(weight_CE) == 1:  # of two labels, scikit-learn has a row for the second alone
        weight_CE, bias_C = np.concatenate([-weight_CE, weight_CE]) / 2, np.concatenate([-bias_C, bias_C]) / 2
    return weight_CE, bias_C - weight_CE @ mean_E


def _report(
    probabilities_NC: NDArray[np.float64],
    classes_N: NDArray[np.int64],
    counts: dict[str, int],
    folds: int,
    c: float,
    temperature: float,
) -> FitReport:
    predicted_N = probabilities_NC.argmax(axis=1)
    scores = {
        label: score_label(predicted_N == number, classes_N == number, texts)
        for number, (label, texts) in enumerate(counts.items())
    }
    return FitReport(
        texts=len(classes_N),
        folds=folds,
        accuracy=float((predicted_N == classes_N).mean()),
        macro_f1=float(np.mean([score.f1 for score in scores.values()])),
        calibration_error=calibration_error(probabilities_NC, classes_N),
        commonest=max(counts.values()) / len(classes_N),
        labels=scores,
        c=c,
        temperature=temperature,
    )
