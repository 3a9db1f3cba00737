"""Header of a GGUF file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), versions 2 and 3."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

from mtllm_edge.bundle.formats.binary import BinaryReader, DamagedFileError, check_unique, open_binary

MAGIC = b"GGUF"
VERSIONS = (2, 3)

_NUMBER_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_TEXT_LIMIT = 65_535
"""Maximum size of a key or string in bytes; a body without vocabulary has no long ones."""
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
    """Header of a GGUF file."""

    fields: dict[str, Value]
    """Metadata; None for arrays."""
    kinds: dict[str, int]
    """gguf_metadata_value_type of every field."""
    arrays: dict[str, tuple[int, int]]
    """Field -> gguf_metadata_value_type and number of an array's items."""
    shapes: dict[str, tuple[int, ...]]
    """Shape of every tensor in GGUF's order, the contiguous dimension first."""
    types: dict[str, int]
    """ggml_type of every tensor."""


def read_header(path: Path) -> GgufHeader:
    """Read the header; raises DamagedFileError for a wrong magic, version, count, type, size or offset."""
    with open_binary(path) as reader:
        magic = reader.read_bytes(len(MAGIC))
        if magic != MAGIC:
            raise DamagedFileError(f"no GGUF file: begins with {magic!r}, expected {MAGIC!r}")
        version = reader.read_int("I")
        if version not in VERSIONS:
            raise DamagedFileError(f"GGUF version {version}, expected {' or '.join(map(str, VERSIONS))}")
        n_tensors = reader.read_count("Q", "tensors", limit=_TENSOR_LIMIT)
        n_fields = reader.read_count("Q", "fields", limit=_FIELD_LIMIT)
        header = GgufHeader({}, {}, {}, {}, {})
        for _ in range(n_fields):
            key = reader.read_text(reader.read_int("Q"), limit=_TEXT_LIMIT)
            check_unique(key, header.fields, "field")
            kind = header.kinds[key] = reader.read_int("I")
            if kind == _ARRAY:
                header.fields[key], header.arrays[key] = None, _array(reader)
            else:
                header.fields[key] = _value(reader, kind)
        ranges: dict[str, tuple[int, int]] = {}
        for _ in range(n_tensors):
            name = reader.read_text(reader.read_int("Q"), limit=_MAX_NAME)
            check_unique(name, ranges, "tensor")
            header.shapes[name], header.types[name], ranges[name] = _tensor(reader, name)
        _check_data(reader, header.fields.get("general.alignment", 32), ranges)
    return header


def _value(reader: BinaryReader, kind: int) -> Value:
    if kind == _STRING:
        return reader.read_text(reader.read_int("Q"), limit=_TEXT_LIMIT)
    if kind == BOOL:
        return _flag(reader)
    if kind in _NUMBER_CODES:
        return reader.read_number(_NUMBER_CODES[kind])
    raise DamagedFileError(f"a field of unknown type {kind} at offset {reader.position}")


def _array(reader: BinaryReader) -> tuple[int, int]:
    """Type and number of the items."""
    item, length = reader.read_int("I"), reader.read_count("Q", "items of an array", limit=_ARRAY_LIMIT)
    if item == _STRING:
        for _ in range(length):
            reader.skip(reader.read_int("Q"))
    elif item == BOOL:
        for _ in range(length):
            _flag(reader)
    elif item in _NUMBER_CODES:
        reader.skip(length * struct.calcsize("<" + _NUMBER_CODES[item]))
    else:
        raise DamagedFileError(f"an array of unknown type {item} at offset {reader.position}")
    return item, length


def _flag(reader: BinaryReader) -> bool:
    """Read a truth value, 0 or 1; in C++, any other is undefined behavior."""
    value = reader.read_int("B")
    if value > 1:
        raise DamagedFileError(f"a truth value of {value} before offset {reader.position}")
    return value == 1


def _tensor(reader: BinaryReader, name: str) -> tuple[tuple[int, ...], int, tuple[int, int]]:
    """Shape and type of a tensor, and where it begins and ends, in bytes from the end of the header."""
    n_dimensions = reader.read_int("I")
    if not 1 <= n_dimensions <= _MAX_DIMENSIONS:
        raise DamagedFileError(f"tensor {name} has {n_dimensions} dimensions, expected 1 to {_MAX_DIMENSIONS}")
    shape = tuple(reader.read_int("Q") for _ in range(n_dimensions))
    kind, offset = reader.read_int("I"), reader.read_int("Q")
    if kind not in _TENSOR_TYPES:
        raise DamagedFileError(f"tensor {name} has type {kind}, which this release does not support")
    block, block_bytes = _TENSOR_TYPES[kind]
    if min(shape) < 1 or shape[0] % block:
        raise DamagedFileError(f"tensor {name} has shape {list(shape)}, expected rows of a multiple of {block}")
    return shape, kind, (offset, offset + math.prod(shape) // block * block_bytes)


def _check_data(reader: BinaryReader, alignment: Value, ranges: dict[str, tuple[int, int]]) -> None:
    """Check that the tensors follow each other without gap or overlap, in the table's order, up to the file's end."""
    if type(alignment) is not int or not 8 <= alignment <= _ALIGNMENT_LIMIT or alignment & (alignment - 1):
        raise DamagedFileError(f"alignment {alignment!r}, expected a power of two from 8 to {_ALIGNMENT_LIMIT}")
    base = _padded(reader.position, alignment)
    expected = 0
    for name, (begin, end) in ranges.items():
        if begin != expected:
            raise DamagedFileError(f"tensor {name} begins at {begin} of the data, expected {expected}")
        if base + end > reader.size:
            raise DamagedFileError(f"cut short: tensor {name} ends at byte {base + end}, the file has {reader.size}")
        expected = _padded(end, alignment)
    if reader.size > base + expected:
        raise DamagedFileError(f"{reader.size - base - expected} bytes behind the last tensor")


def _padded(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
