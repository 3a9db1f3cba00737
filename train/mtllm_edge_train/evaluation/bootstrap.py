"""Accuracy and macro-F1 with bootstrap intervals (Efron 1979), of several systems on the same resamples.

Texts on which the label and all systems' answers are the same are interchangeable, so a resample of N texts is a draw
of N from the distinct cells of that table: the exact bootstrap, at the cost of the cells and not of the texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from mtllm_edge.tasks.metrics import macro_f1

CONFIDENCE = 0.95
MEASURES = ("accuracy", "macro_f1")
"""What the last axis of `figures` holds."""


class Interval(msgspec.Struct, frozen=True):
    """A figure and its percentile interval."""

    value: float
    low: float
    high: float


def figures(
    gold: Sequence[str], found: Sequence[Sequence[str]], *, resamples: int, seed: Sequence[int]
) -> NDArray[np.float64]:
    """Measure systems on texts and on resamples of them.

    Args:
        gold: Label of each text.
        found: For each system, its answer to each text.
        resamples: How often to draw as many texts as there are, with replacement.
        seed: Of the draws.

    Returns:
        (1 + resamples, systems, measures): first the texts themselves, then the resamples, which are the same for all
        systems, so that differences between systems are paired. A label that is neither in a resample nor predicted
        there has no F1.
    """
    names, codes = np.unique(np.array([gold, *found]), return_inverse=True)
    cells_KA, counts_K = np.unique(codes.reshape(1 + len(found), len(gold)).T, axis=0, return_counts=True)
    drawn_BK = np.random.default_rng(seed).multinomial(len(gold), counts_K / len(gold), size=resamples)
    counts_BK = np.concatenate([counts_K[None], drawn_BK]).astype(np.float64)
    is_KAC = (cells_KA[..., None] == np.arange(len(names))).astype(np.float64)
    return np.stack([_measure(counts_BK, is_KAC[:, 0], is_KAC[:, 1 + system]) for system in range(len(found))], axis=1)


def _measure(
    counts_BK: NDArray[np.float64], gold_KC: NDArray[np.float64], found_KC: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Accuracy and macro-F1 (B, 2) of cells that occur so often."""
    hits_BC = counts_BK @ (gold_KC * found_KC)
    either_BC = counts_BK @ (gold_KC + found_KC)
    return np.stack([hits_BC.sum(1) / counts_BK.sum(1), macro_f1(hits_BC, either_BC)], axis=1)


def interval(values_B: NDArray[np.float64]) -> Interval:
    """The first value, between the percentiles of the others."""
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values_B[1:], [tail, 100 - tail])
    return Interval(*(round(float(value), 4) for value in (values_B[0], low, high)))
