r"""What a job has done so far, on disk beside its output, so that a killed job goes on where it was.

For ``out.csv`` it is the folder ``.out.csv.job``::

    job.json       what the job is: its inputs, model, task and options
    answers.jsonl  one answer per row, in order; ``null`` for a row that is set aside
    rejected.csv   the rows that are set aside
    log.jsonl      one line per chunk: how far the inputs are read, and how long the two files above were then
    result         the whole output, before it takes its name
    done.json      written when `result` is whole; from then on only names change
    lock           held while a process works on the job

A chunk counts once its line in the log is on disk, which is after its answers are. Whatever a kill leaves behind that
line is cut off when the job goes on, and a torn line is no line.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

import msgspec

from mtllm_edge.errors import UsageError
from mtllm_edge.files.atomic import sync_folder, write_all
from mtllm_edge.files.spool import reopened, scratch_file, write_scratch
from mtllm_edge.jobs.spec import Progress

ANSWERS, REJECTED, LOG, RESULT, DONE = "answers.jsonl", "rejected.csv", "log.jsonl", "result", "done.json"
_Result = TypeVar("_Result")


class Store(Protocol):
    """Where answers are kept until the output is written."""

    progress: Progress

    def append(self, answers: bytes, rejected: bytes, progress: Progress) -> None:
        """Add the answers of a chunk.

        Args:
            answers: Lines of JSON, one per row.
            rejected: Lines of csv.
            progress: How far the job is with them; the sizes of the files are put in here.
        """

    def answers(self) -> BinaryIO:
        """All answers, to be read from the start."""


class Scratch:
    """Answers of a job without an output file, which is not resumed: in a nameless temporary file."""

    def __init__(self) -> None:
        self.progress = Progress()
        self._answers = scratch_file()
        weakref.finalize(self, self._answers.close)

    def append(self, answers: bytes, rejected: bytes, progress: Progress) -> None:
        """Add a chunk, see `Store`."""
        write_scratch(self._answers, answers)
        self.progress = progress

    def answers(self) -> BinaryIO:
        """The answers."""
        return reopened(self._answers)


class Journal:
    """Answers on disk, see above; `mtllm_edge.jobs.journal` opens it and gives the output its name."""

    def __init__(self, folder: Path) -> None:
        """Open the files of a folder and cut off what is not in the log."""
        self._folder = folder
        self._log = _at_end(folder / LOG)
        self.progress, length = last_line(folder / LOG)
        self._log.truncate(length)
        self._answers, self._rejected = _at_end(folder / ANSWERS), _at_end(folder / REJECTED)
        for file, size in (
            (self._answers, self.progress.answers_bytes),
            (self._rejected, self.progress.rejected_bytes),
        ):
            if os.fstat(file.fileno()).st_size < size:
                self.close()
                raise damaged(folder)
            file.truncate(size)

    def append(self, answers: bytes, rejected: bytes, progress: Progress) -> None:
        """Add a chunk, see `Store`; it is on disk when this returns.

        Raises:
            OSError: The disk is full; the journal is as it was.
        """
        now = msgspec.structs.replace(
            progress,
            answers_bytes=self.progress.answers_bytes + len(answers),
            rejected_bytes=self.progress.rejected_bytes + len(rejected),
        )
        _write(self._answers, answers)
        if rejected:
            _write(self._rejected, rejected)
        _write(self._log, msgspec.json.encode(now) + b"\n")
        self.progress = now

    def answers(self) -> BinaryIO:
        """The answers."""
        return (self._folder / ANSWERS).open("rb")

    def close(self) -> None:
        """Close the files."""
        for file in (self._log, self._answers, self._rejected):
            file.close()

    def write_result(self, write: Callable[[BinaryIO], _Result]) -> _Result:
        """Fill the output with `write`, whose result is returned; a failure leaves the journal as it was."""
        result = self._folder / RESULT
        try:
            with result.open("wb") as file:
                value = write(file)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            result.unlink(missing_ok=True)
            raise
        write_whole(self._folder / DONE, msgspec.json.encode(Done(self.progress.rejected_bytes > 0)))
        return value


class Done(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """That the output is whole."""

    rejected: bool
    """Whether rows were set aside."""


def damaged(folder: Path) -> UsageError:
    """What is said of a journal that cannot be used."""
    return UsageError(f"the journal {folder} is damaged; throw it away with --restart")


def last_line(log: Path) -> tuple[Progress, int]:
    """The last whole line of a log, and where it ends."""
    progress, end = Progress(), 0
    if not log.exists():
        return progress, end
    with log.open("rb") as lines:
        for line in lines:
            try:
                if not line.endswith(b"\n"):
                    break
                progress = msgspec.json.decode(line, type=Progress)
            except msgspec.DecodeError:
                break
            end += len(line)
    return progress, end


def _at_end(path: Path) -> BinaryIO:
    return path.open("ab", buffering=0)


def _write(file: BinaryIO, data: bytes) -> None:
    """Write all of it to the disk itself."""
    write_all(file, data)
    os.fsync(file.fileno())


def write_whole(path: Path, data: bytes) -> None:
    """Make a file that is there whole or not at all, and stays when the power goes."""
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)
