"""Folds for cross-validation: every text is scored by a model that was fitted without it and without its group."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.errors import DataError

MAX_FOLDS = 5
Groups = Sequence[Hashable]
"""Group of each text, such as its document or author."""
Fold = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Indices of the texts to fit, and of the texts to test."""
_SEED = 0
_ATTEMPTS = 20
"""Shuffles of the groups until every fold is fitted to every label."""


def random_folds(texts: int) -> list[Fold]:
    """Return `MAX_FOLDS` shuffled folds of so many texts."""
    parts = np.array_split(np.random.default_rng(_SEED).permutation(texts), MAX_FOLDS)
    return [
        (np.sort(np.concatenate(parts[:number] + parts[number + 1 :])), np.sort(test))
        for number, test in enumerate(parts)
    ]


def assign_folds(labels: Sequence[str], groups: Groups | None = None) -> list[Fold]:
    """Return folds with similar shares of the labels, each of two texts or more; the texts of a group stay together.

    Raises:
        DataError: As for `validate_groups`, or no assignment of the groups leaves texts of every label to each fit.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, StratifiedKFold

    labels_N, counts = np.array(labels), Counter(labels).values()
    if groups is None:
        splitter = StratifiedKFold(min(MAX_FOLDS, *counts), shuffle=True, random_state=_SEED)
        return [*splitter.split(labels_N, labels_N)]
    validate_groups(labels, groups)  # again: without duplicates, a label may be left in one group
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    groups_N = np.array([numbers[group] for group in groups])
    if len(numbers) <= MAX_FOLDS:  # one group per fold: a label in two groups is part of every fit
        return [*GroupKFold(len(numbers)).split(labels_N, labels_N, groups_N)]
    n_folds = min(MAX_FOLDS, max(counts))
    for attempt in range(_ATTEMPTS):
        splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=_SEED + attempt)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # labels with fewer texts than folds
            folds: list[Fold] = [*splitter.split(labels_N, labels_N, groups_N)]
        if all(len(test) and set(labels_N[train]) == set(labels) for train, test in folds):
            return folds
    raise DataError(
        f"the groups do not split into {n_folds} folds with texts of every label to fit; "
        "give more groups of the rare labels, or leave the groups out"
    )


def validate_groups(labels: Sequence[str], groups: Groups) -> None:
    """Raise DataError for another number of groups than labels, missing groups, and labels with one group only."""
    if len(groups) != len(labels):
        raise DataError(f"there are {len(labels)} labels and {len(groups)} groups; give one group per label")
    for group in groups:
        missing = group is None or (isinstance(group, float) and math.isnan(group))  # pandas reads NaN
        if missing or not isinstance(group, Hashable):
            raise DataError(f"a group is {group!r}, expected a word or a number")
    groups_per_label = Counter(label for label, _ in set(zip(labels, groups, strict=True)))
    for label in sorted(label for label, number in groups_per_label.items() if number < 2):
        raise DataError(
            f"all texts with the label {label!r} are in one group; give texts of every label in two groups or more, "
            "or leave the groups out"
        )
