"""The LLM body to export, and the summary of its file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.bundle.manifest import Architecture
from mtllm_edge_train.checkpoints.llm_weights import LlmWeights

Array = NDArray[np.float32]
Attention = Literal["causal", "bidirectional"]


@dataclass(frozen=True)
class LlmBody:
    """What is to be written."""

    weights: LlmWeights
    layers: int | None
    """How many of the first layers; None is all."""
    attention: Attention
    lora: Mapping[str, Array] = field(default_factory=dict)
    """``layers.<i>.<module>.lora_A`` (rank, in) and ``.lora_B`` (out, rank); empty without an adapter."""
    lora_scale: float = 0.0
    """Factor on ``lora_B @ lora_A``."""
    longest: int | None = None
    """Longest input in tokens; None where there is no limit."""
    vocabulary: bool = False
    """Whether the embeddings of the LLM's own tokens go into the file: an MT-LLM has no use for them."""


@dataclass(frozen=True)
class LlmSummary:
    """What was written, in this form or the other."""

    architecture: Architecture
    n_embd: int
    n_layer: int
    matrix_types: dict[str, int]
    """Type found in the file -> number of matrices: llama.cpp replaces k-quants where a width is no multiple of 256."""
    float32_matrices: tuple[str, ...] = ()
    """As in `mtllm_edge.bundle.manifest.LlmSpec`."""


def log_tensor_types(written: LlmSummary, log: Callable[[str], None]) -> None:
    """Say in which types an LLM was written."""
    log("matrices of the LLM: " + ", ".join(f"{count} {kind}" for kind, count in written.matrix_types.items()))
    if written.float32_matrices:
        log(f"in float32, for the vectors' sake: {', '.join(written.float32_matrices)}")
