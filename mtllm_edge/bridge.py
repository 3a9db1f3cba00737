"""The up-projection from encoder states to LLM inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.arrays import read_arrays


@dataclass(frozen=True)
class Bridge:
    """``x @ weight.T + bias``, as the bundle's `bridge.safetensors` holds it."""

    weight_ED: NDArray[np.float32]
    """(n_embd, d_model)."""
    bias_E: NDArray[np.float32]
    """(n_embd,)."""

    @classmethod
    def load(cls, path: Path) -> Bridge:
        """Read `bridge.safetensors`, whose header has been checked.

        Raises:
            ModelError: The file cannot be read, or holds numbers that are not finite.
        """
        arrays = read_arrays(path)
        return cls(arrays["weight"], arrays["bias"])

    def __call__(self, hidden: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Project a batch of encoder outputs, each (length, d_model), to LLM inputs, each (length, n_embd)."""
        if not hidden:
            return []
        ends = np.cumsum([len(hidden_LD) for hidden_LD in hidden])
        inputs_TE = np.concatenate(hidden) @ self.weight_ED.T + self.bias_E
        return np.split(inputs_TE, ends[:-1])
