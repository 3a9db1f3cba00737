"""Task heads: logits of pooled vectors, temperature scaling, probabilities."""

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
    """A linear classifier, or a linear scorer of choices."""

    kind: Kind
    labels: tuple[str, ...]
    """Label of each row of the weight; empty for multiple choice."""
    weight_CE: NDArray[np.float32]
    """(labels, n_embd); (1, n_embd) for multiple choice."""
    bias_C: NDArray[np.float32] | None
    temperature: float
    """Divisor of the logits."""
    temperatures: Mapping[str, float] = field(default_factory=dict)
    """Language code -> temperature of texts in it; see `mtllm_edge.tasks.calibration.select_temperatures`."""
    threshold: float | None = None
    """Confidence below which the task abstains; None never abstains."""
    abstain: str | None = None
    """Label of an abstention; None is `mtllm_edge.bundle.manifest.UNSURE`."""

    @classmethod
    def load(cls, folder: Path, task: TaskSpec) -> Head:
        """Load a task's head from an opened bundle. Errors as for `read_arrays`."""
        arrays = read_arrays(folder / task.head)
        confidence = (task.temperature, task.temperatures, task.threshold, task.abstain)
        return cls(task.kind, task.labels, arrays["weight"], arrays.get("bias"), *confidence)

    def logits(self, pooled_NE: NDArray[np.float32]) -> NDArray[np.float64]:
        """Logits, (vectors, rows of the weight), of pooled vectors (vectors, n_embd)."""
        logits_NC: NDArray[np.float64] = pooled_NE.astype(np.float64) @ self.weight_CE.T.astype(np.float64)
        if self.bias_C is not None:
            logits_NC += self.bias_C
        return logits_NC

    def probabilities(
        self, pooled_NE: NDArray[np.float32], temperatures_N: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """Probabilities of the labels, (texts, labels), from pooled vectors (texts, n_embd).

        `temperatures_N` has the temperature of each text; None takes `temperature` for all.
        """
        return softmax(self.logits(pooled_NE), self.temperature if temperatures_N is None else temperatures_N)

    def choice_probabilities(
        self, pooled_CE: NDArray[np.float32], temperature: float | None = None
    ) -> NDArray[np.float64]:
        """Probabilities of the choices of one text, (choices,), from their pooled vectors (choices, n_embd)."""
        divisor = self.temperature if temperature is None else temperature
        probabilities_C: NDArray[np.float64] = softmax(self.logits(pooled_CE).T, divisor)[0]
        return probabilities_C


def softmax(logits_NC: NDArray[np.float64], temperatures: float | NDArray[np.float64] = 1.0) -> NDArray[np.float64]:
    """Row-wise softmax of logits divided by one temperature, or by one of each row (temperature scaling)."""
    scaled_NC = logits_NC / np.reshape(temperatures, (-1, 1))
    shifted = np.exp(scaled_NC - scaled_NC.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities


def load_heads(bundle: Bundle) -> dict[str, Head]:
    """Load the heads of all tasks of a bundle, by the tasks' names. Errors as for `Head.load`."""
    return {name: Head.load(bundle.path, task) for name, task in bundle.manifest.tasks.items()}
