"""The supported LLM families, with the differences between transformers and llama.cpp.

Each is a decoder with rotary positions, RMS norms and a gated MLP. Names are those of transformers (``LlamaModel``,
``Qwen2Model`` ...) and of gguf-py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mtllm_edge.bundle.manifest import Architecture
from mtllm_edge.errors import ModelError

GGUF_NAMES = {
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
}
"""Tensor of a layer: name in transformers -> name in GGUF, in file order (gguf-py, `MODEL_ARCH.LLAMA`)."""
_BIASES = {f"self_attn.{name}_proj.bias": f"attn_{name}.bias" for name in "qkv"}
_QUERY_KEY_NORMS = {f"self_attn.{name}_norm.weight": f"attn_{name}_norm.weight" for name in "qk"}
_FOUR_NORMS = {
    **GGUF_NAMES,
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
}


@dataclass(frozen=True)
class Family:
    """Properties of a family."""

    architecture: Architecture
    """Architecture name in GGUF."""
    tensors: Mapping[str, str]
    """As in `GGUF_NAMES`."""
    bidirectional: Architecture | None = None
    """Architecture name in GGUF with bidirectional attention; None if a field of the file sets the attention."""
    interleaved: bool = False
    """Whether llama.cpp rotates neighboring dimensions, so that rows of q and k are permuted."""
    activation: str = "silu"
    norm_offset: float = 0.0
    """Added to a stored norm weight: Gemma stores the weight minus 1."""
    windows: bool = False
    """Whether llama.cpp uses a sliding window and another rotary base in some layers."""
    window_period: int = 0
    """One layer in so many, the last, has full attention, unless the configuration lists the layers."""
    rope_theta: float = 10000.0
    """Rotary base, unless the configuration sets it."""


FAMILIES: Mapping[str, Family] = {
    "llama": Family("llama", GGUF_NAMES, bidirectional="llama-embed", interleaved=True),
    "mistral": Family("llama", GGUF_NAMES, bidirectional="llama-embed", interleaved=True),
    "qwen2": Family("qwen2", {**GGUF_NAMES, **_BIASES}),
    "qwen3": Family("qwen3", {**GGUF_NAMES, **_QUERY_KEY_NORMS}),
    "smollm3": Family("smollm3", GGUF_NAMES, interleaved=True, rope_theta=2e6),
    "gemma2": Family(
        "gemma2", _FOUR_NORMS, activation="gelu_pytorch_tanh", norm_offset=1.0, windows=True, window_period=2
    ),
    "gemma3_text": Family(
        "gemma3",
        {**_FOUR_NORMS, **_QUERY_KEY_NORMS},
        activation="gelu_pytorch_tanh",
        norm_offset=1.0,
        windows=True,
        window_period=6,
        rope_theta=1e6,
    ),
}
"""Model type in transformers -> family."""


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the family of a configuration; the default model type is Llama.

    Raises:
        ModelError: The family is not supported.
    """
    kind = config.get("model_type", "llama")
    if kind not in FAMILIES:
        raise ModelError(f"the LLM is a {kind!r} model; this release exports {', '.join(FAMILIES)}")
    return FAMILIES[kind]
