"""Sources of rows: files, stdin and texts on the command line; folders and globs become files."""

from __future__ import annotations

import glob
import hashlib
import io
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from mtllm_edge.errors import DataError, NoRowsError, UsageError
from mtllm_edge.files.atomic import report_errors_as
from mtllm_edge.files.columns import check_text
from mtllm_edge.files.compression import COMPRESSED, read_lines
from mtllm_edge.files.digest import sha256_file
from mtllm_edge.files.parquet import parquet_length, parquet_rows
from mtllm_edge.files.rows import NumberedRow, Row, RowError, csv_rows, jsonl_rows, line_rows
from mtllm_edge.files.xlsx import xlsx_rows

STDIN = "-"
_PLAIN = (".txt", ".csv", ".tsv", ".jsonl")
SUFFIXES = (*_PLAIN, ".parquet", ".xlsx", *(suffix + end for suffix in _PLAIN for end in COMPRESSED))
_SUFFIX_LIST = f"{', '.join((*_PLAIN, '.parquet', '.xlsx'))}, or the former with {' or '.join(COMPRESSED)}"

_ARGUMENTS = "arguments"
_LONGEST_PATH = 1024
"""Characters; a longer argument is a text, whatever its end is."""


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Evidence that an input is unchanged."""

    name: str
    """Absolute path of a file."""
    size: int
    """Bytes."""
    state: str
    """Modification time of a file, SHA-256 of other sources."""


class Source:
    """Rows that can be read repeatedly, by one reader at a time."""

    def __init__(self, name: str, suffix: str, identity: Identity, opener: Callable[[], BinaryIO]) -> None:
        """Describe a source; `open_source` and `find_sources` make them. A compression is no part of `suffix`."""
        self.name, self.suffix, self.identity, self.open = name, suffix, identity, opener
        self._progress: Callable[[], float] = lambda: 0.0

    @property
    def progress(self) -> float:
        """Share of the source that the present reader has read, from 0 to 1."""
        return self._progress()

    @property
    def has_columns(self) -> bool:
        """Whether it is a table with a choice of columns."""
        return self.suffix != ".txt" and self.name != _ARGUMENTS

    def place(self, number: int) -> str:
        """Return the name of a row in messages."""
        if self.name == _ARGUMENTS:
            return f"argument {number}"
        return f"{self.name} {'line' if self.suffix in ('.txt', '.jsonl') else 'row'} {number}"

    def rows(self, column: str | None = None) -> Iterator[NumberedRow]:
        """Yield the rows; of a parquet file with one column only, if it is given.

        Raises:
            DataError: The source cannot be read, or not to its end.
            NoRowsError: It has no rows.
        """
        empty = True
        with self.open() as file:
            for row in self._rows(file, column):
                empty = empty and row[1] is None
                yield row
        self._progress = lambda: 1.0
        if empty:
            noun, unit = ("text", "one text per line") if self.suffix == ".txt" else ("rows", "a row per text")
            raise NoRowsError(f"{self.name} holds no {noun}; write {unit}")

    def strict_rows(self, column: str | None = None) -> Iterator[tuple[str, Row]]:
        """Yield the place and the cells of each row that is not blank.

        Raises DataError if a row cannot be read, or there are none.
        """
        for number, row in self.rows(column):
            if isinstance(row, RowError):
                raise DataError(f"{self.place(number)}{row.message}")
            if row is not None:
                yield self.place(number), row

    def _rows(self, file: BinaryIO, column: str | None) -> Iterator[NumberedRow]:
        if self.suffix == ".parquet":
            return self._parquet_rows(file, column)
        # the line reader closes the file after the last line, while rows are still in progress
        self._progress = lambda: 1.0 if file.closed else file.tell() / max(self.identity.size, 1)
        if self.suffix == ".xlsx":
            return xlsx_rows(file, self.name)
        lines = read_lines(file, self.name)
        if self.suffix == ".txt":
            return line_rows(lines)
        if self.suffix == ".jsonl":
            return jsonl_rows(lines)
        return csv_rows(lines, self.name, "\t" if self.suffix == ".tsv" else None)

    def _parquet_rows(self, file: BinaryIO, column: str | None) -> Iterator[NumberedRow]:
        number = total = 0
        self._progress = lambda: number / max(total, 1)
        for number, row in parquet_rows(file, self.name, column):
            if not total:
                with self.open() as again:
                    total = parquet_length(again)
            yield number, row


def open_source(name: str, *, suffix: str | None = None) -> Source:
    """Return the source of one file; its format is that of `suffix`, or else of its name.

    Raises:
        UsageError: It is missing, a folder, or of another type than `SUFFIXES`.
    """
    path = Path(name)
    if path.is_dir():
        raise UsageError(f"{name} is a folder; name a file of texts")
    if not path.exists():
        raise UsageError(f"{name} does not exist; check the path")
    suffix = suffix or next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), None)
    if suffix is None:
        raise UsageError(f"{name} is a file, but files of texts end in {_SUFFIX_LIST}; rename or convert it")
    for compressed in COMPRESSED:
        suffix = suffix.removesuffix(compressed)
    stat = path.stat()
    identity = Identity(str(path.resolve()), stat.st_size, str(stat.st_mtime_ns))
    return Source(name, suffix, identity, lambda: path.open("rb"))


def find_sources(arguments: Sequence[str], stdin: BinaryIO, excluded: Collection[Path] = ()) -> list[Source]:
    """Return the sources that command-line arguments name, in their order.

    Args:
        arguments: Texts, files with one of `SUFFIXES`, folders of such files (and their subfolders), globs of them, and
            at most one ``-`` for stdin, which has a text in each line.
        stdin: Read to its end, if it is named.
        excluded: Files to leave out of folders and globs, such as the output of the job.

    Raises:
        UsageError: A file is missing or of another type, a folder or glob has no files, or ``-`` is given twice.
        DataError: An argument is no text.
        OSError: A file or folder cannot be read.
    """
    if arguments.count(STDIN) > 1:
        raise UsageError("'-' (stdin) is given more than once; give it once")
    excluded = {path.resolve() for path in excluded}
    sources: list[Source] = []
    texts: list[str] = []
    for number, argument in enumerate(arguments, 1):
        files = None if argument == STDIN else _files(argument, excluded)
        if argument != STDIN and files is None:
            check_text(argument, f"argument {number}")
            texts.append(argument)
            continue
        sources += [*_text_source(texts), *([_stdin_source(stdin)] if files is None else map(open_source, files))]
        texts = []
    return [*sources, *_text_source(texts)]


def _files(argument: str, excluded: Collection[Path]) -> list[str] | None:
    """Return the files that an argument names; None if it is a text."""
    if not argument.strip() or "\n" in argument or "\0" in argument or len(argument) > _LONGEST_PATH:
        return None
    path = Path(argument)
    has_suffix = argument.lower().endswith(SUFFIXES)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except PermissionError:
        if has_suffix:
            raise
        return None
    except OSError:  # a name that is too long
        return None
    if is_folder:
        files = sorted(str(file) for file in _files_under(path) if _is_input(file, path, excluded))
        if not files:
            raise UsageError(f"{argument} is a folder without files that end in {_SUFFIX_LIST}; name another")
        return files
    if is_file and path.suffix:
        open_source(argument)  # raises for another type
        return [argument]
    if glob.has_magic(argument) and (has_suffix or not any(map(str.isspace, argument))):
        return _glob(argument, excluded, required=has_suffix)
    if has_suffix:
        raise UsageError(f"{argument} does not exist; to use a text that ends like a file name, pipe it in")
    return None


def _glob(pattern: str, excluded: Collection[Path], *, required: bool) -> list[str] | None:
    """Return the files that match a pattern; None if there are none and the pattern may be a text."""
    matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
    files = [match for match in matches if _is_input(Path(match), Path(match).parent, excluded)]
    if not files and required:
        raise UsageError(f"{pattern} matches no file; check the pattern")
    return files or None


def _files_under(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and its subfolders, hidden ones left out; an unreadable folder is an error."""

    def fail(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names)


def _is_input(file: Path, folder: Path, excluded: Collection[Path]) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.name.lower().endswith(SUFFIXES) and not hidden and file.is_file() and file.resolve() not in excluded


def _text_source(texts: list[str]) -> list[Source]:
    """Return the source of texts on the command line, if there are any."""
    if not texts:
        return []
    data = b"\n".join(msgspec.json.encode({"text": text}) for text in texts)
    identity = Identity(_ARGUMENTS, len(data), hashlib.sha256(data).hexdigest())
    return [Source(_ARGUMENTS, ".jsonl", identity, lambda: io.BytesIO(data))]


def _stdin_source(stdin: BinaryIO) -> Source:
    """Return the source of stdin, copied to an anonymous temporary file because it is read twice."""
    spool = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the source)

    def reopen() -> BinaryIO:
        again = os.fdopen(os.dup(spool.fileno()), "rb")
        again.seek(0)
        return again

    with report_errors_as(Path(tempfile.gettempdir())):
        shutil.copyfileobj(stdin, spool)  # in pieces: one read to the end would not notice Ctrl-C
        spool.flush()
    with reopen() as file:
        identity = Identity("stdin", spool.tell(), sha256_file(file))
    source = Source("stdin", ".txt", identity, reopen)
    weakref.finalize(source, spool.close)
    return source
