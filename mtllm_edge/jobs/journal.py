"""The journal of a job: progress, results and rejected rows in one SQLite file, so that a killed job resumes.

For ``out.csv`` there is a folder ``.out.csv.job``, with a lock and these files::

    journal.sqlite  the job's specification, its progress, and the results and rejected rows so far
    result          the complete output, before it is renamed
    rejected.csv    the complete file of rejected rows, before it is renamed

A chunk of rows is one transaction. When the output is complete, the journal says so, and all that remains is to rename
files, which can be repeated after a kill at any moment.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import msgspec

from mtllm_edge.errors import UsageError
from mtllm_edge.files.atomic import DISK_FULL, check_output_file, rename_file, replace_file, report_errors_as
from mtllm_edge.files.lock import LOCK_NAME, folder_lock
from mtllm_edge.jobs.spec import Job

JOURNAL, RESULT, REJECTED = "journal.sqlite", "result", "rejected.csv"
_SCHEMA = """
BEGIN;
CREATE TABLE IF NOT EXISTS job
    (id INTEGER PRIMARY KEY, spec BLOB, read INTEGER, rejected INTEGER, crc INTEGER, complete INTEGER);
CREATE TABLE IF NOT EXISTS results (id INTEGER PRIMARY KEY, lines BLOB, crc INTEGER);
CREATE TABLE IF NOT EXISTS rejected (id INTEGER PRIMARY KEY, lines BLOB);
INSERT OR IGNORE INTO job VALUES (1, NULL, 0, 0, 0, 0);
COMMIT;
"""
_BLOCK_ROWS = 256
"""Results that are stored, and checked by their CRC-32, together."""
_HEADER = b"file,line,reason,row\n"
_Value = TypeVar("_Value")


class Progress(NamedTuple):
    """Progress of a job."""

    read: int = 0
    """Rows of the inputs, blank ones left out."""
    rejected: int = 0
    """Those of them that are rejected."""
    crc: int = 0
    """CRC-32 of the texts of these rows, to detect changed inputs."""


class Journal:
    """Results of a job, in the order of its rows."""

    def __init__(self, folder: Path | None = None) -> None:
        """Open the journal in a folder; None makes a temporary one for a job without an output file."""
        self._folder = folder
        self._connection = sqlite3.connect("" if folder is None else folder / JOURNAL)
        try:
            with self._errors():
                self._connection.executescript(_SCHEMA)
        except BaseException:
            self._connection.close()
            raise

    @property
    def progress(self) -> Progress:
        """Rows whose results are stored."""
        with self._errors():
            return Progress(*self._connection.execute("SELECT read, rejected, crc FROM job").fetchone())

    @property
    def job(self) -> Job | None:
        """The job that began the journal; None if it cannot be read."""
        with self._errors():
            (spec,) = self._connection.execute("SELECT spec FROM job").fetchone()
        try:
            return msgspec.json.decode(spec or b"", type=Job)
        except msgspec.DecodeError:
            return None

    @property
    def complete(self) -> bool:
        """Whether the output is complete and only has to be renamed."""
        with self._errors():
            return bool(self._connection.execute("SELECT complete FROM job").fetchone()[0])

    def begin(self, job: Job, path: Path) -> None:
        """Start or resume a job; UsageError if there are results of another job. `path` is its output, for messages."""
        if self.progress.read:
            other = self.job
            difference = "another release of mtllm-edge began it" if other is None else job.difference(other)
            if difference is not None:
                raise UsageError(
                    f"{path} was begun by another job ({difference}); run that one again, or discard its results with "
                    "--restart"
                )
        with self._errors(), self._connection as connection:
            connection.execute("UPDATE job SET spec = ?", (msgspec.json.encode(job),))

    def append(self, results: Sequence[bytes], rejected: bytes, progress: Progress) -> None:
        """Store a chunk; it is on disk when this returns. After an OSError, a full disk, the journal is unchanged.

        `results` has a line of JSON for each row, ``null`` for a rejected one; `rejected` are lines of csv; `progress`
        includes the chunk.
        """
        blocks = (b"\n".join(results[at : at + _BLOCK_ROWS]) for at in range(0, len(results), _BLOCK_ROWS))
        with self._errors(), self._connection as connection:
            rows = ((block, zlib.crc32(block)) for block in blocks)
            connection.executemany("INSERT INTO results (lines, crc) VALUES (?, ?)", rows)
            if rejected:
                connection.execute("INSERT INTO rejected (lines) VALUES (?)", (rejected,))
            connection.execute("UPDATE job SET read = ?, rejected = ?, crc = ?", progress)

    def results(self) -> Iterator[bytes]:
        """Yield the results from the start; UsageError if the journal is damaged."""
        with self._errors():
            for block, crc in self._connection.execute("SELECT lines, crc FROM results ORDER BY id"):
                if zlib.crc32(block) != crc:
                    raise self._damaged()
                yield from block.split(b"\n")

    def write_output(self, write: Callable[[BinaryIO], _Value]) -> _Value:
        """Fill the output with `write`, whose value is returned, and write the rejected rows."""
        assert self._folder is not None
        with replace_file(self._folder / RESULT) as file:
            value = write(file)
        with replace_file(self._folder / REJECTED) as file, self._errors():
            file.write(_HEADER)
            file.writelines(lines for (lines,) in self._connection.execute("SELECT lines FROM rejected ORDER BY id"))
        with self._errors(), self._connection as connection:
            connection.execute("UPDATE job SET complete = 1")
        return value

    def deliver(self, target: Path) -> None:
        """Rename the complete output, and remove the journal; can be repeated after a kill at any moment."""
        assert self._folder is not None
        result, rejected = self._folder / RESULT, self._folder / REJECTED
        if result.exists():
            if not self.progress.rejected:
                rejected_path(target).unlink(missing_ok=True)  # of the output that is replaced
            elif rejected.exists():
                rename_file(rejected, rejected_path(target))
            rename_file(result, target)
        self.close()
        clear(self._folder)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Translate errors of SQLite."""
        try:
            yield
        except sqlite3.OperationalError as error:
            is_full = "full" in str(error)
            number = errno.ENOSPC if is_full else errno.EIO
            message = os.strerror(number) if is_full else "disk input/output error; check free space and quota"
            name = tempfile.gettempdir() if self._folder is None else str(self._folder / JOURNAL)
            raise OSError(number, message, name) from error
        except sqlite3.DatabaseError:
            raise self._damaged() from None

    def _damaged(self) -> UsageError:
        return UsageError(f"the journal {self._folder} is damaged; discard it with --restart")


@contextlib.contextmanager
def open_journal(path: Path, job: Job, *, force: bool = False, restart: bool = False) -> Iterator[Journal | None]:
    """Open the journal of a job with the output `path`, and deliver the output when the block succeeds.

    A block that fails leaves the journal for the next run, if it has results. `force` replaces an existing output,
    `restart` discards the results of an earlier run.

    Yields:
        The journal; None if an earlier run was killed when only the output's renaming was left to do.

    Raises:
        UsageError: The output exists or cannot be made, another job or another process has the journal, or it is
            damaged.
        OSError: The disk is full or refuses.
        KeyboardInterrupt: After Ctrl-C; its message counts the stored rows.
    """
    target = check_output_file(path, force=True)
    folder = target.with_name(f".{target.name}.job")
    with report_errors_as(path, folder), _locked_folder(folder, path):
        if not restart and _finish_delivery(folder, target, job):
            yield None
            return
        keep = (folder / JOURNAL).exists()
        try:
            check_output_file(path, force=force)
            check_output_file(rejected_path(path), force=force)
            if restart:
                clear(folder)
            with contextlib.closing(Journal(folder)) as journal:
                try:
                    journal.begin(job, path)
                    yield journal
                except BaseException as error:
                    progress = journal.progress
                    keep = progress.read > progress.rejected
                    _add_stored_rows(error, progress.read - progress.rejected)
                    raise
                keep = True
                journal.deliver(target)
        except BaseException:
            if not keep:
                clear(folder)
            raise


@contextlib.contextmanager
def _locked_folder(folder: Path, path: Path) -> Iterator[None]:
    """Create and lock the folder of a job while the block runs, and remove it at the end if it is empty."""
    folder.mkdir(exist_ok=True)
    if not (folder / JOURNAL).exists() and any(file.name != LOCK_NAME for file in folder.iterdir()):
        raise UsageError(f"{folder} is not the folder of a job; remove it, or name another --output")
    try:
        message = f"another process is at work on {path}; wait for it, or name another --output"
        with folder_lock(folder, timeout=0, message=message):
            yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _finish_delivery(folder: Path, target: Path, job: Job) -> bool:
    """Finish the delivery of a run that was killed in it, and return whether that run was the same command."""
    if not (folder / JOURNAL).exists():
        return False
    with contextlib.closing(Journal(folder)) as journal:
        if not journal.complete:
            return False
        other = journal.job
        journal.deliver(target)
        return other is not None and other.same_command(job)


def clear(folder: Path) -> None:
    """Remove the files of a job, the journal last: it marks the folder as one of this program."""
    for file in sorted(folder.iterdir(), key=lambda file: file.name == JOURNAL):
        if file.name != LOCK_NAME:
            file.unlink()


def rejected_path(path: Path) -> Path:
    """Return the file of rejected rows, beside the output, or beside its target if `path` is a link."""
    path = path.resolve() if path.is_symlink() else path
    return path.with_name(f"{path.stem}.rejected.csv")


def _add_stored_rows(error: BaseException, rows: int) -> None:
    """Add the number of stored rows to the message of an interruption or of a full disk."""
    if rows and isinstance(error, KeyboardInterrupt):
        error.args = (f"stopped after {rows:,} rows, which are kept; run the same command again to go on",)
    elif rows and isinstance(error, OSError) and error.errno in (*DISK_FULL, errno.EIO):
        error.strerror = f"{error.strerror}; {rows:,} rows are kept: make room, and run the same command again to go on"
