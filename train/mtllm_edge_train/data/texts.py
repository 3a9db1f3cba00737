"""The texts of one file or one data set, read line by line and row by row: either may be larger than memory."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mtllm_edge.errors import DataError, UsageError
from mtllm_edge.files.compression import Unzstd
from mtllm_edge.files.rows import csv_records, jsonl_records
from mtllm_edge.files.tables import check_text, pick_column
from mtllm_edge.safe_text import one_line
from mtllm_edge_train.data.hub import is_hub_dataset, open_dataset

SUFFIXES = (".txt", ".csv", ".jsonl", ".parquet", ".txt.zst", ".csv.zst", ".jsonl.zst")
_PARQUET_ROWS = 1024


def read_source(name: str, *, column: str | None = None) -> Iterator[str]:
    """The texts of a file or, after `hub.HUB`, of a data set; see `read_file`."""
    if is_hub_dataset(name):
        return _named_column(open_dataset(name).rows, name, column)
    return read_file(Path(name), column=column)


def check_file(path: Path) -> None:
    """Find out whether a file can be read, without reading it.

    Raises:
        UsageError: No such file, or another suffix.
    """
    if not path.is_file():
        raise UsageError(f"{path} is no file; check the path")
    if not path.name.endswith(SUFFIXES):
        raise UsageError(f"{path} has the suffix {path.suffix!r}; expected {', '.join(SUFFIXES)}")


def read_file(path: Path, *, column: str | None = None) -> Iterator[str]:
    """The texts of one file as they are read; blank ones and empty cells are left out.

    Args:
        path: A file with one of `SUFFIXES`.
        column: Where the text is, but in .txt; None takes ``text``, else the only column.

    Raises:
        UsageError: No such file, another suffix, or no such column.
        DataError: Not UTF-8, malformed, cut short, without any text, or with a cell that is none.
    """
    check_file(path)
    name = str(path)
    if name.endswith(".parquet"):
        return _named_column(_parquet_rows(path, column), name, column)
    kind = name.removesuffix(".zst").rpartition(".")[2]
    lines = _lines(path)
    if kind == "txt":
        return _checked(((f"{name} line {number}", line.rstrip("\r\n")) for number, line in enumerate(lines, 1)), name)
    records = csv_records(lines, name) if kind == "csv" else jsonl_records(lines, name)
    return _named_column(records, name, column)


def _named_column(records: Iterable[tuple[str, dict[str, Any] | None]], name: str, column: str | None) -> Iterator[str]:
    """The text of each record, which is in the column that the first one tells."""

    def cells() -> Iterator[tuple[str, Any]]:
        chosen: str | None = None
        for where, record in records:
            if record is None:
                continue
            if chosen is None:
                chosen = pick_column(record, name, column)
            if chosen not in record:
                raise DataError(f"{where} lacks {chosen!r}; it has {', '.join(map(repr, record)) or 'nothing'}")
            yield f"{where}, column {chosen!r},", record[chosen]

    return _checked(cells(), name)


def _checked(cells: Iterable[tuple[str, Any]], name: str) -> Iterator[str]:
    found = False
    for where, text in cells:
        if text is None or (isinstance(text, str) and not text.strip()):
            continue
        check_text(text, where, advice="remove it")
        found = True
        yield text
    if not found:
        raise DataError(f"{name} holds no text; leave it out or fill it")


def _lines(path: Path) -> Iterator[str]:
    """Lines with their ends, told by line ends alone; bytes that are no UTF-8 are refused with the line's number."""
    with path.open("rb") as file:
        plain: Any = io.BufferedReader(Unzstd(file, str(path))) if path.suffix == ".zst" else file
        lines = io.TextIOWrapper(plain, encoding="utf-8-sig", errors="surrogateescape", newline="")
        for number, line in enumerate(lines, 1):
            try:
                line.encode()
            except UnicodeEncodeError as error:
                byte = ord(line[error.start]) - 0xDC00  # how surrogateescape keeps it
                raise DataError(
                    f"{path} line {number} is not valid UTF-8 (byte 0x{byte:02x}); save it as UTF-8"
                ) from None
            yield line


def _parquet_rows(path: Path, column: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            chosen = pick_column(dict.fromkeys(file.schema_arrow.names), str(path), column)
            batches = file.iter_batches(batch_size=_PARQUET_ROWS, columns=[chosen])
            texts = itertools.chain.from_iterable(batch.column(0).to_pylist() for batch in batches)
            for number, text in enumerate(texts, 1):
                yield f"{path} row {number}", {chosen: text}
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable parquet file ({one_line(error)})") from None
