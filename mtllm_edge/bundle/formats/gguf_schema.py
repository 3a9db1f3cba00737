"""Fields and tensors of the GGUF file of an LLM body: those that the exporters write, no others.

llama.cpp ends the process over contradictory numbers (unequal key and value lengths, more than 512 layers, unknown
rotary scaling, experts without a count), and reads much that a body does not need, such as vocabularies, chat templates
and split files. So unknown fields and tensors are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeGuard

from mtllm_edge.bundle.formats.gguf import BOOL, F32, GgufHeader, Value
from mtllm_edge.bundle.formats.tensor_shapes import Shape, shape_problems
from mtllm_edge.bundle.manifest import Architecture, LlmSpec

_HEADS_LIMIT, _HEAD_WIDTH_LIMIT = 1_024, 1_024
_LENGTH_LIMIT, _WINDOW_LIMIT = 2**31 - 1, 2**23
_ROPE_FREQUENCIES = "rope_freqs.weight"
_WINDOWED: tuple[Architecture, ...] = ("gemma2", "gemma3")
"""Families with sliding-window layers."""


def llm_problems(header: GgufHeader, llm: LlmSpec) -> list[str]:
    """Return the differences between a file and the body that the manifest describes."""
    return _identity_problems(header.fields, llm) or _field_problems(header, llm) or _tensor_problems(header, llm)


def _identity_problems(fields: dict[str, Value], llm: LlmSpec) -> list[str]:
    expected: dict[str, Value] = {
        "general.architecture": llm.architecture,
        f"{llm.architecture}.embedding_length": llm.n_embd,
        f"{llm.architecture}.block_count": llm.n_layer,
        "tokenizer.ggml.model": "none",
    }
    return [
        f"{key} is {fields.get(key)!r}, expected {value!r}"
        for key, value in expected.items()
        if fields.get(key) != value or type(fields.get(key)) is not type(value)
    ]


def _field_problems(header: GgufHeader, llm: LlmSpec) -> list[str]:
    fields, architecture = header.fields, llm.architecture
    rules = {f"{architecture}.{key}": rule for key, rule in _rules(architecture).items()} | _GENERAL_RULES
    pattern = f"{architecture}.{_WINDOW_PATTERN}"
    unknown = [key for key in fields if key not in rules and not (key == pattern and architecture in _WINDOWED)]
    if unknown:
        return [f"holds the field {unknown[0]!r}, which does not belong to a body without vocabulary"]
    required = [f"{architecture}.{key}" for key in (*_REQUIRED, *_FAMILY_REQUIRED.get(architecture, ()))]
    problems = [
        f"{key} is {fields.get(key)!r}, expected {rules[key][1]}"
        for key in dict.fromkeys((*required, *(key for key in fields if key != pattern)))
        if not rules[key][0](fields.get(key))
    ]
    if pattern in fields and header.arrays.get(pattern) != (BOOL, llm.n_layer):
        problems.append(f"{pattern} is no list of {llm.n_layer} truth values")
    scaling, factor = f"{architecture}.{_SCALING}", f"{architecture}.{_SCALING_FACTOR}"
    if (scaling in fields) != (factor in fields):
        problems.append(f"{scaling} requires {factor}, and the reverse")
    return problems or _head_problems(fields, llm)


def _head_problems(fields: dict[str, Value], llm: LlmSpec) -> list[str]:
    """Check the numbers that llama.cpp divides by or asserts."""
    n_head, n_head_kv, head_width = _head_sizes(fields, llm)
    shared = f"{llm.architecture}.attention.key_length" not in fields  # the heads divide the width
    if n_head % n_head_kv or (shared and llm.n_embd % n_head):
        return [f"{n_head} heads and {n_head_kv} key-value heads do not divide a width of {llm.n_embd}"]
    if head_width % 2 or head_width > _HEAD_WIDTH_LIMIT:
        return [f"heads have a width of {head_width}, expected an even one up to {_HEAD_WIDTH_LIMIT}"]
    if llm.architecture == "qwen2" and n_head * head_width != llm.n_embd:
        return [f"{n_head} heads of {head_width} do not make a width of {llm.n_embd}"]
    widths = {key: fields.get(key, head_width) for key in (f"{llm.architecture}.{name}" for name in _SAME_AS_KEYS)}
    return [f"{key} is {value!r}, expected {head_width}" for key, value in widths.items() if value != head_width]


def _head_sizes(fields: dict[str, Value], llm: LlmSpec) -> tuple[int, int, int]:
    """Number of heads and of key-value heads, and the width of a head."""
    n_head = _integer(fields, llm, "attention.head_count")
    n_head_kv = _integer(fields, llm, "attention.head_count_kv", n_head)
    return n_head, n_head_kv, _integer(fields, llm, "attention.key_length", llm.n_embd // n_head)


def _integer(fields: dict[str, Value], llm: LlmSpec, key: str, default: int | None = None) -> int:
    value = fields.get(f"{llm.architecture}.{key}", default)
    assert isinstance(value, int)  # the field's rule has been checked
    return value


def _tensor_problems(header: GgufHeader, llm: LlmSpec) -> list[str]:
    problems = shape_problems(header.shapes, _tensor_shapes(header.fields, llm), optional=(_ROPE_FREQUENCIES,))
    return (
        problems
        or [
            f"tensor {name} has type {header.types[name]}, expected {F32} (float32)"
            for name, shape in header.shapes.items()
            if len(shape) == 1 and header.types[name] != F32
        ][:3]
    )


def _tensor_shapes(fields: dict[str, Value], llm: LlmSpec) -> dict[str, Shape]:
    """Shape of every tensor of the body, the contiguous dimension first."""
    n_embd, n_ff = llm.n_embd, _integer(fields, llm, "feed_forward_length")
    n_head, n_head_kv, head_width = _head_sizes(fields, llm)
    q, kv = n_head * head_width, n_head_kv * head_width
    shapes: dict[str, Shape] = {
        "token_embd.weight": (n_embd, _integer(fields, llm, "vocab_size")),
        "output_norm.weight": (n_embd,),
    }
    if llm.architecture in ("llama", "llama-embed"):
        shapes[_ROPE_FREQUENCIES] = (head_width // 2,)
    layer_shapes: dict[str, Shape] = {
        "attn_norm.weight": (n_embd,),
        "attn_q.weight": (n_embd, q),
        "attn_k.weight": (n_embd, kv),
        "attn_v.weight": (n_embd, kv),
        "attn_output.weight": (q, n_embd),
        "ffn_norm.weight": (n_embd,),
        "ffn_gate.weight": (n_embd, n_ff),
        "ffn_up.weight": (n_embd, n_ff),
        "ffn_down.weight": (n_ff, n_embd),
    }
    family_shapes: dict[str, Shape] = {
        "attn_q.bias": (q,),
        "attn_k.bias": (kv,),
        "attn_v.bias": (kv,),
        "attn_q_norm.weight": (head_width,),
        "attn_k_norm.weight": (head_width,),
        "post_attention_norm.weight": (n_embd,),
        "post_ffw_norm.weight": (n_embd,),
    }
    layer_shapes |= {name: family_shapes[name] for name in _FAMILY_TENSORS.get(llm.architecture, ())}
    return shapes | {
        f"blk.{layer}.{name}": shape for layer in range(llm.n_layer) for name, shape in layer_shapes.items()
    }


_QUERY_KEY_NORMS = ("attn_q_norm.weight", "attn_k_norm.weight")
_POST_NORMS = ("post_attention_norm.weight", "post_ffw_norm.weight")
_FAMILY_TENSORS: dict[Architecture, tuple[str, ...]] = {
    "qwen2": ("attn_q.bias", "attn_k.bias", "attn_v.bias"),
    "qwen3": _QUERY_KEY_NORMS,
    "gemma2": _POST_NORMS,
    "gemma3": (*_QUERY_KEY_NORMS, *_POST_NORMS),
}
"""Tensors of a layer that Llama lacks."""


def _is_positive(value: Value, limit: int = _LENGTH_LIMIT) -> TypeGuard[int]:
    return type(value) is int and 0 < value <= limit


def _is_real(value: Value, low: float, high: float) -> bool:
    return isinstance(value, float) and math.isfinite(value) and low < value <= high


_Rule = tuple[Callable[[Value], bool], str]
"""Whether a value is allowed, and the description of allowed values."""
_LENGTH: _Rule = (_is_positive, "above 0")
_HEADS: _Rule = (lambda value: _is_positive(value, _HEADS_LIMIT), f"1 to {_HEADS_LIMIT}")
_FACTOR: _Rule = (lambda value: _is_real(value, 0.0, 1e12), "above 0")
_INTEGER: _Rule = (lambda value: type(value) is int, "a number")
_REQUIRED = (
    "attention.head_count",
    "feed_forward_length",
    "vocab_size",
    "context_length",
    "attention.layer_norm_rms_epsilon",
)
_WINDOW, _WINDOW_PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"
_SOFTCAP = "attn_logit_softcapping"
_FAMILY_REQUIRED: dict[Architecture, tuple[str, ...]] = {"gemma2": (_WINDOW, _SOFTCAP), "gemma3": (_WINDOW,)}
"""Without them, Gemma's attention would be empty or not finite."""
_SAME_AS_KEYS = ("attention.value_length", "rope.dimension_count")
_SCALING, _SCALING_FACTOR = "rope.scaling.type", "rope.scaling.factor"
_LENGTHS = (
    *("embedding_length", "block_count", "context_length", "feed_forward_length", "vocab_size"),
    *("attention.key_length", "attention.value_length", "rope.dimension_count"),
)
_RULES: dict[str, _Rule] = dict.fromkeys(_LENGTHS, _LENGTH) | {
    "attention.head_count": _HEADS,
    "attention.head_count_kv": _HEADS,
    "attention.layer_norm_rms_epsilon": (lambda value: _is_real(value, 0.0, 1.0), "above 0"),
    "rope.freq_base": _FACTOR,
    _SCALING: (lambda value: value == "linear", "'linear'"),
    _SCALING_FACTOR: _FACTOR,
    "attention.causal": (lambda value: isinstance(value, bool), "a truth value"),
}
_WINDOW_RULES: dict[str, _Rule] = {
    # llama.cpp multiplies it by the number of texts in a batch, in 32 bits.
    _WINDOW: (lambda value: _is_positive(value, _WINDOW_LIMIT), f"1 to {_WINDOW_LIMIT}"),
    "rope.freq_base_swa": _FACTOR,
}
_GENERAL_RULES: dict[str, _Rule] = {
    "general.architecture": (lambda value: isinstance(value, str), "a name"),
    "general.file_type": _INTEGER,
    "general.quantization_version": _INTEGER,
    "general.alignment": _INTEGER,
    "tokenizer.ggml.model": (lambda value: value == "none", "'none'"),
}


def _rules(architecture: Architecture) -> dict[str, _Rule]:
    """Rule of each field of an architecture, without the architecture's prefix."""
    windows = _WINDOW_RULES if architecture in _WINDOWED else {}
    return _RULES | windows | ({_SOFTCAP: _FACTOR} if architecture == "gemma2" else {})
