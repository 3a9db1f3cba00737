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
    """What a classifier says about one text, pair, or text with choices."""

    label: str
    """The most probable label; of choices, its number, the first of them being ``"0"``. The task's word for unsure
    where it abstained."""
    probabilities: dict[str, float]
    """Probability of every label, in the order of the head, or of every choice by its number; they sum to 1."""
    tokens: int
    """Tokens that the encoder read, the special ones included, and of windows those that they share as often."""
    truncated: bool
    """Whether the text was longer than the encoder takes and lost its end; of several texts, the longest did."""
    windows: int = 1
    """In how many windows the text was read; where it was not cut, several for one longer than the encoder takes."""
    abstained: bool = False
    """Whether the confidence was below the threshold; the probabilities are those of the real labels even so."""
    language: str | None = None
    """Code of the language that the text was read as, given or identified; None where nothing was said of it."""

    @property
    def confidence(self) -> float:
        """Probability of the most probable label, which is `label` unless the task abstained."""
        return max(self.probabilities.values())


def predict(
    head: Head, windows: Windows, pooled_VE: NDArray[np.float32], limit: float, unsure: str
) -> list[Prediction]:
    """What a head says of texts, a prediction for each.

    Args:
        head: Of the kind of the texts.
        windows: The texts as they were read.
        pooled_VE: Their vectors, (vectors, n_embd), as `Embedder.pool` gives them.
        limit: Confidence below which the task abstains.
        unsure: The label that is given then.
    """
    temperatures_N = select_temperatures(head, [text[0].language for text in windows.by_text])
    if head.kind == "multiple_choice":
        rows = _choice_rows(head, windows.encodings, pooled_VE, temperatures_N)
    else:
        rows = [*head.probabilities(windows.mean(pooled_VE), temperatures_N)]
    return [_prediction(text, head, row_C, limit, unsure) for text, row_C in zip(windows.by_text, rows, strict=True)]


def _choice_rows(
    head: Head, texts: Sequence[Encoding], pooled_VE: NDArray[np.float32], temperatures_N: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """Probabilities of the choices of each text."""
    if not texts:  # of which numpy would make one piece
        return []
    pieces = np.split(pooled_VE, np.cumsum([text.vector_count for text in texts])[:-1])
    return [
        head.choice_probabilities(pooled_CE, temperature)
        for pooled_CE, temperature in zip(pieces, temperatures_N.tolist(), strict=True)
    ]


def _prediction(
    windows: Sequence[Encoding], head: Head, probabilities_C: NDArray[np.float64], limit: float, unsure: str
) -> Prediction:
    labels = head.labels or [*map(str, range(len(probabilities_C)))]
    best = int(probabilities_C.argmax())
    abstained = bool(probabilities_C[best] < limit)
    return Prediction(
        label=unsure if abstained else labels[best],
        probabilities=dict(zip(labels, probabilities_C.tolist(), strict=True)),
        tokens=sum(len(window.ids) for window in windows),
        truncated=windows[0].truncated,
        windows=len(windows),
        abstained=abstained,
        language=windows[0].language,
    )
