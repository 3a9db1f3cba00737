"""Parquet files, read and written as streams; needs the extra [files]."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

from mtllm_edge.errors import DataError
from mtllm_edge.extras import require
from mtllm_edge.files.cells import as_text
from mtllm_edge.files.rows import NumberedRow, Row, check_unique_columns
from mtllm_edge.safe_text import one_line

_READ_ROWS = 1024
_GROUP_ROWS = 16_384
"""Rows of a row group, which are in memory together."""


def parquet_rows(file: BinaryIO, name: str, column: str | None = None) -> Iterator[NumberedRow]:
    """Yield the rows of a parquet file, with one column only if it is given; `name` is the file in messages.

    Raises:
        DataError: The file cannot be read.
    """
    require("files", "pyarrow")
    import pyarrow
    import pyarrow.parquet

    number = 0
    with _arrow_errors(name), pyarrow.parquet.ParquetFile(file) as opened:
        check_unique_columns(opened.schema_arrow.names, name)
        columns = None if column is None else [column]
        for batch in opened.iter_batches(batch_size=_READ_ROWS, columns=columns):
            for row in _with_python_types(batch).to_pylist():
                number += 1
                yield number, row


@contextmanager
def _arrow_errors(name: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, OverflowError, ValueError) as error:  # Python's dates end with year 9999
        raise DataError(f"{name} is not a readable parquet file ({one_line(error)})") from None


def parquet_length(file: BinaryIO) -> int:
    """Return the number of rows of a readable parquet file."""
    import pyarrow.parquet

    return int(pyarrow.parquet.read_metadata(file).num_rows)


def parquet_types(file: BinaryIO, name: str) -> dict[str, Any]:
    """Return the Arrow type of each column of a parquet file; for a dictionary, that of its values."""
    require("files", "pyarrow")
    import pyarrow
    import pyarrow.parquet

    with _arrow_errors(name):
        schema = pyarrow.parquet.read_schema(file)
    return {
        field.name: field.type.value_type if pyarrow.types.is_dictionary(field.type) else field.type for field in schema
    }


def _with_python_types(batch: Any) -> Any:
    """Convert times in nanoseconds, which Python cannot represent, to text, and durations to numbers."""
    import pyarrow

    for index, field in enumerate(batch.schema):
        if pyarrow.types.is_duration(field.type):
            batch = batch.set_column(index, field.name, batch.column(index).cast(pyarrow.int64()))
        elif pyarrow.types.is_temporal(field.type) and getattr(field.type, "unit", "") == "ns":
            batch = batch.set_column(index, field.name, batch.column(index).cast(pyarrow.string()))
    return batch


def arrow_type(types: Collection[type]) -> Any:
    """Return the Arrow type of a column with these Python types; text if no other type holds them all."""
    import pyarrow

    arrow_types = {
        bool: pyarrow.bool_(),
        int: pyarrow.int64(),
        float: pyarrow.float64(),
        datetime.datetime: pyarrow.timestamp("us"),
        datetime.date: pyarrow.date32(),
        dict: pyarrow.map_(pyarrow.string(), pyarrow.float64()),
        list: pyarrow.list_(pyarrow.float32()),
    }
    if set(types) == {int, float}:
        return pyarrow.float64()
    return arrow_types.get(next(iter(types)), pyarrow.string()) if len(types) == 1 else pyarrow.string()


def write_parquet(file: BinaryIO, types: Mapping[str, Any], rows: Iterable[Row]) -> None:
    """Write rows, with columns of these Arrow types; a missing cell is null, and a dictionary of numbers is a map."""
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema(list(types.items()))
    rows = iter(rows)
    with pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        while group := list(itertools.islice(rows, _GROUP_ROWS)):
            columns = [_column([row.get(name) for row in group], arrow) for name, arrow in types.items()]
            writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))


def _column(cells: list[Any], arrow: Any) -> Any:
    """Return cells as an Arrow array of a type."""
    import pyarrow

    if pyarrow.types.is_string(arrow):
        cells = [None if cell is None else as_text(cell) for cell in cells]
    elif pyarrow.types.is_map(arrow):
        cells = [list(cell.items()) if isinstance(cell, dict) else cell for cell in cells]
    elif pyarrow.types.is_temporal(arrow) and any(isinstance(cell, str) for cell in cells):  # see _with_python_types
        if pyarrow.types.is_time(arrow):  # which Arrow parses only as part of a timestamp
            cells = [None if cell is None else f"1970-01-01 {cell}" for cell in cells]
            return pyarrow.array(cells, pyarrow.string()).cast(pyarrow.timestamp("ns")).cast(arrow)
        return pyarrow.array(cells, pyarrow.string()).cast(arrow)
    return pyarrow.array(cells, arrow)
