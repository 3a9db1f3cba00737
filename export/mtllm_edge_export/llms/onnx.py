"""The LLM body as an ONNX file: embeddings and a mask in, token states out, adapters merged.

torch traces transformers' own decoder, so the graph is what training ran. Padding stands on the right.
"""

from __future__ import annotations

import math
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

from mtllm_edge.backends.llms.pooling import span_means
from mtllm_edge.bundle.formats.onnx import LLM_INPUTS
from mtllm_edge.bundle.manifest import LlmSpec, OnnxQuantization
from mtllm_edge.errors import ModelError
from mtllm_edge_export.adapters.merge import check_lora, merge_lora
from mtllm_edge_export.llms.body import LlmBody, LlmSummary, log_tensor_types
from mtllm_edge_export.llms.config import LlmShape
from mtllm_edge_export.onnx_export import PaddedModule, additive_mask, save, trace
from mtllm_edge_export.quantization.onnx import QualityGate, quantize_within_tolerance

Array = NDArray[np.float32]

MAX_BYTES = 1_600_000_000
"""Most bytes of float32 weights. An ONNX file ends at 2 GiB (external data would be a second file to trust), and while
int8 is measured both forms are in one."""
GATE_COSINE_MEAN = 0.999
"""What the pooled vectors in int8 must reach on average against those in float32."""
GATE_COSINE_MIN = 0.995
"""What the worst of them must reach."""
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")  # of a vocabulary that is not there


def check_size(body: LlmBody) -> None:
    """Refuse an LLM of another family than Llama, or one that is too large for one ONNX file.

    Raises:
        ModelError: It is.
    """
    shape = LlmShape.read(body.weights.config, body.layers)
    if body.weights.config.get("model_type", "llama") != "llama":
        raise ModelError(f"ONNX takes LLMs of the family llama, this is {body.weights.config['model_type']}; use GGUF")
    size = 4 * sum(math.prod(dimensions) for _, _, dimensions in shape.tensors())
    if size > MAX_BYTES:
        raise ModelError(
            f"the LLM body has {size / 1e9:.1f} GB in float32, ONNX takes {MAX_BYTES / 1e9:.1f} GB at most; "
            "GGUF is the form for large LLMs: export with --llm-backend gguf"
        )


def write_llm_onnx(
    path: Path, body: LlmBody, quantization: OnnxQuantization, calibration: Sequence[Array]
) -> LlmSummary:
    """Write an ONNX file.

    Args:
        path: The file to write.
        body: Weights, depth, attention and adapter.
        quantization: ``int8`` leaves the matrices in float32 that the quality gate wants so.
        calibration: LLM inputs of real texts, each (length, n_embd), on which int8 is compared with float32.

    Raises:
        ModelError: It is too large, a tensor is missing, the adapter does not fit, the model has parts that cannot be
            exported, int8 cannot follow float32, or this torch traces the model in another way.
    """
    check_size(body)
    shape = LlmShape.read(body.weights.config, body.layers)
    matrices = [name.removesuffix(".weight") for _, name, dimensions in shape.tensors() if len(dimensions) == 2]
    wrapper = _Decoder(_decoder(body, shape), causal=body.attention == "causal")
    model, kept = trace(wrapper, LLM_INPUTS, torch.zeros(2, 5, shape.n_embd), matrices), tuple[str, ...]()
    types = {"f32": len(matrices)}
    if quantization == "int8":
        pooled = partial(span_means, spans=None)
        trial = QualityGate("LLM", LLM_INPUTS, calibration, pooled, GATE_COSINE_MEAN, GATE_COSINE_MIN)
        model, kept = quantize_within_tolerance(model, matrices, trial)
        types = {"int8": len(matrices) - len(kept)} | ({"f32": len(kept)} if kept else {})
    save(model, path)
    return LlmSummary("llama", shape.n_embd, shape.n_layer, types, kept)


def add_llm_onnx(
    folder: Path, body: LlmBody, gguf: LlmSpec, calibration: Sequence[Array], log: Callable[[str], None]
) -> LlmSpec:
    """Write a bundle's second form of its LLM, in int8.

    Args:
        folder: The bundle.
        body: What `gguf` was written from.
        gguf: The first form.
        calibration: As for `write_llm_onnx`.
        log: Told what is done.

    Raises:
        ModelError: As `write_llm_onnx`.
    """
    log("writing the LLM for ONNX Runtime, too (int8)")
    onnx_form = msgspec.structs.replace(gguf, backend="onnx", quantization="int8")
    written = write_llm_onnx(folder / onnx_form.file, body, "int8", calibration)
    log_tensor_types(written, log)
    return msgspec.structs.replace(
        onnx_form, architecture=written.architecture, float32_matrices=written.float32_matrices
    )


def _decoder(body: LlmBody, shape: LlmShape) -> nn.Module:
    """The decoder of transformers in float32, adapter merged, without a vocabulary."""
    check_lora(body.lora, {name: dimensions for _, name, dimensions in shape.tensors() if len(dimensions) == 2})
    settings = {"num_hidden_layers": shape.n_layer, "vocab_size": 1} | dict.fromkeys(_TOKENS)
    config = transformers.LlamaConfig(**{**body.weights.config, **settings})
    config._attn_implementation = "eager"  # plain products and a softmax, which every ONNX Runtime has
    model: Any = transformers.LlamaModel(config).float()
    state = {"embed_tokens.weight": torch.zeros(1, shape.n_embd)}
    for _, name, dimensions in shape.tensors():
        weight = body.weights.tensor(name)
        if weight.shape != dimensions:
            raise ModelError(f"the LLM's {name} has shape {weight.shape}, its configuration says {dimensions}")
        merged = merge_lora(weight, body.lora, name.removesuffix(".weight"), body.lora_scale)
        state[name] = torch.from_numpy(np.array(merged, np.float32))
    model.load_state_dict(state)
    decoder: nn.Module = model.eval().requires_grad_(False)
    return decoder


class _Decoder(PaddedModule):
    """The decoder, with the attention spelled out as one additive mask."""

    def __init__(self, body: nn.Module, *, causal: bool) -> None:
        super().__init__(body)
        self._causal = causal

    def forward(self, inputs_NLD: Tensor, mask_NL: Tensor) -> Tensor:
        """Final-normed states (N, L, D); those of padding mean nothing."""
        seen = (mask_NL != 0)[:, None, None, :]
        if self._causal:
            place_L = torch.arange(inputs_NLD.shape[1])
            seen = seen & (place_L[None, :] <= place_L[:, None])
        added = additive_mask(seen).expand(-1, 1, inputs_NLD.shape[1], -1)
        states: Tensor = self.body(inputs_embeds=inputs_NLD, attention_mask=added, use_cache=False).last_hidden_state
        return states
