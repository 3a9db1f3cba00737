"""Header of CTranslate2's `model.bin`, binary version 6 (`ModelSpec._serialize` of its Python package)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from mtllm_edge.formats.cursor import Cursor, DamagedFileError, open_cursor

VERSION = 6

_TYPE_WIDTHS = (4, 1, 2, 4, 2, 2)  # float32, int8, int16, int32, float16, bfloat16
_NAME_LIMIT = 65_535
_COUNT_LIMIT = 2**20
_MAX_DIMENSIONS = 8


@dataclass(frozen=True, slots=True)
class Variable:
    """Where a variable lies."""

    shape: tuple[int, ...]
    offset: int
    """Of its first byte in the file."""
    size: int
    """In bytes."""


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every variable, as `read_variables` finds them."""
    return {name: variable.shape for name, variable in read_variables(path).items()}


def read_variables(path: Path) -> dict[str, Variable]:
    """Name -> place of every variable, aliases included, after walking the whole file.

    Raises:
        DamagedFileError: Another version, or a count, type or size that does not fit.
    """
    with open_cursor(path) as cursor:
        version = cursor.integer("I")
        if version != VERSION:
            raise DamagedFileError(f"CTranslate2 binary version {version}, expected {VERSION}")
        _text(cursor)  # name of the specification
        cursor.integer("I")  # its revision
        variables: dict[str, Variable] = {}
        for _ in range(_count(cursor)):
            name = _text(cursor)
            variables[name] = _variable(cursor, name)
        for _ in range(_count(cursor)):
            alias, name = _text(cursor), _text(cursor)
            if name not in variables:
                raise DamagedFileError(f"{alias} stands for {name}, which is not there")
            variables[alias] = variables[name]
        if cursor.position != cursor.size:
            raise DamagedFileError(f"ends at byte {cursor.position}, the file has {cursor.size}")
        return variables


def _variable(cursor: Cursor, name: str) -> Variable:
    n_dimensions = cursor.integer("B")
    if n_dimensions > _MAX_DIMENSIONS:
        raise DamagedFileError(f"{name} has {n_dimensions} dimensions, expected {_MAX_DIMENSIONS} at most")
    shape = tuple(cursor.integer("I") for _ in range(n_dimensions))
    kind, n_bytes = cursor.integer("B"), cursor.integer("I")
    if kind >= len(_TYPE_WIDTHS):
        raise DamagedFileError(f"{name} has type {kind}, which this release does not know")
    if n_bytes != math.prod(shape) * _TYPE_WIDTHS[kind]:
        raise DamagedFileError(f"{name} has {n_bytes} bytes, which does not fit its shape {list(shape)}")
    return Variable(shape, cursor.skip(n_bytes), n_bytes)


def _count(cursor: Cursor) -> int:
    count = cursor.integer("I")
    if count > _COUNT_LIMIT:
        raise DamagedFileError(f"{count} variables, expected {_COUNT_LIMIT} at most")
    return count


def _text(cursor: Cursor) -> str:
    return cursor.text(cursor.integer("H"), limit=_NAME_LIMIT).removesuffix("\0")
