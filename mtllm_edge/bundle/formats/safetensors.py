"""Header of a safetensors file (https://github.com/huggingface/safetensors#format), float32 tensors only."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from mtllm_edge.bundle.formats.binary import DamagedFileError, open_binary

_HEADER_LIMIT = 2**20
"""The format allows 100 MB; a bridge or a head has two tensors."""


class _Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor.

    Raises:
        DamagedFileError: No such header, another type than float32, or data that does not fill the file exactly.
    """
    with open_binary(path) as cursor:
        header = cursor.text(cursor.integer("Q"), limit=_HEADER_LIMIT)
        size = cursor.size - cursor.position
    try:
        entries = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        msgspec.json.decode(entries.pop("__metadata__", b"{}"), type=dict[str, str])
        tensors = {name: msgspec.json.decode(entry, type=_Tensor) for name, entry in entries.items()}
    except (msgspec.MsgspecError, RecursionError) as error:
        raise DamagedFileError(f"no safetensors header ({error})") from None
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
