"""Write a Llama body with random weights in GGUF, block by block, so that 8 billion weights need little memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from numpy.typing import NDArray

from mtllm_edge_export.llms.config import LlmShape
from mtllm_edge_export.llms.gguf import STUB_ROWS, add_metadata

MatrixType = Literal["q8_0", "q4_0", "f16"]

_BLOCK = 32
"""Number of weights per scale."""
_CHUNK = 2**20
"""Number of blocks drawn at once."""
_KINDS: dict[MatrixType, tuple[gguf.GGMLQuantizationType, gguf.LlamaFileType, int, float]] = {
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0, 32, 73.9),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0, 16, 4.6),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16, 0, 1.0),
}
"""Name -> GGUF's types, bytes of a block without its scale, and standard deviation of weights made of random bytes;
the last two do not apply to f16."""


def write_random_llm(
    path: Path, shape: LlmShape, quantization: MatrixType, *, vocabulary: int | None = None, seed: int = 0
) -> None:
    """Write a causal body without output head.

    Args:
        path: The file to write.
        shape: Dimensions; widths are multiples of 32.
        quantization: Type of the matrices.
        vocabulary: Number of token embeddings, in q8_0; None writes the stub of an MT-LLM.
        seed: Seed of the weights; their standard deviation is 1 / sqrt(inputs) and norms are 1, so states stay finite.
    """
    rng = np.random.default_rng(seed)
    table = (vocabulary or STUB_ROWS, shape.n_embd)
    tensors: list[tuple[str, tuple[int, ...], MatrixType]] = [("token_embd.weight", table, "q8_0")]
    tensors += [(name, dimensions, quantization) for name, _, dimensions in shape.tensors()]
    writer = gguf.GGUFWriter(path, "llama")
    try:
        add_metadata(writer, shape, "causal", table[0], _KINDS[quantization][1])
        if shape.rope_factors is not None:
            factors = shape.rope_factors
            writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
        for name, dimensions, kind in tensors:
            _add_tensor_info(writer, name, dimensions, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if shape.rope_factors is not None:
            writer.write_tensor_data(shape.rope_factors)
        for _, dimensions, kind in tensors:
            writer.write_tensor_data(_weight(rng, dimensions, kind))
    finally:
        writer.close()


def _add_tensor_info(writer: gguf.GGUFWriter, name: str, dimensions: tuple[int, ...], kind: MatrixType) -> None:
    if len(dimensions) == 1:
        writer.add_tensor_info(name, dimensions, np.dtype(np.float32), dimensions[0] * 4)
        return
    if kind == "f16":
        writer.add_tensor_info(name, dimensions, np.dtype(np.float16), math.prod(dimensions) * 2)
        return
    rows, row_bytes = dimensions[0], dimensions[1] // _BLOCK * (2 + _KINDS[kind][2])
    writer.add_tensor_info(name, (rows, row_bytes), np.dtype(np.uint8), rows * row_bytes, raw_dtype=_KINDS[kind][0])


def _weight(rng: np.random.Generator, dimensions: tuple[int, ...], kind: MatrixType) -> NDArray[Any]:
    """Return a norm of ones, or a random matrix, in f16 or as blocks of a float16 scale and weight bits."""
    if len(dimensions) == 1:
        return np.ones(dimensions, np.float32)
    if kind == "f16":
        weight: NDArray[np.float32] = rng.standard_normal(dimensions, np.float32) / np.float32(dimensions[1] ** 0.5)
        return weight.astype(np.float16)
    size, deviation = _KINDS[kind][2:]
    blocks = np.empty(math.prod(dimensions) // _BLOCK, np.dtype([("scale", "<f2"), ("bits", "u1", size)]))
    blocks["scale"] = 1 / (deviation * math.sqrt(dimensions[1]))
    for part in np.array_split(blocks, -(-len(blocks) // _CHUNK)):
        part["bits"] = np.frombuffer(rng.bytes(len(part) * size), np.uint8).reshape(len(part), size)
    return blocks.view(np.uint8)
