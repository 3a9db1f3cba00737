"""Parquet, read row by row and written group by group; needs the extra [files]."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, BinaryIO

from mtllm_edge.errors import DataError, NoRowsError
from mtllm_edge.extras import require
from mtllm_edge.files.cells import as_text
from mtllm_edge.files.rows import Record, Row, refuse_repeated
from mtllm_edge.safe_text import one_line

_READ_ROWS = 1024
_GROUP_ROWS = 16_384
"""Rows that are written together, and in memory together."""


def parquet_rows(file: BinaryIO, name: str) -> Iterator[Row]:
    """Rows of a parquet file.

    Args:
        file: The file.
        name: Of the file, for messages.

    Raises:
        DataError: The file cannot be read.
        NoRowsError: It has no rows.
    """
    require("files", "pyarrow")
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            refuse_repeated(opened.schema_arrow.names, name)
            for batch in opened.iter_batches(batch_size=_READ_ROWS):
                for record in _plain(batch).to_pylist():
                    number += 1
                    yield number, record
    except (pyarrow.ArrowException, OSError, OverflowError, ValueError) as error:  # Python's dates end with year 9999
        raise DataError(f"{name} is not a readable parquet file ({one_line(error)})") from None
    if not number:
        raise NoRowsError(f"{name} holds no rows; add a row per text")


def parquet_length(file: BinaryIO) -> int:
    """Number of rows of a readable parquet file."""
    import pyarrow.parquet

    return int(pyarrow.parquet.read_metadata(file).num_rows)


def parquet_types(file: BinaryIO) -> dict[str, Any]:
    """Arrow type of each column of a readable parquet file; of dictionary-encoded ones, that of their values."""
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.parquet.read_schema(file)
    return {
        field.name: field.type.value_type if pyarrow.types.is_dictionary(field.type) else field.type for field in schema
    }


def _plain(batch: Any) -> Any:
    """A batch whose nanoseconds, which Python's times cannot hold, are text, and whose durations are numbers."""
    import pyarrow

    for index, field in enumerate(batch.schema):
        kind = field.type
        if pyarrow.types.is_duration(kind):
            batch = batch.set_column(index, field.name, batch.column(index).cast(pyarrow.int64()))
        elif pyarrow.types.is_temporal(kind) and getattr(kind, "unit", "") == "ns":
            batch = batch.set_column(index, field.name, batch.column(index).cast(pyarrow.string()))
    return batch


def arrow_type(kinds: Collection[type]) -> Any:
    """The Arrow type for a column that holds values of these Python types; text where no other holds all of them."""
    import pyarrow

    by_kind = {
        bool: pyarrow.bool_(),
        int: pyarrow.int64(),
        float: pyarrow.float64(),
        datetime.datetime: pyarrow.timestamp("us"),
        datetime.date: pyarrow.date32(),
        dict: pyarrow.map_(pyarrow.string(), pyarrow.float64()),
        list: pyarrow.list_(pyarrow.float32()),
    }
    if set(kinds) == {int, float}:
        return pyarrow.float64()
    return by_kind.get(next(iter(kinds)), pyarrow.string()) if len(kinds) == 1 else pyarrow.string()


def write_parquet(file: BinaryIO, types: Mapping[str, Any], records: Iterable[Record]) -> None:
    """Write records.

    Args:
        file: The file to fill.
        types: Column -> its Arrow type; an answer's numbers by label are a map.
        records: The rows; a column that one lacks is null.
    """
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema(list(types.items()))
    rows = iter(records)
    with pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        while group := list(itertools.islice(rows, _GROUP_ROWS)):
            columns = [_column([record.get(name) for record in group], kind) for name, kind in types.items()]
            writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))


def _column(values: list[Any], kind: Any) -> Any:
    import pyarrow

    if pyarrow.types.is_string(kind):
        values = [None if value is None else as_text(value) for value in values]
    elif pyarrow.types.is_map(kind):
        values = [list(value.items()) if isinstance(value, dict) else value for value in values]
    elif pyarrow.types.is_temporal(kind) and any(isinstance(value, str) for value in values):  # as `_plain` makes them
        if pyarrow.types.is_time(kind):  # which Arrow reads in a timestamp alone
            values = [None if value is None else f"1970-01-01 {value}" for value in values]
            return pyarrow.array(values, pyarrow.string()).cast(pyarrow.timestamp("ns")).cast(kind)
        return pyarrow.array(values, pyarrow.string()).cast(kind)
    return pyarrow.array(values, kind)
