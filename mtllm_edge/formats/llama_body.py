"""What the GGUF file of an LLM body may hold: the fields, tensors and types that the exporters write, no others.

llama.cpp ends the process over numbers that contradict each other (unequal key and value lengths, more than 512
layers, unknown kinds of rotary scaling, experts without a count), and much of what it reads besides, such as
vocabularies, chat templates and split files, has no use here. So nothing unknown is let through.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TypeGuard

from mtllm_edge.formats.gguf import GgufHeader, Value

ARCHITECTURES = ("llama", "llama-embed")
_F32 = 0
_HEADS_LIMIT, _HEAD_WIDTH_LIMIT = 1_024, 1_024
_LENGTH_LIMIT = 2**31 - 1
_ROPE_FREQUENCIES = "rope_freqs.weight"


def faults(header: GgufHeader, *, architecture: str, n_embd: int, n_layer: int) -> list[str]:
    """What keeps a file from being the body that the manifest describes, as ends of sentences.

    Args:
        header: The file's own word.
        architecture: One of `ARCHITECTURES`.
        n_embd: Width.
        n_layer: Layers.
    """
    found = _identity_faults(header.fields, architecture, n_embd, n_layer)
    if found:
        return found
    found = _field_faults(header.fields, architecture, n_embd)
    return found or _tensor_faults(header, architecture, n_embd, n_layer)


def _identity_faults(fields: dict[str, Value], architecture: str, n_embd: int, n_layer: int) -> list[str]:
    if architecture not in ARCHITECTURES:
        return [f"architecture {architecture!r}, expected {' or '.join(ARCHITECTURES)}"]
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


def _field_faults(fields: dict[str, Value], architecture: str, n_embd: int) -> list[str]:
    rules = {f"{architecture}.{key}": rule for key, rule in _RULES.items()} | _GENERAL_RULES
    unknown = [key for key in fields if key not in rules]
    if unknown:
        return [f"holds the field {unknown[0]!r}, which a body without vocabulary has not"]
    needed = [f"{architecture}.{key}" for key in _NEEDED]
    found = [
        f"{key} is {fields.get(key)!r}, expected {rules[key][1]}"
        for key in needed
        if not rules[key][0](fields.get(key))
    ]
    found += [
        f"{key} is {value!r}, expected {rules[key][1]}"
        for key, value in fields.items()
        if key not in needed and not rules[key][0](value)
    ]
    return found or _head_faults(fields, architecture, n_embd)


def _head_faults(fields: dict[str, Value], architecture: str, n_embd: int) -> list[str]:
    """Numbers that llama.cpp divides by or asserts on."""
    n_head = fields[f"{architecture}.attention.head_count"]
    n_head_kv = fields.get(f"{architecture}.attention.head_count_kv", n_head)
    assert isinstance(n_head, int)
    assert isinstance(n_head_kv, int)
    key = fields.get(f"{architecture}.attention.key_length")
    if n_head % n_head_kv or (key is None and n_embd % n_head):
        return [f"{n_head} heads and {n_head_kv} key-value heads do not divide a width of {n_embd}"]
    head_width = _head_width(fields, architecture, n_embd)
    others = {name: fields.get(f"{architecture}.{name}", head_width) for name in _SAME_AS_KEYS}
    if set(others.values()) != {head_width} or head_width % 2 or head_width > _HEAD_WIDTH_LIMIT:
        listed = ", ".join(f"{name} {value}" for name, value in others.items())
        return [f"heads have a width of {head_width} ({listed}), expected one even width up to {_HEAD_WIDTH_LIMIT}"]
    return []


def _head_width(fields: dict[str, Value], architecture: str, n_embd: int) -> int:
    n_head, key = (fields.get(f"{architecture}.attention.{name}") for name in ("head_count", "key_length"))
    assert isinstance(n_head, int)
    return key if isinstance(key, int) else n_embd // n_head


def _tensor_faults(header: GgufHeader, architecture: str, n_embd: int, n_layer: int) -> list[str]:
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
    fields: dict[str, Value], architecture: str, n_embd: int, n_layer: int
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
    yield _ROPE_FREQUENCIES, (head_width // 2,)
    layer_shapes = {
        "attn_norm": (n_embd,),
        "attn_q": (n_embd, q),
        "attn_k": (n_embd, kv),
        "attn_v": (n_embd, kv),
        "attn_output": (q, n_embd),
        "ffn_norm": (n_embd,),
        "ffn_gate": (n_embd, n_ff),
        "ffn_up": (n_embd, n_ff),
        "ffn_down": (n_ff, n_embd),
    }
    for layer in range(n_layer):
        for name, shape in layer_shapes.items():
            yield f"blk.{layer}.{name}.weight", shape


def _counts(value: Value, limit: int = _LENGTH_LIMIT) -> TypeGuard[int]:
    return type(value) is int and 0 < value <= limit


def _is_real(value: Value, low: float, high: float) -> bool:
    return isinstance(value, float) and math.isfinite(value) and low < value <= high


_Rule = tuple[Callable[[Value], bool], str]
_LENGTH: _Rule = (_counts, "above 0")
_HEADS: _Rule = (lambda value: _counts(value, _HEADS_LIMIT), f"1 to {_HEADS_LIMIT}")
_NEEDED = (
    "attention.head_count",
    "feed_forward_length",
    "vocab_size",
    "context_length",
    "attention.layer_norm_rms_epsilon",
)
_SAME_AS_KEYS = ("attention.value_length", "rope.dimension_count")
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
    "rope.freq_base": (lambda value: _is_real(value, 0.0, 1e12), "above 0"),
    "attention.causal": (lambda value: isinstance(value, bool), "a truth value"),
}
_GENERAL_RULES: dict[str, _Rule] = {
    "general.architecture": (lambda value: value in ARCHITECTURES, " or ".join(ARCHITECTURES)),
    "general.file_type": (lambda value: type(value) is int, "a number"),
    "general.quantization_version": (lambda value: type(value) is int, "a number"),
    "general.alignment": (lambda value: type(value) is int, "a number"),
    "tokenizer.ggml.model": (lambda value: value == "none", "'none'"),
}
