"""Header of a safetensors file (https://github.com/huggingface/safetensors#format), float32 tensors only."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from mtllm_edge.bundle.formats.binary import DamagedFileError, decode_json, open_binary

_HEADER_LIMIT = 2**20
"""Maximum size in bytes; a bridge or a head has two tensors."""


class _Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor.

    Raises:
        DamagedFileError: The header is invalid, a tensor is not float32, or the tensors do not fill the file.
    """
    with open_binary(path) as reader:
        header = reader.read_text(reader.read_int("Q"), limit=_HEADER_LIMIT)
        size = reader.size - reader.position
    entries = decode_json(header, dict[str, msgspec.Raw], "safetensors header")
    decode_json(entries.pop("__metadata__", msgspec.Raw(b"{}")), dict[str, str], "safetensors header")
    tensors = {name: decode_json(entry, _Tensor, "safetensors header") for name, entry in entries.items()}
    expected = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        begin, end = tensor.data_offsets
        if tensor.dtype != "F32":
            raise DamagedFileError(f"tensor {name} has type {tensor.dtype}, expected F32")
        if begin != expected or min(tensor.shape, default=1) < 0 or end - begin != 4 * math.prod(tensor.shape):
            raise DamagedFileError(f"tensor {name} has shape {list(tensor.shape)} at bytes {begin} to {end}")
        expected = end
    if expected != size:
        raise DamagedFileError(f"cut short: {expected} bytes of tensors expected, found {size}")
    return {name: tensor.shape for name, tensor in tensors.items()}
