"""The LLM body as an ONNX file: embeddings and mask to token states, adapters merged.

torch traces the decoder of transformers, so the graph is that of training. Padding is on the right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn

from mtllm_edge.backends.llms.base import span_means
from mtllm_edge.bundle.formats.onnx import LLM_INPUTS
from mtllm_edge.bundle.manifest import LlmSpec, OnnxQuantization
from mtllm_edge.errors import ModelError
from mtllm_edge_export.llms.body import LlmBody, LlmSummary, log_tensor_types
from mtllm_edge_export.onnx_export import PaddedModule, additive_mask, save, trace
from mtllm_edge_export.quantization.onnx import QualityGate, quantize_within_tolerance

Array = NDArray[np.float32]

MAX_BYTES = 1_600_000_000
"""Limit of float32 weights in bytes. An ONNX file is at most 2 GiB (external data would be a second file to verify),
and the int8 search holds float32 and int8 weights in one graph."""
GATE_COSINE_MEAN = 0.999
"""Required mean cosine of pooled vectors in int8 with those in float32."""
GATE_COSINE_MIN = 0.995
"""Required lowest cosine."""
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def check_size(body: LlmBody) -> None:
    """Raise ModelError for an LLM of another family than Llama, or one too large for an ONNX file."""
    if body.weights.config.get("model_type", "llama") != "llama":
        raise ModelError(f"ONNX export supports Llama only, this LLM is {body.weights.config['model_type']}; use GGUF")
    size = body.shape.float32_bytes
    if size > MAX_BYTES:
        raise ModelError(
            f"the LLM body has {size / 1e9:.1f} GB in float32, ONNX supports up to {MAX_BYTES / 1e9:.1f} GB; "
            "export with --llm-backend gguf"
        )


def write_llm_onnx(
    path: Path, body: LlmBody, quantization: OnnxQuantization, calibration: Sequence[Array]
) -> LlmSummary:
    """Write an ONNX file; ``int8`` keeps matrices in float32 where the vectors would change too much.

    Both are compared on `calibration`, LLM inputs of real texts, each (length, n_embd).

    Raises:
        ModelError: The LLM is too large, a tensor is missing, the adapter does not fit, the model has parts that cannot
            be exported, int8 differs too much from float32, or this torch release traces the model differently.
    """
    check_size(body)
    shape = body.shape
    matrices = [name.removesuffix(".weight") for _, name, dimensions in shape.tensors() if len(dimensions) == 2]
    module = _Decoder(_load_decoder(body), causal=body.attention == "causal")
    model = trace(module, LLM_INPUTS, torch.zeros(2, 5, shape.n_embd), matrices)
    types, float32_matrices = {"f32": len(matrices)}, tuple[str, ...]()
    if quantization == "int8":
        gate = QualityGate(
            "LLM", LLM_INPUTS, calibration, partial(span_means, spans=None), GATE_COSINE_MEAN, GATE_COSINE_MIN
        )
        model, float32_matrices = quantize_within_tolerance(model, matrices, gate)
        types = {"int8": len(matrices) - len(float32_matrices)}
        types |= {"f32": len(float32_matrices)} if float32_matrices else {}
    save(model, path)
    return LlmSummary("llama", shape.n_embd, shape.n_layer, types, float32_matrices)


def add_llm_onnx(
    folder: Path, body: LlmBody, gguf: LlmSpec, calibration: Sequence[Array], log: Callable[[str], None]
) -> LlmSpec:
    """Add the LLM in ONNX int8 to a bundle that has it in GGUF; errors as for `write_llm_onnx`."""
    log("writing the LLM for ONNX Runtime (int8)")
    spec = msgspec.structs.replace(gguf, backend="onnx", quantization="int8")
    summary = write_llm_onnx(folder / spec.file, body, "int8", calibration)
    log_tensor_types(summary, log)
    return summary.spec("int8", body.attention, "onnx")


def _load_decoder(body: LlmBody) -> nn.Module:
    """Load the decoder of transformers in float32, adapter merged, without vocabulary."""
    body.check_adapter()
    settings = {"num_hidden_layers": body.shape.n_layer, "vocab_size": 1} | dict.fromkeys(_TOKEN_IDS)
    config = transformers.LlamaConfig(**{**body.weights.config, **settings})
    config._attn_implementation = "eager"  # plain products and a softmax, which every ONNX Runtime supports
    model: Any = transformers.LlamaModel(config).float()
    state = {"embed_tokens.weight": torch.zeros(1, body.shape.n_embd)}
    for _, name, dimensions in body.shape.tensors():
        state[name] = torch.from_numpy(np.array(body.merged_tensor(name, dimensions), np.float32))
    model.load_state_dict(state)
    decoder: nn.Module = model.eval().requires_grad_(False)
    return decoder


class _Decoder(PaddedModule):
    """The decoder, with one additive attention mask."""

    def __init__(self, body: nn.Module, *, causal: bool) -> None:
        super().__init__(body)
        self._causal = causal

    def forward(self, inputs_NLD: Tensor, mask_NL: Tensor) -> Tensor:
        """Return the normalized states of the last layer (N, L, D); those of padding are undefined."""
        visible = (mask_NL != 0)[:, None, None, :]
        if self._causal:
            position_L = torch.arange(inputs_NLD.shape[1])
            visible = visible & (position_L[None, :] <= position_L[:, None])
        mask = additive_mask(visible).expand(-1, 1, inputs_NLD.shape[1], -1)
        states: Tensor = self.body(inputs_embeds=inputs_NLD, attention_mask=mask, use_cache=False).last_hidden_state
        return states
