"""Task heads: a linear layer over the pooled vectors, and calibrated probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.bundle.manifest import TaskSpec
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.bundle.tensors import read_arrays
from mtllm_edge.inputs import Kind


@dataclass(frozen=True)
class Head:
    """A linear classifier, or a linear score of choices."""

    kind: Kind
    labels: tuple[str, ...]
    """Label of each row of the weight; empty where the one row scores choices."""
    weight_CE: NDArray[np.float32]
    """(labels, n_embd), or (1, n_embd)."""
    bias_C: NDArray[np.float32] | None
    temperature: float
    """The logits are divided by it before the softmax."""
    temperatures: Mapping[str, float] = field(default_factory=dict)
    """Language code -> the temperature of texts in it; see `mtllm_edge.tasks.calibration.temperature`."""
    threshold: float | None = None
    """Confidence below which the task abstains; None is never."""
    abstain: str | None = None
    """The label that is given then; None is `mtllm_edge.bundle.manifest.UNSURE`."""

    @classmethod
    def load(cls, folder: Path, task: TaskSpec) -> Head:
        """Read a task's head from a bundle whose headers have been checked.

        Raises:
            ModelError: The file cannot be read, or holds numbers that are not finite.
        """
        arrays = read_arrays(folder / task.head)
        weight_CE, bias_C = arrays["weight"], arrays.get("bias")
        confidence = (task.temperature, task.temperatures, task.threshold, task.abstain)
        return cls(task.kind, task.labels, weight_CE, bias_C, *confidence)

    def logits(self, pooled_NE: NDArray[np.float32]) -> NDArray[np.float64]:
        """Logits, (vectors, rows of the weight), of pooled vectors (vectors, n_embd)."""
        logits_NC: NDArray[np.float64] = pooled_NE.astype(np.float64) @ self.weight_CE.T.astype(np.float64)
        if self.bias_C is not None:
            logits_NC += self.bias_C
        return logits_NC

    def probabilities(
        self, pooled_NE: NDArray[np.float32], temperatures_N: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """Probability of every label, (texts, labels), rows summing to 1.

        Args:
            pooled_NE: Pooled vectors, (texts, n_embd).
            temperatures_N: Temperature of each text; None takes `temperature` for all.
        """
        divisors_N = np.array([self.temperature]) if temperatures_N is None else temperatures_N
        return softmax(self.logits(pooled_NE) / divisors_N[:, None])

    def choice_probabilities(
        self, pooled_CE: NDArray[np.float32], temperature: float | None = None
    ) -> NDArray[np.float64]:
        """Probability of every choice of one text, (choices,), for their pooled vectors (choices, n_embd)."""
        divisor = self.temperature if temperature is None else temperature
        probabilities_C: NDArray[np.float64] = softmax(self.logits(pooled_CE).T / divisor)[0]
        return probabilities_C


def softmax(logits_NC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Row-wise softmax that large logits do not overflow."""
    shifted = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities


def load_heads(bundle: Bundle) -> dict[str, Head]:
    """The heads of all tasks of a bundle.

    Raises:
        ModelError: One cannot be read, or holds numbers that are not finite.
    """
    return {name: Head.load(bundle.path, part) for name, part in bundle.manifest.tasks.items()}
