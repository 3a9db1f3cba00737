"""A job's journal from its opening to the moment when the output takes its name; `stores` says what is in it."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec

from mtllm_edge.errors import UsageError
from mtllm_edge.files.atomic import check_output_file, report_errors_as, sync_folder
from mtllm_edge.jobs.answer_store import (
    ANSWERS,
    DONE,
    LOG,
    REJECTED,
    RESULT,
    Done,
    Journal,
    damaged,
    last_line,
    write_whole,
)
from mtllm_edge.jobs.spec import Job

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_JOB = "job.json"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def rejected_path(path: Path) -> Path:
    """Where the rows that are set aside go: beside the output itself, where `path` is a link."""
    path = path.resolve() if path.is_symlink() else path
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
    target = check_output_file(path, force=True)
    folder = target.with_name(f".{target.name}.job")
    with report_errors_as(path, folder):
        if _is_delivered(folder, path, job, restart=restart):
            yield None
            return
        check_output_file(path, force=force)
        check_output_file(rejected_path(path), force=force)
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
                on_disk = last_line(folder / LOG)[0]  # Ctrl-C may have come between the log and `opened.progress`
                kept = on_disk.read - on_disk.rejected
                new = not kept
                _say_what_is_kept(error, kept)
            if new:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            lock.close()


def _say_what_is_kept(error: BaseException, rows: int) -> None:
    if rows and isinstance(error, KeyboardInterrupt):
        error.args = (f"stopped after {rows:,} rows, which are kept; run the same command again to go on",)
    elif rows and isinstance(error, OSError) and error.errno in _FULL:
        error.strerror = f"{error.strerror}; {rows:,} rows are kept: make room, and run the same command again to go on"


def _is_delivered(folder: Path, path: Path, job: Job, *, restart: bool) -> bool:
    """Whether the same command was killed when its output was whole; what was left to do then is done now."""
    if restart or not folder.exists():
        return False
    with _lock(folder, path):
        if (folder / DONE).exists():
            old = _read_job(folder)
            _deliver(folder, path.resolve())
            return old is not None and old.is_repeated_by(job)
        if not (folder / _JOB).exists():  # what a kill left when all was done, or nothing yet
            shutil.rmtree(folder)
    return False


def _deliver(folder: Path, target: Path) -> None:
    """Give the files of a whole output their names; may be repeated after a kill anywhere in it."""
    done = msgspec.json.decode((folder / DONE).read_bytes(), type=Done)
    result, rejected = folder / RESULT, folder / REJECTED
    if result.exists():
        if not done.rejected:
            rejected_path(target).unlink(missing_ok=True)  # of an output that is replaced
        elif rejected.exists():
            rejected.replace(rejected_path(target))
        result.replace(target)
        sync_folder(target.parent)
    for name in (ANSWERS, LOG, REJECTED, _JOB, DONE):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _claim(folder: Path, path: Path, job: Job, *, restart: bool) -> None:
    """Make the folder that of the job; refuse where it is another's."""
    if restart:
        for file in folder.iterdir():
            if file.name != "lock":
                file.unlink()
    if not last_line(folder / LOG)[0].read:  # nothing was done yet, whoever began it
        write_whole(folder / _JOB, msgspec.json.encode(job))
        return
    old = _read_job(folder)
    if old is None:
        raise damaged(folder)
    difference = job.difference(old)
    if difference is not None:
        raise UsageError(
            f"{path} was begun by another job ({difference}); run that one again, or throw away what it did with "
            "--restart"
        )


def _read_job(folder: Path) -> Job | None:
    try:
        return msgspec.json.decode((folder / _JOB).read_bytes(), type=Job)
    except (OSError, msgspec.DecodeError):
        return None


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
