"""Header of CTranslate2's `model.bin`, binary version 6 (`ModelSpec._serialize` of its Python package)."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

from mtllm_edge.bundle.formats.binary import BinaryReader, DamagedFileError, open_binary

VERSION = 6

FLOAT32, INT8, INT16 = 0, 1, 2
_TYPE_CODES = ("f", "b", "h", "i", "e", "h")  # float32, int8, int16, int32, float16, bfloat16
_TYPE_WIDTHS = tuple(map(struct.calcsize, _TYPE_CODES))
_NAME_LIMIT = 1_024
_COUNT_LIMIT = 2**16
_MAX_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class Variable:
    """Where a variable lies."""

    shape: tuple[int, ...]
    offset: int
    """Of its first byte in the file."""
    size: int
    """In bytes."""
    kind: int
    """`FLOAT32`, `INT8` ... as the format counts its types."""
    value: float | None
    """Of a single number without dimensions."""


@dataclass(frozen=True, slots=True)
class Model:
    """What a file says about itself."""

    name: str
    """Of the specification, by which CTranslate2 chooses the kind of model."""
    revision: int
    variables: dict[str, Variable]
    """Aliases included."""

    @property
    def vocabulary_size(self) -> int:
        """Rows of an encoder's word embeddings; 0 where there are none."""
        words = self.variables.get("encoder/embeddings_0/weight")
        return words.shape[0] if words and words.shape else 0


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every variable, as `read_variables` finds them."""
    return {name: variable.shape for name, variable in read_variables(path).items()}


def read_variables(path: Path) -> dict[str, Variable]:
    """Name -> place of every variable, as `read_model` finds them."""
    return read_model(path).variables


def read_model(path: Path) -> Model:
    """Walk the whole file, aliases included.

    Raises:
        DamagedFileError: Another version, a name that stands twice, or a count, type or size that does not fit.
    """
    with open_binary(path) as cursor:
        version = cursor.integer("I")
        if version != VERSION:
            raise DamagedFileError(f"CTranslate2 binary version {version}, expected {VERSION}")
        specification, revision = _text(cursor), cursor.integer("I")
        variables: dict[str, Variable] = {}
        for _ in range(_count(cursor)):
            name = _text(cursor)
            _refuse_twice(name, variables)
            variables[name] = _variable(cursor, name)
        for _ in range(_count(cursor)):
            alias, name = _text(cursor), _text(cursor)
            if name not in variables:
                raise DamagedFileError(f"{alias} stands for {name}, which is not there")
            _refuse_twice(alias, variables)
            variables[alias] = variables[name]
        if cursor.position != cursor.size:
            raise DamagedFileError(f"ends at byte {cursor.position}, the file has {cursor.size}")
        return Model(specification, revision, variables)


def _refuse_twice(name: str, variables: dict[str, Variable]) -> None:
    if name in variables:
        raise DamagedFileError(f"{name} stands twice")


def _variable(cursor: BinaryReader, name: str) -> Variable:
    n_dimensions = cursor.integer("B")
    if n_dimensions > _MAX_DIMENSIONS:
        raise DamagedFileError(f"{name} has {n_dimensions} dimensions, expected {_MAX_DIMENSIONS} at most")
    shape = tuple(cursor.integer("I") for _ in range(n_dimensions))
    kind, n_bytes = cursor.integer("B"), cursor.integer("I")
    if kind >= len(_TYPE_WIDTHS):
        raise DamagedFileError(f"{name} has type {kind}, which this release does not know")
    if n_bytes != math.prod(shape) * _TYPE_WIDTHS[kind]:
        raise DamagedFileError(f"{name} has {n_bytes} bytes, which does not fit its shape {list(shape)}")
    offset = cursor.position
    value = None if shape else float(cursor.number(_TYPE_CODES[kind]))
    return Variable(shape, cursor.skip(n_bytes) if shape else offset, n_bytes, kind, value)


def _count(cursor: BinaryReader) -> int:
    count = cursor.integer("I")
    if count > _COUNT_LIMIT:
        raise DamagedFileError(f"{count} variables, expected {_COUNT_LIMIT} at most")
    return count


def _text(cursor: BinaryReader) -> str:
    """A string with its NUL, up to which CTranslate2 reads whatever the length says."""
    begin = cursor.position
    text = cursor.text(cursor.integer("H"), limit=_NAME_LIMIT)
    if text.find("\0") != len(text) - 1 or not text:
        raise DamagedFileError(f"a name that does not end at its NUL, at offset {begin}")
    return text[:-1]
