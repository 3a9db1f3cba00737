"""How labelled texts are dealt out for cross-validation, so that nothing is judged by what has seen it, or its like."""

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
"""What each text belongs to: its document, its author ..."""
Fold = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Indices of the texts that are learned from, and of those that are judged."""
_SEED = 0
_DRAWS = 20
"""How often groups are dealt out before it is given up that every label is learned in each fold."""


def count_folds(labels: Sequence[str], groups: Groups | None = None) -> int:
    """Number of folds of texts with these labels, each of which stands at two or more."""
    counts = Counter(labels).values()
    if groups is None:
        return min(MAX_FOLDS, *counts)
    found = len(set(groups))
    return found if found <= MAX_FOLDS else min(MAX_FOLDS, max(counts))


def assign_folds(labels: Sequence[str], groups: Groups | None = None) -> list[Fold]:
    """Folds with about as much of every label in each; the texts of a group stay together.

    Args:
        labels: Of each text; every label stands at two texts or more.
        groups: The group of each text; None is a group for each.

    Raises:
        DataError: As for `validate_groups`; or the groups are such that some fold would learn nothing of some label.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, StratifiedKFold

    names_N = np.array(labels)
    if groups is None:
        return [*StratifiedKFold(count_folds(labels), shuffle=True, random_state=_SEED).split(names_N, names_N)]
    validate_groups(labels, groups)
    count = count_folds(labels, groups)
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    groups_N = np.array([numbers[group] for group in groups])
    if len(numbers) == count:  # a fold for each: a label that is in two groups is always learned
        return [*GroupKFold(count).split(names_N, names_N, groups_N)]
    for draw in range(_DRAWS):
        splitter = StratifiedGroupKFold(count, shuffle=True, random_state=_SEED + draw)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # labels that are rarer than folds
            folds: list[Fold] = [*splitter.split(names_N, names_N, groups_N)]
        if all(len(test) and set(names_N[train]) == set(labels) for train, test in folds):
            return folds
    raise DataError(
        f"the groups cannot be dealt out to {count} folds so that every label is learned in each; "
        "give more groups of the rare labels, or leave the groups out"
    )


def validate_groups(labels: Sequence[str], groups: Groups) -> None:
    """Refuse groups with which a label would be judged by what has not learned it.

    Raises:
        DataError: There are not as many as labels, one cannot be told from others, or all texts of a label are in one.
    """
    if len(groups) != len(labels):
        raise DataError(f"there are {len(labels)} labels and {len(groups)} groups; give one of each")
    strange = next((group for group in groups if not _names_something(group)), groups)
    if strange is not groups:
        raise DataError(f"a group is {strange!r}, expected a word or a number")
    pairs = Counter(label for label, _ in set(zip(labels, groups, strict=True)))
    alone = [label for label in sorted(pairs) if pairs[label] < 2]
    if alone:
        raise DataError(
            f"all texts with the label {alone[0]!r} are in one group; give texts of every label in two groups or more, "
            "or leave the groups out"
        )


def _names_something(group: object) -> bool:
    """Whether a group can be told from others: a gap cannot, which in a column of pandas is NaN."""
    return group is not None and isinstance(group, Hashable) and not (isinstance(group, float) and math.isnan(group))
