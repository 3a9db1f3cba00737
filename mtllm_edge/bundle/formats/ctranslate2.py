"""Header of CTranslate2's `model.bin`, binary version 6 (`ModelSpec._serialize` of its Python package)."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

from mtllm_edge.bundle.formats.binary import BinaryReader, DamagedFileError, check_unique, open_binary

VERSION = 6

FLOAT32, INT8, INT16 = 0, 1, 2
_TYPE_CODES = ("f", "b", "h", "i", "e", "h")  # float32, int8, int16, int32, float16, bfloat16
_TYPE_WIDTHS = tuple(map(struct.calcsize, _TYPE_CODES))
_NAME_LIMIT = 1_024
_COUNT_LIMIT = 2**16
_MAX_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class Variable:
    """Type, shape and location of a variable."""

    shape: tuple[int, ...]
    offset: int
    """Offset of its first byte in the file."""
    size: int
    """Size in bytes."""
    kind: int
    """The format's number of its type: `FLOAT32`, `INT8` ..."""
    value: float | None
    """The number of a variable without dimensions."""


@dataclass(frozen=True, slots=True)
class Model:
    """Header of a `model.bin`."""

    name: str
    """Name of the specification, which selects CTranslate2's model class."""
    revision: int
    variables: dict[str, Variable]
    """By name, aliases included."""

    @property
    def vocabulary_size(self) -> int:
        """Rows of an encoder's word embeddings; 0 without them."""
        words = self.variables.get("encoder/embeddings_0/weight")
        return words.shape[0] if words and words.shape else 0


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every variable. Errors as for `read_model`."""
    return {name: variable.shape for name, variable in read_model(path).variables.items()}


def read_model(path: Path) -> Model:
    """Read the headers; raises DamagedFileError for another version, a duplicate, or an invalid count, type or size."""
    with open_binary(path) as reader:
        version = reader.read_int("I")
        if version != VERSION:
            raise DamagedFileError(f"CTranslate2 binary version {version}, expected {VERSION}")
        specification, revision = _text(reader), reader.read_int("I")
        variables: dict[str, Variable] = {}
        for _ in range(reader.read_count("I", "variables", limit=_COUNT_LIMIT)):
            name = _text(reader)
            check_unique(name, variables, "variable")
            variables[name] = _variable(reader, name)
        for _ in range(reader.read_count("I", "variables", limit=_COUNT_LIMIT)):
            alias, name = _text(reader), _text(reader)
            if name not in variables:
                raise DamagedFileError(f"{alias} is an alias of {name}, which is missing")
            check_unique(alias, variables, "variable")
            variables[alias] = variables[name]
        if reader.position != reader.size:
            raise DamagedFileError(f"ends at byte {reader.position}, the file has {reader.size}")
        return Model(specification, revision, variables)


def _variable(reader: BinaryReader, name: str) -> Variable:
    n_dimensions = reader.read_int("B")
    if n_dimensions > _MAX_DIMENSIONS:
        raise DamagedFileError(f"{name} has {n_dimensions} dimensions, expected {_MAX_DIMENSIONS} at most")
    shape = tuple(reader.read_int("I") for _ in range(n_dimensions))
    kind, n_bytes = reader.read_int("B"), reader.read_int("I")
    if kind >= len(_TYPE_WIDTHS):
        raise DamagedFileError(f"{name} has type {kind}, which this release does not support")
    if n_bytes != math.prod(shape) * _TYPE_WIDTHS[kind]:
        raise DamagedFileError(f"{name} has {n_bytes} bytes, which does not fit its shape {list(shape)}")
    offset = reader.position
    value = None if shape else float(reader.read_number(_TYPE_CODES[kind]))
    return Variable(shape, reader.skip(n_bytes) if shape else offset, n_bytes, kind, value)


def _text(reader: BinaryReader) -> str:
    """Read a string that ends at its only NUL, because CTranslate2 ignores the length and reads up to a NUL."""
    begin = reader.position
    text = reader.read_text(reader.read_int("H"), limit=_NAME_LIMIT)
    if text.find("\0") != len(text) - 1 or not text:
        raise DamagedFileError(f"a name that does not end at its NUL, at offset {begin}")
    return text[:-1]
