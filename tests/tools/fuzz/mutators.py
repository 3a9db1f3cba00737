"""Seeded mutators of files, which simulate attacks and failing disks.

A mutator takes a random generator and the content of a valid file, and returns changed content.
"""

from __future__ import annotations

import base64
import json
import random
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any

import onnx

Mutator = Callable[[random.Random, bytes], bytes]

_EXTREMES = (0, 1, 2, 3, 7, 8, 31, 32, 33, 63, 64, 127, 128, 255, 256, 512, 513, 2**15, 2**16 - 1, 2**16)
_EXTREMES += (2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1)
_HEADER = 3_000
"""Bytes at the beginning in which half of the changes fall: what comes after is weights, which may be anything."""


def mutate_bytes(rng: random.Random, content: bytes) -> bytes:
    """Flip, cut, append, overwrite, move or repeat bytes, one to three times."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = rng.choice(_BYTE_MUTATORS)(rng, content) or b"\0"
    return content


def _place(rng: random.Random, content: bytes) -> int:
    return rng.randrange(min(len(content), _HEADER) if rng.random() < 0.7 else len(content))


def _flip(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[_place(rng, content)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(rng: random.Random, content: bytes) -> bytes:
    begin = _place(rng, content)
    noise = rng.choice((rng.randbytes(rng.randint(1, 16)), b"\0" * rng.randint(1, 64), b"\xff" * rng.randint(1, 64)))
    return content[:begin] + noise[: len(content) - begin] + content[begin + len(noise) :]


def _number(rng: random.Random, content: bytes) -> bytes:
    """Replace a possible count, length, offset or type by an extreme number."""
    width = rng.choice((1, 2, 4, 8))
    begin = _place(rng, content)
    if len(content) - begin < width:
        return content[:begin]
    old = int.from_bytes(content[begin : begin + width], "little")
    new = rng.choice((rng.choice(_EXTREMES), old + 1, old - 1, old * 2, old ^ 0x80)) % 256**width
    return content[:begin] + new.to_bytes(width, "little") + content[begin + width :]


def _cut(rng: random.Random, content: bytes) -> bytes:
    return content[: _place(rng, content)]


def _grow(rng: random.Random, content: bytes) -> bytes:
    return content + rng.randbytes(rng.choice((1, 31, 32, 64, 4096)))


def _splice(rng: random.Random, content: bytes) -> bytes:
    """Copy a piece of the file to another place, where it replaces bytes or is inserted."""
    begin, target, length = _place(rng, content), _place(rng, content), rng.choice((1, 4, 8, 24, 64, 200))
    piece = content[begin : begin + length]
    return content[:target] + piece + content[target + (len(piece) if rng.random() < 0.5 else 0) :]


def _drop(rng: random.Random, content: bytes) -> bytes:
    begin = _place(rng, content)
    return content[:begin] + content[begin + rng.choice((1, 4, 8, 24, 64)) :]


_BYTE_MUTATORS: Sequence[Mutator] = (_flip, _flip, _overwrite, _number, _number, _number, _cut, _grow, _splice, _drop)


# JSON

_VALUES: Sequence[Any] = (
    *(None, True, False, 0, 1, -1, 2, 16, 512, 513, 2**31, 2**32, 2**63, 2**64, 10**30, -(2**63), 0.5, 1e-300, 1e300),
    *("", "x", "\0", "\x1b[31m", "../x", "/etc/passwd", "x" * 100_000, "\u202e", "llama", "tokenizer.json", "none"),
    *([], {}, [[]], [None], {"": None}, {"type": "Sequence"}, [0] * 1000, ["a", "a"]),
)


def mutate_json(rng: random.Random, content: bytes) -> bytes:
    """Change values and keys, one to three times; sometimes change bytes of the text."""
    if rng.random() < 0.15:
        return mutate_bytes(rng, content)
    document = json.loads(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        document = _changed(rng, document)
    text = json.dumps(document, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.02:
        text = text.replace("null", "[" * 50_000, 1) if "null" in text else "[" * 200_000
    return text.encode("utf-8", errors="surrogatepass")


def _changed(rng: random.Random, value: Any) -> Any:
    """Return the value with one change, at this level or a deeper one."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        return _another(rng, value)
    if isinstance(value, list):
        place = rng.randrange(len(value))
        match rng.randrange(8):
            case 0:
                return [*value[:place], *value[place + 1 :]]
            case 1:
                return [*value, value[place]]
            case _:
                return [*value[:place], _changed(rng, value[place]), *value[place + 1 :]]
    key = rng.choice(list(value))
    match rng.randrange(10):
        case 0:
            return {name: inner for name, inner in value.items() if name != key}
        case 1:
            return value | {rng.choice(("x", "", key + "x", "type", "__metadata__")): rng.choice(_VALUES)}
        case 2:
            return value | {rng.choice(list(value)): value[key]}
        case _:
            return value | {key: _changed(rng, value[key])}


def _another(rng: random.Random, value: Any) -> Any:
    if isinstance(value, bool) or rng.random() < 0.5:
        return rng.choice(_VALUES)
    if isinstance(value, int | float):
        return rng.choice((value + 1, value - 1, -value, value * 2, value * 1000, float(value), str(value)))
    if isinstance(value, str):
        return rng.choice((value + "x", value[1:], value.upper(), value + "\n", value * 100, value[::-1]))
    return rng.choice(_VALUES)


_STEPS: Sequence[dict[str, Any]] = (
    {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 60},
    {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 60_000},
    {"type": "Replace", "pattern": {"String": ""}, "content": "xy"},
    {"type": "Replace", "pattern": {"Regex": "(a+)+b"}, "content": ""},
    {"type": "Replace", "pattern": {"Regex": "(?=a*a*a*a*b)"}, "content": "aa"},
    {"type": "Replace", "pattern": {"Regex": "["}, "content": "x"},
    {"type": "Prepend", "prepend": "x" * 5_000},
    {"type": "Split", "pattern": {"Regex": "(x*)*y|(a+)+$"}, "behavior": "Isolated", "invert": True},
    {"type": "FixedLength", "length": 0},
    {"type": "Metaspace", "replacement": "ab", "prepend_scheme": "always"},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {
        "type": "TemplateProcessing",
        "single": [],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {},
    },
    {"type": "Nmt"},
    {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    },
)
_MODELS: Sequence[dict[str, Any]] = (
    {"type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##", "max_input_chars_per_word": 2**40},
    {"type": "WordPiece", "unk_token": "nil", "continuing_subword_prefix": "é", "max_input_chars_per_word": 100},
    {"type": "WordLevel", "unk_token": "nil"},
    {"type": "BPE", "merges": [["<s>", "</s>"]], "continuing_subword_prefix": "ééé", "dropout": 0.5},
    {"type": "BPE", "merges": [], "byte_fallback": True, "fuse_unk": True, "unk_token": None},
)


def mutate_tokenizer(rng: random.Random, content: bytes) -> bytes:
    """Change the JSON, insert hostile steps, damage character maps, or change the kind of the model."""
    kind = rng.randrange(6)
    if kind > 2:
        return mutate_json(rng, content)
    document = json.loads(content)
    if kind == 0:
        place = rng.choice(("normalizer", "pre_tokenizer", "post_processor"))
        step: Any = rng.choice(_STEPS)
        if rng.random() < 0.5:
            inner = "normalizers" if place == "normalizer" else "pretokenizers"
            step = {"type": "Sequence", inner: [step] * rng.choice((1, 2, 8, 100))}
        document[place] = step
    elif kind == 1:
        words = [word for word, _ in document["model"]["vocab"]]
        vocabulary = {word: rng.choice((index, index, index, 2**32 - 1)) for index, word in enumerate(words)}
        document["model"] = {"vocab": vocabulary, **rng.choice(_MODELS)}
    else:
        size = rng.choice((0, 4, 1024, 1024))
        map_bytes = struct.pack("<I", rng.choice((size, size, size, *_EXTREMES[:26])) % 2**32) + rng.randbytes(size)
        map_bytes += rng.choice((b"", b"a\0bc\0", b"x" * 300 + b"\0", rng.randbytes(50)))
        document["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(map_bytes).decode()}
    return json.dumps(document).encode()


# Binary formats

_KEYS = (
    *("llama.expert_count", "llama.expert_used_count", "llama.attention.value_length", "llama.attention.key_length"),
    *("llama.rope.scaling.type", "llama.rope.scaling.factor", "llama.block_count", "llama.attention.sliding_window"),
    *("general.alignment", "tokenizer.ggml.tokens", "tokenizer.chat_template", "split.count", "llama.pooling_type"),
    *("llama.attention.head_count", "llama.rope.dimension_count", "llama.nextn_predict_layers", "general.name"),
    *("llama.embedding_length_out", "tokenizer.ggml.model", "llama.vocab_size", "llama.logit_scale"),
    *("gemma2.attention.sliding_window", "gemma2.attn_logit_softcapping", "gemma2.final_logit_softcapping"),
    *("gemma2.attention.sliding_window_pattern", "gemma2.rope.freq_base_swa", "gemma2.rope.scaling.factor"),
    *("adapter.lora.alpha", "adapter.type", "general.type", "adapter.alora.invocation_tokens"),
)


def mutate_gguf(rng: random.Random, content: bytes) -> bytes:
    """Change bytes, add a field that llama.cpp reads, rename fields and tensors, or change the number of a field."""
    kind = rng.randrange(5)
    if kind < 2:
        return mutate_bytes(rng, content)
    if kind == 2:
        return _with_field(rng, content)
    if kind == 3:
        return _renamed(rng, content)
    key = rng.choice([key for key in _KEYS if key.encode() in content]).encode()
    begin = content.index(key) + len(key)
    value = rng.choice((*_EXTREMES, 10, 20, 24, 1000)) % 2**32
    return content[: begin + 4] + struct.pack("<I", value) + content[begin + 8 :]


def _with_field(rng: random.Random, content: bytes) -> bytes:
    """Insert a field before the others, and correct the padding before the weights."""
    key = rng.choice(_KEYS).encode()
    number = rng.choice(_EXTREMES)
    kind, value = rng.choice(
        (
            (4, struct.pack("<I", number % 2**32)),
            (5, struct.pack("<I", number % 2**32)),
            (6, struct.pack("<f", float(number))),
            (7, bytes([number % 256])),
            (8, struct.pack("<Q", 4) + rng.choice((b"yarn", b"none", b"xxxx", b"\xff\xfe\0a"))),
            (9, struct.pack("<IQ", rng.choice((4, 5, 8, 9, 77)), rng.choice((2, number))) + b"\1\0\0\0\2\0\0\0"),
            (10, struct.pack("<Q", number)),
        )
    )
    field = struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value
    n_fields = struct.unpack_from("<Q", content, 16)[0]
    field += b"" if rng.random() < 0.1 else _filler(-len(field) % 32)
    count = 1 if len(field) % 32 else 2
    return content[:16] + struct.pack("<Q", n_fields + count) + field + content[24:]


def _filler(size: int) -> bytes:
    """Return a harmless field with a given size modulo 32."""
    size += 32 if size < 28 else 0
    return struct.pack("<Q", 3) + b"z.z" + struct.pack("<IQ", 8, size - 23) + b"z" * (size - 23)


def _renamed(rng: random.Random, content: bytes) -> bytes:
    """Replace a name by another of the same length, so that it is repeated or unknown."""
    names = [f"blk.{layer}.{part}.weight".encode() for layer in (0, 1) for part in ("attn_q", "attn_k", "ffn_up")]
    old = rng.choice([name for name in names if name in content] or [content[:4]])
    new = rng.choice([name for name in names if len(name) == len(old)] or [rng.randbytes(len(old))])
    return content.replace(old, rng.choice((new, old[:-1] + b"\0", b"\n" * len(old))), 1)


def mutate_ctranslate2(rng: random.Random, content: bytes) -> bytes:
    """Change bytes, or the numbers after the names of settings, shapes and types."""
    if rng.random() < 0.4:
        return mutate_bytes(rng, content)
    names = (b"num_heads", b"pre_norm", b"activation", b"embeddings_merge", b"scale_embeddings", b"weight", b"gamma")
    name = rng.choice([*names, b"bias", b"encodings", b"weight_scale"])
    places = [occurrence.start() for occurrence in re.finditer(re.escape(name) + b"\0", content)]
    begin = rng.choice(places or [0]) + len(name) + 1
    match rng.randrange(4):
        case 0:
            return content[:begin] + bytes([rng.choice((0, 1, 2, 3, 9, 255))]) + content[begin + 1 :]
        case 1:
            return content[: begin - 1] + rng.choice((b"x", b"\xff", b"")) + content[begin:]
        case _:
            offset = begin + rng.randrange(16)
            return content[:offset] + bytes([rng.choice((0, 1, 2, 3, 5, 7, 127, 128, 255))]) + content[offset + 1 :]


def mutate_safetensors(rng: random.Random, content: bytes) -> bytes:
    """Change bytes, or the JSON of the header, with its length updated."""
    if rng.random() < 0.4:
        return mutate_bytes(rng, content)
    length = struct.unpack_from("<Q", content)[0]
    header = mutate_json(rng, content[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


_OPERATORS = ("If", "Loop", "Scan", "Expand", "Tile", "Range", "Reshape", "Concat", "Gather", "Split", "RandomNormal")
_OPERATORS += ("NonZero", "Slice", "Pad", "MatMulInteger", "ConstantOfShape", "Transpose", "Softmax", "Nothing", "Mod")


def mutate_onnx(rng: random.Random, content: bytes) -> bytes:
    """Change bytes, or operators, edges, shapes, types and locations of tensors."""
    if rng.random() < 0.4:
        return mutate_bytes(rng, content)
    model = onnx.load_from_string(content)
    for _ in range(rng.choice((1, 1, 2))):
        _change_graph(rng, model)
    return bytes(model.SerializeToString())


def _change_graph(rng: random.Random, model: onnx.ModelProto) -> None:
    graph = model.graph
    node, tensor = rng.choice(graph.node), rng.choice(graph.initializer)
    number = rng.choice((*_EXTREMES[:27], -1, -2))
    names = [name for other in graph.node for name in (*other.input, *other.output)]
    match rng.randrange(13):
        case 0:
            node.op_type = rng.choice(_OPERATORS)
        case 1:
            node.domain = rng.choice(("com.microsoft", "ai.onnx.ml", "x", "ai.onnx"))
        case 2:
            node.input[rng.randrange(len(node.input))] = rng.choice((*names, "", "nothing"))
        case 3:
            node.output[0] = rng.choice((*names, ""))
        case 4:
            tensor.data_type = rng.choice((0, 1, 2, 3, 7, 8, 9, 11, 17, 99))
        case 5:
            tensor.dims[:] = rng.choice(([], [number], [number, 2], [2**31, 2**33], [32, 32, 1], [1] * 40))
        case 6:
            tensor.data_location = onnx.TensorProto.EXTERNAL
            entry = tensor.external_data.add()
            entry.key, entry.value = "location", rng.choice(("llm.onnx", "../x", "/etc/passwd", "tokenizer.json"))
        case 7:
            tensor.name = rng.choice(names)
        case 8:
            node.attribute.append(onnx.helper.make_attribute(rng.choice(("axis", "to", "perm", "exclusive")), number))
        case 9:
            graph.node.append(node)
        case 10:
            value = rng.choice([*graph.input, *graph.output]).type.tensor_type
            value.elem_type = rng.choice((0, 1, 7, 8, 9, 99))
        case 11:
            model.opset_import[0].version = rng.choice((0, 1, 7, 13, 23, 99, 2**40))
        case _:
            tensor.int64_data.append(number)
            if rng.random() < 0.5:
                tensor.ClearField("raw_data")
