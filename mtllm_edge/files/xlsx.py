"""Excel workbooks, read and written row by row; needs the extra [files]."""

from __future__ import annotations

import datetime
import itertools
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

from mtllm_edge.errors import DataError, NoRowsError
from mtllm_edge.extras import require
from mtllm_edge.files.cells import as_json, as_text
from mtllm_edge.files.rows import NumberedRow, Row, RowError, check_unique_columns

MAX_ROWS = 1_048_575
"""Rows of a sheet after its header."""
_MAX_CELL_CHARACTERS = 32_767
_MAX_INTEGER = 10**15
"""Excel's numbers have 15 digits."""
_NOT_IN_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def xlsx_rows(file: BinaryIO, name: str) -> Iterator[NumberedRow]:
    """Yield the rows of the first sheet of a workbook after its header; `name` is the file in messages.

    Raises:
        DataError: It cannot be read, or its header cannot be used.
        NoRowsError: It has no sheet.
    """
    book = _open(file, name)
    header: list[str] = []
    try:
        for number, cells in enumerate(book.worksheets[0].iter_rows(values_only=True), 1):
            width = max((column for column, cell in enumerate(cells, 1) if cell is not None), default=0)
            if not width:
                yield number, None
            elif not header:
                header = ["" if cell is None else as_text(cell) for cell in cells[:width]]
                check_unique_columns(header, name)
            elif width > len(header):
                message = f" has {width} cells, the header has {len(header)} columns; give every column a name"
                yield number, RowError(message, number, as_json(cells[:width]))
            else:
                yield number, dict(itertools.zip_longest(header, cells[: len(header)]))
    except (zipfile.BadZipFile, EOFError, SyntaxError, ValueError) as error:  # XML's errors are SyntaxErrors
        raise DataError(f"{name} is not a readable xlsx file ({error})") from None
    finally:
        book.close()


def _open(file: BinaryIO, name: str) -> Any:
    require("files", "openpyxl")
    import openpyxl

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles, which are not read
            book = openpyxl.load_workbook(file, read_only=True, data_only=True)
    except (zipfile.BadZipFile, EOFError, KeyError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{name} is not a readable xlsx file ({error})") from None
    if not book.worksheets:
        raise NoRowsError(f"{name} holds no sheet with rows; add one")
    return book


def write_xlsx(file: BinaryIO, columns: Sequence[str], rows: Iterable[Row]) -> int:
    """Write a sheet with a header and at most `MAX_ROWS` rows; a missing cell is left empty.

    Returns the number of cells that were truncated to the 32,767 characters of Excel.
    """
    import openpyxl
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.writer.excel import ExcelWriter

    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("labels")
    truncated = 0

    def cell(value: object) -> Any:
        nonlocal truncated
        fits = isinstance(value, int) and abs(value) < _MAX_INTEGER
        is_local = isinstance(value, datetime.date) and getattr(value, "tzinfo", None) is None
        if value is None or isinstance(value, bool | float) or fits or is_local:
            return value
        text = _NOT_IN_XML.sub("\ufffd", as_text(value))
        truncated += len(text) > _MAX_CELL_CHARACTERS
        if not text.startswith("="):
            return text
        plain = WriteOnlyCell(sheet, text)
        plain.data_type = "s"  # a text, not a formula
        return plain

    sheet.append([cell(column) for column in columns])
    for row in rows:
        sheet.append([cell(row.get(column)) for column in columns])
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:  # openpyxl's own reports a full disk twice
        ExcelWriter(book, archive).save()
    return truncated
