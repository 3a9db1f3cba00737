"""Header of a GGUF file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), versions 2 and 3."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from mtllm_edge.bundle.formats.binary import BinaryReader, DamagedFileError, open_binary

MAGIC = b"GGUF"
VERSIONS = (2, 3)

_NUMBER_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_TEXT_LIMIT = 65_535
"""Most bytes of a key or a string: a body without vocabulary has no long ones."""
_FIELD_LIMIT, _TENSOR_LIMIT, _ARRAY_LIMIT = 4_096, 2**16, 2**20
_ALIGNMENT_LIMIT = 4_096
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

FLOAT32, BOOL = 6, 7
"""Of fields."""
F32, F16 = 0, 1
"""Of tensors."""

Value = int | float | bool | str | None


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says about itself."""

    fields: dict[str, Value]
    """Metadata; None stands for an array."""
    kinds: dict[str, int]
    """gguf_metadata_value_type of every field."""
    arrays: dict[str, tuple[int, int]]
    """gguf_metadata_value_type of an array's items, and how many there are."""
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
    with open_binary(path) as cursor:
        magic = cursor.take(len(MAGIC))
        if magic != MAGIC:
            raise DamagedFileError(f"no GGUF file: begins with {magic!r}, expected {MAGIC!r}")
        version = cursor.integer("I")
        if version not in VERSIONS:
            raise DamagedFileError(f"GGUF version {version}, expected {' or '.join(map(str, VERSIONS))}")
        n_tensors, n_fields = _count(cursor, "tensors", _TENSOR_LIMIT), _count(cursor, "fields", _FIELD_LIMIT)
        fields: dict[str, Value] = {}
        kinds: dict[str, int] = {}
        arrays: dict[str, tuple[int, int]] = {}
        for _ in range(n_fields):
            key = cursor.text(cursor.integer("Q"), limit=_TEXT_LIMIT)
            if key in fields:
                raise DamagedFileError(f"field {key} stands twice")
            kinds[key] = cursor.integer("I")
            if kinds[key] == _ARRAY:
                fields[key], arrays[key] = None, _array(cursor)
            else:
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
        arrays,
        shapes={name: tensor.shape for name, tensor in tensors.items()},
        types={name: tensor.kind for name, tensor in tensors.items()},
    )


def _count(cursor: BinaryReader, what: str, limit: int) -> int:
    count = cursor.integer("Q")
    if count > limit:
        raise DamagedFileError(f"{count} {what}, expected {limit} at most")
    return count


def _value(cursor: BinaryReader, kind: int) -> Value:
    if kind == _STRING:
        return cursor.text(cursor.integer("Q"), limit=_TEXT_LIMIT)
    if kind == BOOL:
        return _flag(cursor)
    if kind in _NUMBER_CODES:
        return cursor.number(_NUMBER_CODES[kind])
    raise DamagedFileError(f"a field of unknown type {kind} at offset {cursor.position}")


def _array(cursor: BinaryReader) -> tuple[int, int]:
    """Type and number of the items."""
    item, length = cursor.integer("I"), _count(cursor, "items of an array", _ARRAY_LIMIT)
    if item == _STRING:
        for _ in range(length):
            cursor.skip(cursor.integer("Q"))
    elif item == BOOL:
        for _ in range(length):
            _flag(cursor)
    elif item in _NUMBER_CODES:
        cursor.skip(length * _width(_NUMBER_CODES[item]))
    else:
        raise DamagedFileError(f"an array of unknown type {item} at offset {cursor.position}")
    return item, length


def _flag(cursor: BinaryReader) -> bool:
    """A C++ `bool` that is neither 0 nor 1 is undefined behaviour in whoever reads it."""
    value = cursor.integer("B")
    if value > 1:
        raise DamagedFileError(f"a truth value of {value} before offset {cursor.position}")
    return value == 1


def _width(code: str) -> int:
    return {"B": 1, "b": 1, "?": 1, "H": 2, "h": 2, "I": 4, "i": 4, "f": 4}.get(code, 8)


def _tensor(cursor: BinaryReader, name: str) -> _Tensor:
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


def _check_data(cursor: BinaryReader, fields: dict[str, Value], tensors: dict[str, _Tensor]) -> None:
    """The tensors must follow each other without gap or overlap, in the order of the table, and end with the file."""
    alignment = fields.get("general.alignment", 32)
    fits = type(alignment) is int and 8 <= alignment <= _ALIGNMENT_LIMIT and alignment & (alignment - 1) == 0
    if not fits or not isinstance(alignment, int):
        raise DamagedFileError(f"alignment {alignment!r}, expected a power of two from 8 to {_ALIGNMENT_LIMIT}")
    base = _padded(cursor.position, alignment)
    expected = 0
    for name, tensor in tensors.items():
        if tensor.begin != expected:
            raise DamagedFileError(f"tensor {name} begins at {tensor.begin} of the data, expected {expected}")
        if base + tensor.end > cursor.size:
            raise DamagedFileError(
                f"cut short: tensor {name} ends at byte {base + tensor.end}, the file has {cursor.size}"
            )
        expected = _padded(tensor.end, alignment)
    if cursor.size > base + expected:
        raise DamagedFileError(f"{cursor.size - base - expected} bytes behind the last tensor")


def _padded(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
