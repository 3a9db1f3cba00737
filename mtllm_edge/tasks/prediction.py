"""Predictions of a head from pooled vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.tasks.calibration import select_temperatures
from mtllm_edge.tasks.head import Head
from mtllm_edge.tokenization.encoding import Encoding
from mtllm_edge.tokenization.windows import Windows


@dataclass(frozen=True)
class Prediction:
    """Prediction for one text, pair, or text with choices."""

    label: str
    """Most probable label; for multiple choice the number of the choice, from ``"0"``. The task's label for abstentions
    where it abstained."""
    probabilities: dict[str, float]
    """Probability of every label, in the order of the head, or of every choice by its number; they sum to 1."""
    tokens: int
    """Tokens that the encoder read, special tokens and overlaps of windows included."""
    truncated: bool
    """Whether the text exceeded the encoder's maximum and lost its end; of a pair or choices, the longest part did."""
    windows: int = 1
    """Number of windows of the text; above 1 where a long text was read in windows."""
    abstained: bool = False
    """Whether the confidence was below the threshold; `probabilities` are those of the real labels."""
    language: str | None = None
    """Language code of the text, given or identified; None where the language was not given."""

    @property
    def confidence(self) -> float:
        """Probability of the most probable label, which is `label` unless the task abstained."""
        return max(self.probabilities.values())


def predict(
    head: Head, windows: Windows, pooled_VE: NDArray[np.float32], threshold: float, abstain: str
) -> list[Prediction]:
    """Return a prediction for each text, from vectors of `Embedder.pool`, (vectors, n_embd).

    A task with a confidence below `threshold` abstains: its label is `abstain`.
    """
    temperatures_N = select_temperatures(head, [text[0].language for text in windows.by_text])
    if head.kind == "multiple_choice":
        rows = _choice_rows(head, windows.encodings, pooled_VE, temperatures_N)
    else:
        rows = [*head.probabilities(windows.mean(pooled_VE), temperatures_N)]
    return [
        _prediction(text, head, row_C, threshold, abstain) for text, row_C in zip(windows.by_text, rows, strict=True)
    ]


def _choice_rows(
    head: Head, texts: Sequence[Encoding], pooled_VE: NDArray[np.float32], temperatures_N: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """Probabilities of the choices of each text, (choices,) each."""
    if not texts:  # np.split would make one piece
        return []
    pieces = np.split(pooled_VE, np.cumsum([text.vector_count for text in texts])[:-1])
    return [
        head.choice_probabilities(pooled_CE, temperature)
        for pooled_CE, temperature in zip(pieces, temperatures_N.tolist(), strict=True)
    ]


def _prediction(
    windows: Sequence[Encoding], head: Head, probabilities_C: NDArray[np.float64], threshold: float, abstain: str
) -> Prediction:
    labels = head.labels or [*map(str, range(len(probabilities_C)))]
    best = int(probabilities_C.argmax())
    abstained = bool(probabilities_C[best] < threshold)
    return Prediction(
        label=abstain if abstained else labels[best],
        probabilities=dict(zip(labels, probabilities_C.tolist(), strict=True)),
        tokens=sum(len(window.ids) for window in windows),
        truncated=windows[0].truncated,
        windows=len(windows),
        abstained=abstained,
        language=windows[0].language,
    )
