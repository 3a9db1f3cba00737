"""Run a GGUF file through the runtime's own engine module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.llms.gguf import GgufLlm
from mtllm_edge.manifest import Llm
from mtllm_edge.safety import PLAIN, EngineSettings
from mtllm_edge_export.llm_gguf import Attention, LlmQuantization, LlmSummary


def pool_gguf(
    path: Path,
    summary: LlmSummary,
    attention: Attention,
    sequences: Sequence[NDArray[np.float32]],
    *,
    quantization: LlmQuantization = "f32",
) -> NDArray[np.float32]:
    """Pooled vectors of all sequences in one batch, with the kernels that work on any machine."""
    described = Llm(
        architecture=summary.architecture,
        n_embd=summary.n_embd,
        n_layer=summary.n_layer,
        quantization=quantization,
        attention=attention,
        pooling="mean",
    )
    llm = GgufLlm(path, described, settings=EngineSettings(*PLAIN, note="test"), threads=1)
    try:
        return llm.pool(sequences)
    finally:
        llm.close()


def cosines(one_ND: NDArray[np.float32], other_ND: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine of each row."""
    one, other = one_ND.astype(np.float64), other_ND.astype(np.float64)
    found: NDArray[np.float64] = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    return found
