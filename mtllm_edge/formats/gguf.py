"""Header of a GGUF file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), versions 2 and 3."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from mtllm_edge.formats.cursor import Cursor, DamagedFileError, open_cursor

MAGIC = b"GGUF"
VERSIONS = (2, 3)

_NUMBER_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_KEY_LIMIT, _STRING_LIMIT = 65_535, 2**26
_COUNT_LIMIT = 2**20
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
_MAX_NAME = 63  # GGML_MAX_NAME less the closing NUL

_TENSOR_TYPES = {
    0: (1, 4),  # F32
    1: (1, 2),  # F16
    2: (32, 18),  # Q4_0
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
    10: (256, 84),  # Q2_K
    11: (256, 110),  # Q3_K
    12: (256, 144),  # Q4_K
    13: (256, 176),  # Q5_K
    14: (256, 210),  # Q6_K
    20: (32, 18),  # IQ4_NL
    23: (256, 136),  # IQ4_XS
    30: (1, 2),  # BF16
}
"""ggml_type -> (weights in a block, bytes of a block)."""

FLOAT32 = 6
"""Of fields."""
F32, F16 = 0, 1
"""Of tensors."""

Value = int | float | bool | str | None


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says about itself."""

    fields: dict[str, Value]
    """Metadata; None stands for an array, which nothing here needs."""
    kinds: dict[str, int]
    """gguf_metadata_value_type of every field."""
    shapes: dict[str, tuple[int, ...]]
    """Dimensions of every tensor as GGUF counts them: the contiguous one first."""
    types: dict[str, int]
    """ggml_type of every tensor."""


@dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]
    kind: int
    begin: int
    """Bytes from the end of the header."""
    end: int


def read_header(path: Path) -> GgufHeader:
    """Walk the header and check that every tensor lies inside the file.

    Raises:
        DamagedFileError: Wrong magic, version, count, type, size or offset.
    """
    with open_cursor(path) as cursor:
        magic = cursor.take(len(MAGIC))
        if magic != MAGIC:
            raise DamagedFileError(f"no GGUF file: begins with {magic!r}, expected {MAGIC!r}")
        version = cursor.integer("I")
        if version not in VERSIONS:
            raise DamagedFileError(f"GGUF version {version}, expected {' or '.join(map(str, VERSIONS))}")
        n_tensors, n_fields = _count(cursor, "tensors"), _count(cursor, "fields")
        fields: dict[str, Value] = {}
        kinds: dict[str, int] = {}
        for _ in range(n_fields):
            key = cursor.text(cursor.integer("Q"), limit=_KEY_LIMIT)
            if key in fields:
                raise DamagedFileError(f"field {key} stands twice")
            kinds[key] = cursor.integer("I")
            fields[key] = _value(cursor, kinds[key])
        tensors: dict[str, _Tensor] = {}
        for _ in range(n_tensors):
            name = cursor.text(cursor.integer("Q"), limit=_MAX_NAME)
            if name in tensors:
                raise DamagedFileError(f"tensor {name} stands twice")
            tensors[name] = _tensor(cursor, name)
        _check_data(cursor, fields, tensors)
    return GgufHeader(
        fields,
        kinds,
        shapes={name: tensor.shape for name, tensor in tensors.items()},
        types={name: tensor.kind for name, tensor in tensors.items()},
    )


def _count(cursor: Cursor, what: str) -> int:
    count = cursor.integer("Q")
    if count > _COUNT_LIMIT:
        raise DamagedFileError(f"{count} {what}, expected {_COUNT_LIMIT} at most")
    return count


def _value(cursor: Cursor, kind: int) -> Value:
    if kind == _STRING:
        return cursor.text(cursor.integer("Q"), limit=_STRING_LIMIT)
    if kind in _NUMBER_CODES:
        return cursor.number(_NUMBER_CODES[kind])
    if kind != _ARRAY:
        raise DamagedFileError(f"a field of unknown type {kind} at offset {cursor.position}")
    item, length = cursor.integer("I"), cursor.integer("Q")
    if item == _STRING:
        if length > cursor.size:
            raise DamagedFileError(f"an array of {length} strings at offset {cursor.position}")
        for _ in range(length):
            cursor.skip(cursor.integer("Q"))
    elif item in _NUMBER_CODES:
        cursor.skip(length * _width(_NUMBER_CODES[item]))
    else:
        raise DamagedFileError(f"an array of unknown type {item} at offset {cursor.position}")
    return None


def _width(code: str) -> int:
    return {"B": 1, "b": 1, "?": 1, "H": 2, "h": 2, "I": 4, "i": 4, "f": 4}.get(code, 8)


def _tensor(cursor: Cursor, name: str) -> _Tensor:
    n_dimensions = cursor.integer("I")
    if not 1 <= n_dimensions <= _MAX_DIMENSIONS:
        raise DamagedFileError(f"tensor {name} has {n_dimensions} dimensions, expected 1 to {_MAX_DIMENSIONS}")
    shape = tuple(cursor.integer("Q") for _ in range(n_dimensions))
    kind, offset = cursor.integer("I"), cursor.integer("Q")
    if kind not in _TENSOR_TYPES:
        raise DamagedFileError(f"tensor {name} has type {kind}, which this release does not know")
    block, block_bytes = _TENSOR_TYPES[kind]
    if min(shape) < 1 or shape[0] % block:
        raise DamagedFileError(f"tensor {name} has shape {list(shape)}, expected rows of a multiple of {block}")
    return _Tensor(shape, kind, begin=offset, end=offset + math.prod(shape) // block * block_bytes)


def _check_data(cursor: Cursor, fields: dict[str, Value], tensors: dict[str, _Tensor]) -> None:
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
        raise DamagedFileError(f"alignment {alignment!r}, expected a power of two from 8 up")
    base = -(-cursor.position // alignment) * alignment
    for name, tensor in tensors.items():
        if tensor.begin % alignment:
            raise DamagedFileError(f"tensor {name} begins at {tensor.begin}, not a multiple of {alignment}")
        if base + tensor.end > cursor.size:
            raise DamagedFileError(
                f"cut short: tensor {name} ends at byte {base + tensor.end}, the file has {cursor.size}"
            )
