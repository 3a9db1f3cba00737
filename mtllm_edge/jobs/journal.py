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

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

import msgspec

from mtllm_edge.errors import UsageError
from mtllm_edge.jobs.sources import Identity, reopened
from mtllm_edge.outputs import check_target, in_the_name_of, sync_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_Result = TypeVar("_Result")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a job is: with another one of these its journal is of no use."""

    command: str
    bundle: str
    """SHA-256 of its manifest, which has those of all files."""
    options: dict[str, str]
    """What else changes the output, as the command line names it."""
    inputs: list[Identity]
    version: int = 1
    """Of the journal's format."""

    def difference(self, other: Job) -> str | None:
        """How another job differs, in words; None where it does not."""
        if other.version != self.version:
            return "another release of mtllm-edge began it"
        if other.command != self.command:
            return f"it was {other.command!r}, not {self.command!r}"
        if other.bundle != self.bundle:
            return "it had another model"
        for name in {**other.options, **self.options}:
            then, now = other.options.get(name, "none"), self.options.get(name, "none")
            if then != now:
                return f"{name} was {then}, not {now}"
        if [source.name for source in other.inputs] != [source.name for source in self.inputs]:
            return "it had other inputs"
        changed = [now.name for then, now in zip(other.inputs, self.inputs, strict=True) if then != now]
        return f"{changed[0]} has changed since" if changed else None

    def is_repeated_by(self, other: Job) -> bool:
        """Whether another job is the same command; its output may have replaced an input meanwhile."""
        names = [source.name for source in self.inputs]
        return names == [source.name for source in other.inputs] and (
            (self.command, self.bundle, self.options) == (other.command, other.bundle, other.options)
        )


class Progress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far a job is: a line of the log."""

    read: int = 0
    """Rows of the inputs, blank ones not counted."""
    rejected: int = 0
    """Of them set aside."""
    answers_bytes: int = 0
    rejected_bytes: int = 0
    crc: int = 0
    """CRC-32 of the texts of the rows that were read: tells whether the inputs are still the same."""


class _Done(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rejected: bool
    """Whether rows were set aside."""


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
        self._answers = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the object)

    def append(self, answers: bytes, rejected: bytes, progress: Progress) -> None:
        """Add a chunk, see `Store`."""
        self._answers.seek(0, os.SEEK_END)
        self._answers.write(answers)
        self._answers.flush()
        self.progress = progress

    def answers(self) -> BinaryIO:
        """The answers."""
        return reopened(self._answers)


class Journal:
    """Answers on disk, see above; `journal` opens it."""

    def __init__(self, folder: Path) -> None:
        """Open the files of a folder and cut off what is not in the log."""
        self._folder = folder
        self._log = _at_end(folder / "log.jsonl")
        self.progress, length = _last_line(folder / "log.jsonl")
        self._log.truncate(length)
        self._answers, self._rejected = _at_end(folder / "answers.jsonl"), _at_end(folder / "rejected.csv")
        for file, size in (
            (self._answers, self.progress.answers_bytes),
            (self._rejected, self.progress.rejected_bytes),
        ):
            if os.fstat(file.fileno()).st_size < size:
                raise _damaged(folder)
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
        return (self._folder / "answers.jsonl").open("rb")

    def close(self) -> None:
        """Close the files."""
        for file in (self._log, self._answers, self._rejected):
            file.close()

    def write_result(self, write: Callable[[BinaryIO], _Result]) -> _Result:
        """Fill the output with `write`, whose result is returned; a failure leaves the journal as it was."""
        result = self._folder / "result"
        try:
            with result.open("wb") as file:
                value = write(file)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            result.unlink(missing_ok=True)
            raise
        _write_whole(self._folder / "done.json", msgspec.json.encode(_Done(self.progress.rejected_bytes > 0)))
        return value


def rejected_path(path: Path) -> Path:
    """Where the rows that are set aside go."""
    return path.with_name(f"{path.stem}.rejected.csv")


@contextmanager
def journal(path: Path, job: Job, *, force: bool = False, restart: bool = False) -> Iterator[Journal | None]:
    """The journal of a job, which is delivered when the block ends well.

    A block that fails leaves it for the next time, if there is something in it.

    Args:
        path: The job's output.
        job: What the job is.
        force: Replace an existing output.
        restart: Throw an old journal away.

    Yields:
        The journal; None where an earlier run was killed when nothing was left to do but to rename the output.

    Raises:
        UsageError: The output cannot be made or exists, there is the journal of another job, or another process works
            on it.
        OSError: The disk refuses.
        KeyboardInterrupt: After Ctrl-C; says what is kept.
    """
    target = check_target(path, force=True)
    folder = target.with_name(f".{target.name}.job")
    with in_the_name_of(path, folder):
        if _is_delivered(folder, target, job, restart=restart):
            yield None
            return
        check_target(path, force=force)
        check_target(rejected_path(path), force=force)
        new = not folder.exists()
        folder.mkdir(exist_ok=True)
        lock = _lock(folder, path)
        opened: Journal | None = None
        try:
            _claim(folder, path, job, restart=restart)
            opened = Journal(folder)
            yield opened
            opened.close()
            _deliver(folder, target)
        except BaseException as error:
            if opened is not None:
                opened.close()
                new = not opened.progress.read
                _say_what_is_kept(error, opened.progress.read)
            if new:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            lock.close()


def _say_what_is_kept(error: BaseException, rows: int) -> None:
    if not rows:
        return
    if isinstance(error, KeyboardInterrupt):
        error.args = (f"stopped after {rows:,} rows, which are kept; run the same command again to go on",)
    elif isinstance(error, OSError) and error.errno in _FULL:
        error.strerror = f"{error.strerror}; {rows:,} rows are kept: make room, and run the same command again to go on"


def _is_delivered(folder: Path, target: Path, job: Job, *, restart: bool) -> bool:
    """Whether the same command was killed when its output was whole; what was left to do then is done now."""
    if restart or not folder.exists():
        return False
    with _lock(folder, target):
        if (folder / "done.json").exists():
            old = _read_job(folder)
            _deliver(folder, target)
            return old is not None and old.is_repeated_by(job)
        if not (folder / "job.json").exists():  # what a kill left when all was done, or nothing yet
            shutil.rmtree(folder)
    return False


def _deliver(folder: Path, target: Path) -> None:
    """Give the files of a whole output their names; may be repeated after a kill anywhere in it."""
    done = msgspec.json.decode((folder / "done.json").read_bytes(), type=_Done)
    result, rejected = folder / "result", folder / "rejected.csv"
    if result.exists():
        if not done.rejected:
            rejected_path(target).unlink(missing_ok=True)  # of an output that is replaced
        elif rejected.exists():
            rejected.replace(rejected_path(target))
        result.replace(target)
        sync_folder(target.parent)
    for name in ("answers.jsonl", "log.jsonl", "rejected.csv", "job.json", "done.json"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _claim(folder: Path, path: Path, job: Job, *, restart: bool) -> None:
    """Make the folder that of the job; refuse where it is another's."""
    if restart:
        for file in folder.iterdir():
            if file.name != "lock":
                file.unlink()
    if not _last_line(folder / "log.jsonl")[0].read:  # nothing was done yet, whoever began it
        _write_whole(folder / "job.json", msgspec.json.encode(job))
        return
    old = _read_job(folder)
    if old is None:
        raise _damaged(folder)
    difference = job.difference(old)
    if difference is not None:
        raise UsageError(
            f"{path} was begun by another job ({difference}); run that one again, or throw away what it did with "
            "--restart"
        )


def _read_job(folder: Path) -> Job | None:
    try:
        return msgspec.json.decode((folder / "job.json").read_bytes(), type=Job)
    except (OSError, msgspec.DecodeError):
        return None


def _damaged(folder: Path) -> UsageError:
    return UsageError(f"the journal {folder} is damaged; throw it away with --restart")


def _lock(folder: Path, path: Path) -> BinaryIO:
    """Keep other processes out until the file is closed, or this process ends in whatever way."""
    file = (folder / "lock").open("ab")
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise UsageError(f"another process is at work on {path}; wait for it, or name another --output") from None
    return file


def _last_line(log: Path) -> tuple[Progress, int]:
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
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
    os.fsync(file.fileno())


def _write_whole(path: Path, data: bytes) -> None:
    """Make a file that is there whole or not at all, and stays when the power goes."""
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)
