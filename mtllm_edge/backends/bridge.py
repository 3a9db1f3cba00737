"""Projection of encoder states to LLM inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.bundle.tensors import read_arrays


@dataclass(frozen=True)
class Bridge:
    """``x @ weight.T + bias`` with the arrays of `bridge.safetensors`; x is `stride` concatenated encoder states."""

    weight_EK: NDArray[np.float32]
    """(n_embd, stride * d_model)."""
    bias_E: NDArray[np.float32]
    """(n_embd,)."""
    stride: int
    """Consecutive encoder states in x; a text's last group is padded with zeros."""

    @classmethod
    def load(cls, path: Path, *, stride: int) -> Bridge:
        """Read `bridge.safetensors`, with a header checked for this stride; raises ModelError if it is damaged."""
        arrays = read_arrays(path)
        return cls(arrays["weight"], arrays["bias"], stride)

    def __call__(self, hidden: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Return the LLM inputs of each text, (length / stride, rounded up, n_embd), for states (length, d_model)."""
        if not hidden:
            return []
        zeros_MD = np.zeros((self.stride - 1, hidden[0].shape[1]), np.float32)
        padded = [part_MD for hidden_LD in hidden for part_MD in (hidden_LD, zeros_MD[: -len(hidden_LD) % self.stride])]
        grouped_TK = np.concatenate(padded).reshape(-1, self.weight_EK.shape[1])
        ends = np.cumsum([-(-len(hidden_LD) // self.stride) for hidden_LD in hidden])
        return np.split(grouped_TK @ self.weight_EK.T + self.bias_E, ends[:-1])
