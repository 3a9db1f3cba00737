"""The LLM body as a headless GGUF file: no vocabulary, no output head, adapters merged.

The stack feeds the LLM vectors and reads vectors, so the file carries a stub where llama.cpp insists on a vocabulary.
The writer is our own over the `gguf` package and needs no torch; each weight is read, merged, reordered and written
before the next one is touched, so the memory needed is that of the largest tensor.
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
from mtllm_edge_export.adapters.merge import check_lora, merge_lora
from mtllm_edge_export.llms.body import Array, Attention, LlmBody, LlmSummary
from mtllm_edge_export.llms.config import LlmShape
from mtllm_edge_export.quantization.llama_cpp import quantize_gguf
from mtllm_edge_train.checkpoints.llm_weights import permute_rope_rows

LlmQuantization = GgufQuantization

STUB_ROWS = 32
"""Token embeddings of a file without vocabulary."""
_EMBEDDINGS = "token_embd.weight"
_Float = Literal["f32", "f16", "bf16"]
_FLOATS: dict[_Float, tuple[gguf.LlamaFileType, gguf.GGMLQuantizationType]] = {
    "f32": (gguf.LlamaFileType.ALL_F32, gguf.GGMLQuantizationType.F32),
    "f16": (gguf.LlamaFileType.MOSTLY_F16, gguf.GGMLQuantizationType.F16),
    "bf16": (gguf.LlamaFileType.MOSTLY_BF16, gguf.GGMLQuantizationType.BF16),
}
"""Types that the writer makes itself: of the file, and of its matrices."""
_LAST_OF_QUERIES = {"gemma2": "q_proj.weight", "gemma3": "q_norm.weight"}
"""The weight after which queries may be scaled."""


def write_llm(
    path: Path, body: LlmBody, quantization: LlmQuantization, importance: Mapping[str, Array] | None = None
) -> LlmSummary:
    """Write a GGUF file without head, and without vocabulary unless the body is to have one.

    Args:
        path: The file to write.
        body: Weights, depth, attention and adapter.
        quantization: ``f32``, ``f16`` and ``bf16`` are written directly; the others by llama.cpp, from a float32 file
            that lies beside `path` for that long.
        importance: What `mtllm_edge_export.quantization.imatrix` found, for the types that it names.

    Raises:
        ModelError: A tensor is missing, the adapter does not fit, or the model has parts that cannot be exported.
        EngineError: llama.cpp refuses to quantise.
    """
    shape = LlmShape.read(body.weights.config, body.layers)
    _check_window(body, shape)
    check_lora(body.lora, {name: dimensions for _, name, dimensions in shape.tensors() if len(dimensions) == 2})
    if (
        quantization == "f32" or quantization == "f16" or quantization == "bf16"
    ):  # mypy narrows by equality, not by `in`
        _write(path, body, shape, quantization)
    else:
        full = path.with_suffix(".float32.gguf")
        try:
            _write(full, body, shape, "f32")
            quantize_gguf(full, path, quantization, _by_stored_name(shape, importance or {}))
        finally:
            full.unlink(missing_ok=True)
    return LlmSummary(_architecture(shape, body.attention), shape.n_embd, shape.n_layer, _matrix_types(path))


def _by_stored_name(shape: LlmShape, importance: Mapping[str, Array]) -> dict[str, Array]:
    return {stored: importance[name] for stored, name, _ in shape.tensors() if name in importance}


def _architecture(shape: LlmShape, attention: Attention) -> Architecture:
    family = shape.family
    return family.architecture if attention == "causal" else family.bidirectional or family.architecture


def _check_window(body: LlmBody, shape: LlmShape) -> None:
    """Refuse inputs that a causal body would read through a window in torch, and as a whole in llama.cpp."""
    window = shape.unsupported_window
    if body.attention == "causal" and window is not None and (body.longest is None or body.longest > window):
        longest = "of any length" if body.longest is None else f"of up to {body.longest} tokens"
        raise ModelError(
            f"the LLM's layers see {window} tokens back, llama.cpp's all of a text, and it may get texts {longest}; "
            f"lower max_tokens so that {window} suffice"
        )


def _write(path: Path, body: LlmBody, shape: LlmShape, kind: _Float) -> None:
    """Write header, tensor table and then the tensors, in the table's order."""
    rows = int(body.weights.config["vocab_size"]) if body.vocabulary else STUB_ROWS
    fixed = {} if body.vocabulary else {_EMBEDDINGS: np.zeros((rows, shape.n_embd), np.float32)}
    if shape.rope_factors is not None:
        fixed["rope_freqs.weight"] = shape.rope_factors
    table = [(_EMBEDDINGS, "embed_tokens.weight", (rows, shape.n_embd))] if body.vocabulary else []
    streamed = [*table, *shape.tensors()]
    writer = gguf.GGUFWriter(path, _architecture(shape, body.attention))
    try:
        add_metadata(writer, shape, body.attention, rows, _FLOATS[kind][0])
        for name, tensor in fixed.items():
            writer.add_tensor_info(name, tensor.shape, tensor.dtype, tensor.nbytes)
        for name, _, dimensions in streamed:
            stored = _FLOATS["f32" if len(dimensions) == 1 else kind][1]  # llama.cpp wants norms and biases in float32
            n_bytes = math.prod(dimensions) * (4 if stored == gguf.GGMLQuantizationType.F32 else 2)
            writer.add_tensor_info(name, dimensions, np.dtype(np.float32), n_bytes, raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in fixed.values():
            writer.write_tensor_data(tensor)
        for _, name, dimensions in streamed:
            weight = np.ascontiguousarray(_weight(body, shape, name, dimensions), np.float32)
            writer.write_tensor_data(gguf.quantize(weight, _FLOATS["f32" if len(dimensions) == 1 else kind][1]))
    finally:
        writer.close()


def _weight(body: LlmBody, shape: LlmShape, name: str, dimensions: tuple[int, ...]) -> Array:
    """One weight as llama.cpp wants it: adapter merged, rows of q and k in its order, in its scale."""
    weight = body.weights.tensor(name)
    if weight.shape != dimensions:
        raise ModelError(f"the LLM's {name} has shape {weight.shape}, its configuration says {dimensions}")
    weight = merge_lora(weight, body.lora, name.removesuffix(".weight"), body.lora_scale)
    family = shape.family
    if name.endswith("norm.weight"):
        weight = weight + np.float32(family.norm_offset)
    if shape.query_factor != 1.0 and name.endswith(_LAST_OF_QUERIES[family.architecture]):
        weight = weight * np.float32(shape.query_factor)
    if family.interleaved and name.endswith("q_proj.weight"):
        return permute_rope_rows(weight, shape.n_head)
    if family.interleaved and name.endswith("k_proj.weight"):
        return permute_rope_rows(weight, shape.n_head_kv)
    return weight


def add_metadata(
    writer: gguf.GGUFWriter, shape: LlmShape, attention: Attention, rows: int, file_type: gguf.LlamaFileType
) -> None:
    """Put the metadata of a body into a GGUF file; `rows` counts its token embeddings."""
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
        # A bidirectional body in torch has no window; llama.cpp's rotary base of such layers needs the field.
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
