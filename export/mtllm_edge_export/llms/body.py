"""The LLM body to export, and the summary of its file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.bundle.manifest import Architecture, GgufQuantization, LlmBackend, LlmSpec, OnnxQuantization
from mtllm_edge.errors import ModelError
from mtllm_edge_export.adapters.merge import check_lora, merge_lora
from mtllm_edge_export.llms.config import LlmShape
from mtllm_edge_train.checkpoints.llm_weights import LlmWeights

Array = NDArray[np.float32]
Attention = Literal["causal", "bidirectional"]


@dataclass(frozen=True)
class LlmBody:
    """Weights, depth, attention and adapter of an LLM without its output head."""

    weights: LlmWeights
    layers: int | None
    """Number of layers, counted from the first; None is all."""
    attention: Attention
    lora: Mapping[str, Array] = field(default_factory=dict)
    """``layers.<i>.<module>.lora_A`` (rank, in) and ``.lora_B`` (out, rank); empty without an adapter."""
    lora_scale: float = 0.0
    """Factor on ``lora_B @ lora_A``."""
    max_tokens: int | None = None
    """Longest input in tokens; None is no limit."""
    vocabulary: bool = False
    """Whether to write the token embeddings, which an MT-LLM does not use."""

    @cached_property
    def shape(self) -> LlmShape:
        """Dimensions, read from the configuration.

        Raises:
            ModelError: The LLM has parts that cannot be exported, or fewer layers.
        """
        return LlmShape.from_config(self.weights.config, self.layers)

    def check_adapter(self) -> None:
        """Raise ModelError for an adapter that does not fit the matrices."""
        check_lora(
            self.lora, {name: dimensions for _, name, dimensions in self.shape.tensors() if len(dimensions) == 2}
        )

    def merged_tensor(self, name: str, dimensions: tuple[int, ...]) -> Array:
        """Read one weight in float32 and add the adapter to it.

        Raises:
            ModelError: The weight is missing, or its shape is not `dimensions`.
        """
        weight = self.weights.tensor(name)
        if weight.shape != dimensions:
            raise ModelError(f"the LLM's {name} has shape {weight.shape}, its configuration says {dimensions}")
        return merge_lora(weight, self.lora, name.removesuffix(".weight"), self.lora_scale)


@dataclass(frozen=True)
class LlmSummary:
    """Contents of a written LLM file."""

    architecture: Architecture
    n_embd: int
    n_layer: int
    matrix_types: dict[str, int]
    """Type -> number of matrices: llama.cpp replaces k-quants where a width is no multiple of 256."""
    float32_matrices: tuple[str, ...] = ()
    """As in `mtllm_edge.bundle.manifest.LlmSpec`."""

    def spec(
        self,
        quantization: GgufQuantization | OnnxQuantization,
        attention: Attention,
        backend: LlmBackend = "gguf",
    ) -> LlmSpec:
        """Return the manifest entry of the file."""
        return LlmSpec(
            backend=backend,
            architecture=self.architecture,
            n_embd=self.n_embd,
            n_layer=self.n_layer,
            quantization=quantization,
            float32_matrices=self.float32_matrices,
            attention=attention,
            pooling="mean",
        )


def log_tensor_types(summary: LlmSummary, log: Callable[[str], None]) -> None:
    """Log the types of an LLM's matrices."""
    log("matrices of the LLM: " + ", ".join(f"{count} {kind}" for kind, count in summary.matrix_types.items()))
    if summary.float32_matrices:
        log(f"kept in float32 to preserve the vectors: {', '.join(summary.float32_matrices)}")
