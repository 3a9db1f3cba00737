"""Task heads: a linear layer over the pooled vectors, and calibrated probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.arrays import read_arrays
from mtllm_edge.manifest import Task


@dataclass(frozen=True)
class Head:
    """A linear classifier."""

    labels: tuple[str, ...]
    """Label of each row of the weight."""
    weight_CE: NDArray[np.float32]
    """(labels, n_embd)."""
    bias_C: NDArray[np.float32] | None
    temperature: float
    """The logits are divided by it before the softmax."""

    @classmethod
    def load(cls, folder: Path, task: Task) -> Head:
        """Read a task's head from a bundle whose headers have been checked.

        Raises:
            ModelError: The file cannot be read, or holds numbers that are not finite.
        """
        arrays = read_arrays(folder / task.head)
        return cls(task.labels, arrays["weight"], arrays.get("bias"), task.temperature)

    def probabilities(self, pooled_NE: NDArray[np.float32]) -> NDArray[np.float64]:
        """Probability of every label, (texts, labels), rows summing to 1, for pooled vectors (texts, n_embd)."""
        logits_NC = pooled_NE.astype(np.float64) @ self.weight_CE.T.astype(np.float64)
        if self.bias_C is not None:
            logits_NC += self.bias_C
        return softmax(logits_NC / self.temperature)


def softmax(logits_NC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Row-wise softmax that large logits do not overflow."""
    shifted = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities
