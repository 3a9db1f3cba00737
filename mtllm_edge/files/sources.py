"""From the arguments of a command to sources of rows: texts, stdin, files, folders and globs."""

from __future__ import annotations

import glob
import hashlib
import io
import os
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from mtllm_edge.errors import UsageError
from mtllm_edge.files.compression import PACKED, lines_of
from mtllm_edge.files.parquet import parquet_length, parquet_rows
from mtllm_edge.files.rows import Row, csv_rows, jsonl_rows, line_rows
from mtllm_edge.files.spool import reopened, scratch_file, write_scratch
from mtllm_edge.files.tables import check_text
from mtllm_edge.files.xlsx import xlsx_rows

STDIN = "-"
_PLAIN = (".txt", ".csv", ".tsv", ".jsonl")
SUFFIXES = (*_PLAIN, ".parquet", ".xlsx", *(suffix + packed for suffix in _PLAIN for packed in PACKED))

_ARGUMENTS = "arguments"
_LONGEST_PATH = 1024
"""Characters; a longer argument is a text whatever its last word is."""


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What tells that an input is still the same."""

    name: str
    """Of a file, its whole path."""
    size: int
    """Bytes."""
    state: str
    """Of a file the time of its last change, of all else the SHA-256."""


class Source:
    """Rows that can be read again and again, one reader at a time."""

    def __init__(self, name: str, form: str, identity: Identity, opener: Callable[[], BinaryIO]) -> None:
        """Describe a source; `find_sources` makes them.

        Args:
            name: As the user knows it, for messages.
            form: The suffix that its content would have in a file that is not packed.
            identity: What tells that it is the same.
            opener: Opens its bytes.
        """
        self.name, self.form, self.identity, self.open = name, form, identity, opener
        self._tell: Callable[[], float] = lambda: 0.0

    @property
    def share(self) -> float:
        """How much of it the present reader has read, from 0 to 1."""
        return self._tell()

    @property
    def has_columns(self) -> bool:
        """Whether its text may be in one of several columns."""
        return self.form != ".txt" and self.name != _ARGUMENTS

    def place(self, number: int) -> str:
        """What messages call a row."""
        if self.name == _ARGUMENTS:
            return f"argument {number}"
        return f"{self.name} {'line' if self.form in ('.txt', '.jsonl') else 'row'} {number}"

    def rows(self) -> Iterator[Row]:
        """The rows.

        Raises:
            DataError: The source as a whole cannot be read, or not to its end.
            NoRowsError: It holds no rows.
        """
        with self.open() as file:
            if self.form == ".parquet":
                yield from self._counted(file)
            else:
                # the reader of its lines closes it after the last one, when rows may still be on their way
                self._tell = lambda: 1.0 if file.closed else file.tell() / max(self.identity.size, 1)
                yield from self._streamed(file)
            self._tell = lambda: 1.0

    def _counted(self, file: BinaryIO) -> Iterator[Row]:
        number = total = 0
        self._tell = lambda: number / max(total, 1)
        for number, record in parquet_rows(file, self.name):
            if not total:
                with self.open() as again:
                    total = parquet_length(again)
            yield number, record

    def _streamed(self, file: BinaryIO) -> Iterator[Row]:
        if self.form == ".xlsx":
            return xlsx_rows(file, self.name)
        lines = lines_of(file, self.name)
        if self.form == ".txt":
            return line_rows(lines, self.name)
        if self.form == ".jsonl":
            return jsonl_rows(lines, self.name)
        return csv_rows(lines, self.name, "\t" if self.form == ".tsv" else None)


def find_sources(arguments: Sequence[str], stdin: BinaryIO, not_these: Collection[Path] = ()) -> list[Source]:
    """What the arguments of a command name, in their order.

    Args:
        arguments: Texts, files with one of `SUFFIXES`, folders of such files (and their subfolders), globs of them, and
            at most one ``-`` for stdin, which has a text in each line.
        stdin: Read to its end, if it is named.
        not_these: Files that are left out of folders and globs: what the job itself writes.

    Raises:
        UsageError: A file that is missing or of another kind, a folder or a glob without files, ``-`` given twice.
        DataError: An argument is no text.
        OSError: A file or a folder must not be read.
    """
    if arguments.count(STDIN) > 1:
        raise UsageError("'-' (stdin) is given more than once; give it once")
    sources: list[Source] = []
    texts: list[str] = []
    for number, argument in enumerate(arguments, 1):
        found = None if argument == STDIN else _files(argument, {path.resolve() for path in not_these})
        if argument != STDIN and found is None:
            check_text(argument, f"argument {number}", advice="give it some words")
            texts.append(argument)
            continue
        sources += [*_given(texts), *([_spooled(stdin)] if found is None else map(_file, found))]
        texts = []
    return [*sources, *_given(texts)]


def _files(argument: str, not_these: Collection[Path]) -> list[str] | None:
    """The files that an argument names; None where it is a text."""
    if not argument.strip() or "\n" in argument or "\0" in argument or len(argument) > _LONGEST_PATH:
        return None
    path = Path(argument)
    named = argument.lower().endswith(SUFFIXES)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except PermissionError:
        if named:
            raise
        return None
    except OSError:  # too long for a name: a text, then
        return None
    if is_file and not named and path.suffix:
        raise UsageError(f"{argument} is a file, but files of texts end in {_listed()}; rename or convert it")
    if is_folder:
        found = sorted(str(file) for file in _files_under(path) if _is_input(file, path, not_these))
        if not found:
            raise UsageError(f"{argument} is a folder without files that end in {_listed()}; name another")
        return found
    if is_file and named:
        return [argument]
    if glob.has_magic(argument) and (named or not any(map(str.isspace, argument))):
        matches = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
        found = [match for match in matches if _is_input(Path(match), Path(match).parent, not_these)]
        if found or not named:
            return found or None
        raise UsageError(f"{argument} matches no file; check the pattern")
    if named:
        raise UsageError(f"{argument} does not exist; to use a text that ends like a file name, pipe it in")
    return None


def _files_under(folder: Path) -> Iterator[Path]:
    """Files of a folder and its subfolders without the hidden ones; a folder that cannot be read is no empty one."""

    def fail(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names)


def _is_input(file: Path, folder: Path, not_these: Collection[Path]) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.name.lower().endswith(SUFFIXES) and not hidden and file.is_file() and file.resolve() not in not_these


def _listed() -> str:
    return f"{', '.join((*_PLAIN, '.parquet', '.xlsx'))}, or the former with {' or '.join(PACKED)}"


def _file(name: str) -> Source:
    path = Path(name)
    about = path.stat()
    form = next(suffix for suffix in SUFFIXES if name.lower().endswith(suffix))
    for packed in PACKED:
        form = form.removesuffix(packed)
    return Source(
        name,
        form,
        Identity(str(path.resolve()), about.st_size, str(about.st_mtime_ns)),
        lambda: path.open("rb"),
    )


def _given(texts: list[str]) -> list[Source]:
    """Texts from the command line as a source, if there are any."""
    if not texts:
        return []
    data = b"\n".join(msgspec.json.encode({"text": text}) for text in texts)
    identity = Identity(_ARGUMENTS, len(data), hashlib.sha256(data).hexdigest())
    return [Source(_ARGUMENTS, ".jsonl", identity, lambda: io.BytesIO(data))]


def _spooled(stdin: BinaryIO) -> Source:
    """Stdin as a source: copied to a nameless temporary file, since it is read twice."""
    spool = scratch_file()
    digest = hashlib.sha256()
    # Piece by piece: one read to the end would not notice a Ctrl-C that comes while data flow.
    while piece := stdin.read(65_536):
        digest.update(piece)
        write_scratch(spool, piece)
    source = Source("stdin", ".txt", Identity("stdin", spool.tell(), digest.hexdigest()), lambda: reopened(spool))
    weakref.finalize(source, spool.close)
    return source
