"""Fit a head to labeled texts: logistic regression on pooled vectors, cross-validated and calibrated.

Vectors of an LLM have a few huge dimensions, so each dimension is standardized. The scaling is then multiplied into the
weights, because a head takes the raw vectors.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.errors import DataError, UsageError
from mtllm_edge.inputs import Input, Kind, kind_of, parts_of
from mtllm_edge.safe_text import has_control_characters
from mtllm_edge.tasks.calibration import fit_temperature
from mtllm_edge.tasks.cross_validation import Fold, Groups, assign_folds, validate_groups
from mtllm_edge.tasks.head import Head, softmax
from mtllm_edge.tasks.metrics import LabelScore, accuracy, calibration_error, label_scores, log_loss

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Grid of scikit-learn's C: the inverse of the regularization, on standardized vectors."""
_Linear = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Weight (labels, n_embd) and bias (labels,)."""


@dataclass(frozen=True)
class FitReport:
    """Cross-validated metrics of a fitted head: every text was predicted by a head fitted without it and its group.

    Regularization and temperature were chosen on the same folds: two numbers, whose effect is small.
    """

    texts: int
    folds: int
    accuracy: float
    macro_f1: float
    """Mean F1 of the labels."""
    calibration_error: float
    """Expected calibration error of the calibrated probabilities: distance of confidence and accuracy."""
    commonest: float
    """Share of the most frequent label: the accuracy of always predicting it."""
    labels: dict[str, LabelScore]
    c: float
    """Chosen value of `STRENGTHS`."""
    temperature: float
    """Divisor of the logits; above 1 where the head was overconfident."""
    groups: int | None = None
    """Number of groups, if there are any; the texts of a group were all predicted by the same head."""


@dataclass(frozen=True)
class Examples:
    """Labeled texts or pairs to fit a head to, without duplicates."""

    inputs: list[Input]
    labels: list[str]
    groups: list[Hashable] | None
    kind: Kind

    @property
    def counts(self) -> dict[str, int]:
        """Label -> number of texts, labels sorted."""
        return dict(sorted(Counter(self.labels).items()))


def prepare_examples(inputs: Sequence[Input], labels: Sequence[str], groups: Groups | None = None) -> Examples:
    """Validate labeled texts or pairs, and drop duplicates.

    Raises:
        DataError: As for `validate_labels` and `validate_groups`, or the numbers of texts and labels differ.
        UsageError: The first input is one of multiple choice.
    """
    if len(inputs) != len(labels):
        raise DataError(f"there are {len(inputs)} texts and {len(labels)} labels; give one label per text")
    validate_labels(labels)
    if groups is not None:
        validate_groups(labels, groups)
    kind = kind_of(inputs[0]) or "sequence"
    validate_fit_kind(kind)
    indices = unique_indices(inputs, labels)
    examples = Examples(
        inputs=[inputs[index] for index in indices],
        labels=[str(labels[index]) for index in indices],
        groups=None if groups is None else [groups[index] for index in indices],
        kind=kind,
    )
    validate_labels(examples.labels)
    return examples


def validate_labels(labels: Sequence[str]) -> None:
    """Raise DataError for no labels or one only, a label that is no word, and a label with one text only."""
    for index, label in enumerate(labels):
        if not isinstance(label, str) or not label.strip():
            raise DataError(f"the label of text {index} is {label!r}, expected a word")
        if has_control_characters(label):
            raise DataError(f"the label of text {index} is {label!r}, which has control characters; remove them")
    counts = Counter(map(str, labels))
    if not counts:
        raise DataError("there are no labeled texts; give two or more of every label")
    if len(counts) == 1:
        raise DataError(f"the only label is {next(iter(counts))!r}; give texts of two labels or more")
    if rare := sorted(label for label, count in counts.items() if count < 2):
        others = f" and {len(rare) - 3} more labels" if len(rare) > 3 else ""
        raise DataError(
            f"{', '.join(map(repr, rare[:3]))}{others} of {len(counts)} labels: one text only; "
            "give two different texts or more of each label, or remove the row"
        )


def validate_fit_kind(kind: Kind) -> None:
    """Raise UsageError for multiple choice, which logistic regression does not fit."""
    if kind == "multiple_choice":
        raise UsageError(
            "fit learns tasks of texts and of pairs; train multiple choice with `mtllm-edge train finetune`"
        )


def unique_indices(inputs: Sequence[Input], labels: Sequence[str]) -> list[int]:
    """Return the index of the first of all equal inputs with equal labels.

    A duplicate in another fold would leak into the cross-validated metrics.
    """
    first: dict[tuple[object, ...], int] = {}
    for index, (item, label) in enumerate(zip(inputs, labels, strict=True)):
        first.setdefault((*parts_of(item), label), index)
    return list(first.values())


def fit_head(
    pooled_NE: NDArray[np.float32],
    examples: Examples,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> tuple[Head, FitReport]:
    """Fit a calibrated head, for raw vectors, its labels sorted; return it with the cross-validated report.

    `progress` is called after each regression with the number of regressions done and their total.

    Raises:
        DataError: As for `assign_folds`.
    """
    labels, groups = examples.labels, examples.groups
    names = tuple(examples.counts)
    vectors_NE = pooled_NE.astype(np.float64)
    classes_N = np.array([names.index(label) for label in labels])
    folds = assign_folds(labels, groups)
    done = count(1)

    def regress(texts: NDArray[np.int64] | slice, c: float) -> _Linear:
        weights = _regress(vectors_NE[texts], classes_N[texts], c)
        progress(next(done), len(STRENGTHS) * len(folds) + 1)
        return weights

    results = {c: _cross_validate(vectors_NE, classes_N, folds, partial(regress, c=c)) for c in STRENGTHS}
    c = min(STRENGTHS, key=lambda strength: log_loss(results[strength][1], classes_N))
    temperature, probabilities_NC = results[c]
    weight_CE, bias_C = regress(slice(None), c)
    head = Head(examples.kind, names, weight_CE.astype(np.float32), bias_C.astype(np.float32), temperature)
    scores = label_scores(probabilities_NC.argmax(axis=1), classes_N, names)
    report = FitReport(
        texts=len(labels),
        folds=len(folds),
        accuracy=accuracy(probabilities_NC, classes_N),
        macro_f1=float(np.mean([score.f1 for score in scores.values()])),
        calibration_error=calibration_error(probabilities_NC, classes_N),
        commonest=max(score.texts for score in scores.values()) / len(labels),
        labels=scores,
        c=c,
        temperature=temperature,
        groups=None if groups is None else len(set(groups)),
    )
    return head, report


def _cross_validate(
    vectors_NE: NDArray[np.float64],
    classes_N: NDArray[np.int64],
    folds: Sequence[Fold],
    regress: Callable[[NDArray[np.int64]], _Linear],
) -> tuple[float, NDArray[np.float64]]:
    """Temperature and calibrated probabilities (texts, labels) of held-out texts."""
    logits_NC = np.empty((len(classes_N), classes_N.max() + 1))
    for train, test in folds:
        weight_CE, bias_C = regress(train)
        logits_NC[test] = vectors_NE[test] @ weight_CE.T + bias_C
    temperature = fit_temperature(logits_NC, classes_N)
    return temperature, softmax(logits_NC, temperature)


def _regress(vectors_NE: NDArray[np.float64], classes_N: NDArray[np.int64], c: float) -> _Linear:
    """Logistic regression on standardized vectors, as weight and bias for raw vectors."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean_E, deviation_E = vectors_NE.mean(axis=0), vectors_NE.std(axis=0)
    deviation_E[deviation_E == 0] = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # cross-validation measures an early stop as well
        model = LogisticRegression(C=c, max_iter=1000).fit((vectors_NE - mean_E) / deviation_E, classes_N)
    weight_CE, bias_C = model.coef_ / deviation_E, model.intercept_
    if len(weight_CE) == 1:  # for two labels, scikit-learn has a row for the second only
        weight_CE, bias_C = np.concatenate([-weight_CE, weight_CE]) / 2, np.concatenate([-bias_C, bias_C]) / 2
    return weight_CE, bias_C - weight_CE @ mean_E
