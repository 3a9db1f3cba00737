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
from mtllm_edge.files.rows import Record, Row, RowError, refuse_repeated

MOST_ROWS = 1_048_575
"""Of a sheet, beside its header."""
_MOST_CHARACTERS = 32_767
"""Of a cell."""
_EXACT = 10**15
"""Excel's numbers have 15 digits."""
_NOT_IN_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def xlsx_rows(file: BinaryIO, name: str) -> Iterator[Row]:
    """Rows of a workbook's first sheet after its header.

    Args:
        file: The file.
        name: Of the file, for messages.

    Raises:
        DataError: It cannot be read, or its header cannot be used.
        NoRowsError: There is nothing else.
    """
    book = _open(file, name)
    header: list[str] = []
    found = False
    try:
        for number, cells in enumerate(book.worksheets[0].iter_rows(values_only=True), 1):
            width = max((place for place, cell in enumerate(cells, 1) if cell is not None), default=0)
            if not width:
                yield number, None
            elif not header:
                header = _header(cells[:width], name)
            elif width > len(header):
                found = True
                said = f" has {width} cells, the header has {len(header)} columns; give every column a name"
                yield number, RowError(said, number, as_json(cells[:width]))
            else:
                found = True
                yield number, dict(itertools.zip_longest(header, cells[: len(header)]))
    except (zipfile.BadZipFile, EOFError, SyntaxError, ValueError) as error:  # XML's errors are SyntaxErrors
        raise DataError(f"{name} is not a readable xlsx file ({error})") from None
    finally:
        book.close()
    if not found:
        raise NoRowsError(f"{name} holds {'a header but no rows' if header else 'no text'}; add a row per text")


def _open(file: BinaryIO, name: str) -> Any:
    require("files", "openpyxl")
    import openpyxl

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles, which nobody reads here
            book = openpyxl.load_workbook(file, read_only=True, data_only=True)
    except (zipfile.BadZipFile, EOFError, KeyError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{name} is not a readable xlsx file ({error})") from None
    if not book.worksheets:
        raise NoRowsError(f"{name} holds no sheet with rows; add one")
    return book


def _header(cells: Sequence[Any], name: str) -> list[str]:
    header = ["" if cell is None else as_text(cell) for cell in cells]
    refuse_repeated(header, name)
    return header


def write_xlsx(file: BinaryIO, columns: Sequence[str], records: Iterable[Record]) -> int:
    """Write a sheet with a header and one row per record.

    Args:
        file: The file to fill.
        columns: The header.
        records: At most `MOST_ROWS`; a column that one lacks is left empty.

    Returns:
        Number of cells that lost their end: a cell holds 32,767 characters.
    """
    import openpyxl
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.writer.excel import ExcelWriter

    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("labels")
    cut = 0

    def cell(value: object) -> Any:
        nonlocal cut
        if value is None or isinstance(value, bool | float):
            return value
        if isinstance(value, int) and abs(value) < _EXACT:
            return value
        if isinstance(value, datetime.date) and getattr(value, "tzinfo", None) is None:
            return value
        text = _NOT_IN_XML.sub("\ufffd", as_text(value))
        cut += len(text) > _MOST_CHARACTERS
        if not text.startswith("="):
            return text
        plain = WriteOnlyCell(sheet, text)
        plain.data_type = "s"  # somebody's text, not a formula
        return plain

    sheet.append([cell(column) for column in columns])
    for record in records:
        sheet.append([cell(record.get(column)) for column in columns])
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:  # else its last words are of the full disk, too
        ExcelWriter(book, archive).save()
    return cut
