"""What the GGUF file of an LLM body may hold: the fields, tensors and types that the exporters write, no others.

llama.cpp ends the process over numbers that contradict each other (unequal key and value lengths, more than 512
layers, unknown kinds of rotary scaling, experts without a count), and much of what it reads besides, such as
vocabularies, chat templates and split files, has no use here. So nothing unknown is let through.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TypeGuard

from mtllm_edge.bundle.formats.gguf import BOOL, GgufHeader, Value
from mtllm_edge.bundle.manifest import Architecture

_F32 = 0
_HEADS_LIMIT, _HEAD_WIDTH_LIMIT = 1_024, 1_024
_LENGTH_LIMIT, _WINDOW_LIMIT = 2**31 - 1, 2**23
_ROPE_FREQUENCIES = "rope_freqs.weight"
_WINDOWED: tuple[Architecture, ...] = ("gemma2", "gemma3")
"""Families some of whose layers see a window only."""


def faults(header: GgufHeader, *, architecture: Architecture, n_embd: int, n_layer: int) -> list[str]:
    """What keeps a file from being the body that the manifest describes, as ends of sentences.

    Args:
        header: The file's own word.
        architecture: The manifest's.
        n_embd: Width.
        n_layer: Layers.
    """
    found = _identity_faults(header.fields, architecture, n_embd, n_layer)
    if found:
        return found
    found = _field_faults(header, architecture, n_embd, n_layer)
    return found or _tensor_faults(header, architecture, n_embd, n_layer)


def _identity_faults(fields: dict[str, Value], architecture: Architecture, n_embd: int, n_layer: int) -> list[str]:
    expected: dict[str, Value] = {
        "general.architecture": architecture,
        f"{architecture}.embedding_length": n_embd,
        f"{architecture}.block_count": n_layer,
        "tokenizer.ggml.model": "none",
    }
    return [
        f"{key} is {fields.get(key)!r}, expected {value!r}"
        for key, value in expected.items()
        if fields.get(key) != value or type(fields.get(key)) is not type(value)
    ]


def _field_faults(header: GgufHeader, architecture: Architecture, n_embd: int, n_layer: int) -> list[str]:
    fields = header.fields
    rules = {f"{architecture}.{key}": rule for key, rule in _rules(architecture).items()} | _GENERAL_RULES
    pattern = f"{architecture}.{_WINDOW_PATTERN}"
    unknown = [key for key in fields if key not in rules and not (key == pattern and architecture in _WINDOWED)]
    if unknown:
        return [f"holds the field {unknown[0]!r}, which a body without vocabulary has not"]
    needed = [f"{architecture}.{key}" for key in (*_NEEDED, *_NEEDED_BESIDES.get(architecture, ()))]
    found = [
        f"{key} is {fields.get(key)!r}, expected {rules[key][1]}"
        for key in needed
        if not rules[key][0](fields.get(key))
    ]
    found += [
        f"{key} is {value!r}, expected {rules[key][1]}"
        for key, value in fields.items()
        if key not in needed and key != pattern and not rules[key][0](value)
    ]
    if pattern in fields and header.arrays.get(pattern) != (BOOL, n_layer):
        found.append(f"{pattern} is no list of {n_layer} truth values")
    if (f"{architecture}.{_SCALING}" in fields) != (f"{architecture}.{_SCALING_FACTOR}" in fields):
        found.append(f"{architecture}.{_SCALING} and {architecture}.{_SCALING_FACTOR} come together only")
    return found or _head_faults(fields, architecture, n_embd)


def _head_faults(fields: dict[str, Value], architecture: Architecture, n_embd: int) -> list[str]:
    """Numbers that llama.cpp divides by or asserts on."""
    n_head = fields[f"{architecture}.attention.head_count"]
    n_head_kv = fields.get(f"{architecture}.attention.head_count_kv", n_head)
    assert isinstance(n_head, int)
    assert isinstance(n_head_kv, int)
    key = fields.get(f"{architecture}.attention.key_length")  # without it, the heads share the width
    if n_head % n_head_kv or (key is None and n_embd % n_head):
        return [f"{n_head} heads and {n_head_kv} key-value heads do not divide a width of {n_embd}"]
    head_width = _head_width(fields, architecture, n_embd)
    if head_width % 2 or head_width > _HEAD_WIDTH_LIMIT:
        return [f"heads have a width of {head_width}, expected an even one up to {_HEAD_WIDTH_LIMIT}"]
    if architecture == "qwen2" and n_head * head_width != n_embd:
        return [f"{n_head} heads of {head_width} do not make a width of {n_embd}"]
    others = {f"{architecture}.{name}": fields.get(f"{architecture}.{name}", head_width) for name in _SAME_AS_KEYS}
    return [f"{name} is {value!r}, expected {head_width}" for name, value in others.items() if value != head_width]


def _head_width(fields: dict[str, Value], architecture: Architecture, n_embd: int) -> int:
    n_head, key = (fields.get(f"{architecture}.attention.{name}") for name in ("head_count", "key_length"))
    assert isinstance(n_head, int)
    return key if isinstance(key, int) else n_embd // n_head


def _tensor_faults(header: GgufHeader, architecture: Architecture, n_embd: int, n_layer: int) -> list[str]:
    expected = dict(_tensors(header.fields, architecture, n_embd, n_layer))
    needed = expected.keys() - {_ROPE_FREQUENCIES}
    missing = [name for name in expected if name in needed and name not in header.shapes]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        return [f"lacks the tensors {', '.join(missing[:3])}{more}"]
    found = []
    for name, shape in header.shapes.items():
        if name not in expected:
            found.append(f"holds the tensor {name!r}, which no such body has")
        elif shape != expected[name]:
            found.append(f"tensor {name} has shape {list(shape)}, expected {list(expected[name])}")
        elif len(shape) == 1 and header.types[name] != _F32:
            found.append(f"tensor {name} has type {header.types[name]}, expected {_F32} (float32)")
    return found[:3]


def _tensors(
    fields: dict[str, Value], architecture: Architecture, n_embd: int, n_layer: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape, the contiguous dimension first, of every tensor that may be there."""
    n_head, n_ff, rows = (fields[f"{architecture}.{key}"] for key in _NEEDED[:3])
    n_head_kv = fields.get(f"{architecture}.attention.head_count_kv", n_head)
    assert isinstance(n_head, int)
    assert isinstance(n_head_kv, int)
    assert isinstance(n_ff, int)
    assert isinstance(rows, int)
    head_width = _head_width(fields, architecture, n_embd)
    q, kv = n_head * head_width, n_head_kv * head_width
    yield "token_embd.weight", (n_embd, rows)
    yield "output_norm.weight", (n_embd,)
    if architecture in ("llama", "llama-embed"):
        yield _ROPE_FREQUENCIES, (head_width // 2,)
    shapes = {
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
    further: dict[str, tuple[int, ...]] = {
        "attn_q.bias": (q,),
        "attn_k.bias": (kv,),
        "attn_v.bias": (kv,),
        "attn_q_norm.weight": (head_width,),
        "attn_k_norm.weight": (head_width,),
        "post_attention_norm.weight": (n_embd,),
        "post_ffw_norm.weight": (n_embd,),
    }
    layer_shapes = shapes | {name: further[name] for name in _FURTHER_TENSORS.get(architecture, ())}
    for layer in range(n_layer):
        for name, shape in layer_shapes.items():
            yield f"blk.{layer}.{name}", shape


_QUERY_KEY_NORMS = ("attn_q_norm.weight", "attn_k_norm.weight")
_POST_NORMS = ("post_attention_norm.weight", "post_ffw_norm.weight")
_FURTHER_TENSORS: dict[Architecture, tuple[str, ...]] = {
    "qwen2": ("attn_q.bias", "attn_k.bias", "attn_v.bias"),
    "qwen3": _QUERY_KEY_NORMS,
    "gemma2": _POST_NORMS,
    "gemma3": (*_QUERY_KEY_NORMS, *_POST_NORMS),
}
"""Of a layer, beside those of a Llama."""


def _counts(value: Value, limit: int = _LENGTH_LIMIT) -> TypeGuard[int]:
    return type(value) is int and 0 < value <= limit


def _is_real(value: Value, low: float, high: float) -> bool:
    return isinstance(value, float) and math.isfinite(value) and low < value <= high


_Rule = tuple[Callable[[Value], bool], str]
_LENGTH: _Rule = (_counts, "above 0")
_HEADS: _Rule = (lambda value: _counts(value, _HEADS_LIMIT), f"1 to {_HEADS_LIMIT}")
_FACTOR: _Rule = (lambda value: _is_real(value, 0.0, 1e12), "above 0")
_NEEDED = (
    "attention.head_count",
    "feed_forward_length",
    "vocab_size",
    "context_length",
    "attention.layer_norm_rms_epsilon",
)
_WINDOW, _WINDOW_PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"
_SOFTCAP = "attn_logit_softcapping"
_NEEDED_BESIDES: dict[Architecture, tuple[str, ...]] = {"gemma2": (_WINDOW, _SOFTCAP), "gemma3": (_WINDOW,)}
"""Without them, the attention of Gemma would be empty or not finite."""
_SAME_AS_KEYS = ("attention.value_length", "rope.dimension_count")
_SCALING, _SCALING_FACTOR = "rope.scaling.type", "rope.scaling.factor"
_RULES: dict[str, _Rule] = {
    "embedding_length": _LENGTH,
    "block_count": _LENGTH,
    "context_length": _LENGTH,
    "feed_forward_length": _LENGTH,
    "vocab_size": _LENGTH,
    "attention.head_count": _HEADS,
    "attention.head_count_kv": _HEADS,
    "attention.key_length": _LENGTH,
    "attention.value_length": _LENGTH,
    "rope.dimension_count": _LENGTH,
    "attention.layer_norm_rms_epsilon": (lambda value: _is_real(value, 0.0, 1.0), "above 0"),
    "rope.freq_base": _FACTOR,
    _SCALING: (lambda value: value == "linear", "'linear'"),
    _SCALING_FACTOR: _FACTOR,
    "attention.causal": (lambda value: isinstance(value, bool), "a truth value"),
}
_WINDOW_RULES: dict[str, _Rule] = {
    # llama.cpp multiplies it by the texts of a batch, in 32 bits.
    _WINDOW: (lambda value: _counts(value, _WINDOW_LIMIT), f"1 to {_WINDOW_LIMIT}"),
    "rope.freq_base_swa": _FACTOR,
}
_GENERAL_RULES: dict[str, _Rule] = {
    "general.architecture": (lambda value: isinstance(value, str), "a name"),
    "general.file_type": (lambda value: type(value) is int, "a number"),
    "general.quantization_version": (lambda value: type(value) is int, "a number"),
    "general.alignment": (lambda value: type(value) is int, "a number"),
    "tokenizer.ggml.model": (lambda value: value == "none", "'none'"),
}


def _rules(architecture: Architecture) -> dict[str, _Rule]:
    """Fields of an architecture, without its name before them -> what they may be."""
    windows = _WINDOW_RULES if architecture in _WINDOWED else {}
    return _RULES | windows | ({_SOFTCAP: _FACTOR} if architecture == "gemma2" else {})
