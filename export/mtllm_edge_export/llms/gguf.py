"""The LLM body as a headless GGUF file: no vocabulary, no output head, adapters merged.

The LLM of a stack takes and returns vectors, so the file has a stub in place of the vocabulary that llama.cpp requires.
The writer uses the `gguf` package and no torch. Weights are read, merged, reordered and written one by one, so the
memory required is that of the largest tensor.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import gguf
import numpy as np

from mtllm_edge.bundle.manifest import Architecture, GgufQuantization
from mtllm_edge.errors import ModelError
from mtllm_edge_export.llms.body import Array, Attention, LlmBody, LlmSummary
from mtllm_edge_export.llms.config import LlmShape
from mtllm_edge_export.quantization.llama_cpp import quantize_gguf
from mtllm_edge_train.checkpoints.llm_weights import permute_rope_rows

STUB_ROWS = 32
"""Number of token embeddings in a file without vocabulary."""
_EMBEDDINGS = "token_embd.weight"
_Float = Literal["f32", "f16", "bf16"]
_FLOATS: dict[_Float, tuple[gguf.LlamaFileType, gguf.GGMLQuantizationType]] = {
    "f32": (gguf.LlamaFileType.ALL_F32, gguf.GGMLQuantizationType.F32),
    "f16": (gguf.LlamaFileType.MOSTLY_F16, gguf.GGMLQuantizationType.F16),
    "bf16": (gguf.LlamaFileType.MOSTLY_BF16, gguf.GGMLQuantizationType.BF16),
}
"""Types written without llama.cpp: of the file, and of its matrices."""
_QUERY_SCALE_WEIGHT = {"gemma2": "q_proj.weight", "gemma3": "q_norm.weight"}
"""Weight that takes the factor on the queries: the last one before the rotary embedding."""


def write_llm(
    path: Path, body: LlmBody, quantization: GgufQuantization, importance: Mapping[str, Array] | None = None
) -> LlmSummary:
    """Write a GGUF file without output head, and without vocabulary unless `body.vocabulary` is set.

    Types below 16 bits are made by llama.cpp from a temporary float32 file beside `path`, some with the importance
    matrix of `mtllm_edge_export.quantization.imatrix`.

    Raises:
        ModelError: A tensor is missing, the adapter does not fit, or the model has parts that cannot be exported.
        EngineError: llama.cpp cannot quantize the file.
    """
    shape = body.shape
    _check_window(body)
    body.check_adapter()
    if quantization == "f32" or quantization == "f16" or quantization == "bf16":  # mypy does not narrow by `in`
        _write(path, body, quantization)
    else:
        float32_path = path.with_suffix(".float32.gguf")
        try:
            _write(float32_path, body, "f32")
            gguf_names = {name: stored for stored, name, _ in shape.tensors()}
            by_gguf_name = {
                gguf_names[name]: weights for name, weights in (importance or {}).items() if name in gguf_names
            }
            quantize_gguf(float32_path, path, quantization, by_gguf_name)
        finally:
            float32_path.unlink(missing_ok=True)
    return LlmSummary(_architecture(body), shape.n_embd, shape.n_layer, _matrix_types(path))


def _architecture(body: LlmBody) -> Architecture:
    family = body.shape.family
    return family.architecture if body.attention == "causal" else family.bidirectional or family.architecture


def _check_window(body: LlmBody) -> None:
    """Raise ModelError if inputs may exceed a sliding window of the causal body that llama.cpp does not implement."""
    window = body.shape.unsupported_window
    if body.attention == "causal" and window is not None and (body.max_tokens is None or body.max_tokens > window):
        lengths = "inputs of any length" if body.max_tokens is None else f"inputs of up to {body.max_tokens} tokens"
        raise ModelError(
            f"the LLM has a sliding window of {window} tokens, which llama.cpp does not implement, and {lengths}; "
            f"lower max_tokens so that {window} suffice"
        )


def _write(path: Path, body: LlmBody, kind: _Float) -> None:
    """Write header, tensor table and tensors, the latter in the order of the table."""
    shape = body.shape
    rows = int(body.weights.config["vocab_size"]) if body.vocabulary else STUB_ROWS
    fixed = {} if body.vocabulary else {_EMBEDDINGS: np.zeros((rows, shape.n_embd), np.float32)}
    if shape.rope_factors is not None:
        fixed["rope_freqs.weight"] = shape.rope_factors
    table = [(_EMBEDDINGS, "embed_tokens.weight", (rows, shape.n_embd))] if body.vocabulary else []
    streamed = [*table, *shape.tensors()]
    writer = gguf.GGUFWriter(path, _architecture(body))
    try:
        add_metadata(writer, shape, body.attention, rows, _FLOATS[kind][0])
        for name, tensor in fixed.items():
            writer.add_tensor_info(name, tensor.shape, tensor.dtype, tensor.nbytes)
        for name, _, dimensions in streamed:
            # llama.cpp expects norms and biases in float32
            stored = _FLOATS["f32" if len(dimensions) == 1 else kind][1]
            n_bytes = math.prod(dimensions) * (4 if stored == gguf.GGMLQuantizationType.F32 else 2)
            writer.add_tensor_info(name, dimensions, np.dtype(np.float32), n_bytes, raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in fixed.values():
            writer.write_tensor_data(tensor)
        for _, name, dimensions in streamed:
            weight = np.ascontiguousarray(_llama_cpp_weight(body, name, dimensions), np.float32)
            writer.write_tensor_data(gguf.quantize(weight, _FLOATS["f32" if len(dimensions) == 1 else kind][1]))
    finally:
        writer.close()


def _llama_cpp_weight(body: LlmBody, name: str, dimensions: tuple[int, ...]) -> Array:
    """Return one weight in llama.cpp's convention: adapter merged, q and k rows permuted, norms and queries scaled."""
    weight, shape = body.merged_tensor(name, dimensions), body.shape
    family = shape.family
    if name.endswith("norm.weight"):
        weight = weight + np.float32(family.norm_offset)
    if shape.query_factor != 1.0 and name.endswith(_QUERY_SCALE_WEIGHT[family.architecture]):
        weight = weight * np.float32(shape.query_factor)
    if family.interleaved and name.endswith("q_proj.weight"):
        return permute_rope_rows(weight, shape.n_head)
    if family.interleaved and name.endswith("k_proj.weight"):
        return permute_rope_rows(weight, shape.n_head_kv)
    return weight


def add_metadata(
    writer: gguf.GGUFWriter, shape: LlmShape, attention: Attention, rows: int, file_type: gguf.LlamaFileType
) -> None:
    """Add the metadata of a body to a GGUF file with `rows` token embeddings."""
    writer.add_file_type(file_type)
    writer.add_block_count(shape.n_layer)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    if shape.rope_divisor != 1.0:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(shape.rope_divisor)
    if shape.family.windows and shape.window is not None:
        # A bidirectional body has no window in torch, but llama.cpp needs one for the rotary base of these layers.
        writer.add_sliding_window(shape.window if attention == "causal" else shape.context)
        writer.add_sliding_window_pattern(shape.windowed)
        writer.add_rope_freq_base_swa(shape.window_rope_theta)
    if shape.softcap is not None:
        writer.add_attn_logit_softcapping(shape.softcap)
    writer.add_causal_attention(attention == "causal")
    writer.add_vocab_size(rows)
    writer.add_tokenizer_model("none")


def _matrix_types(path: Path) -> dict[str, int]:
    tensors = gguf.GGUFReader(path).tensors
    return dict(Counter(t.tensor_type.name.lower() for t in tensors if len(t.shape) > 1 and t.name.startswith("blk.")))
