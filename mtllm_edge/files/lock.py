"""One writer at a time for a folder, whatever process or thread it is in.

The system releases the lock of a process that dies, so a crash leaves nothing that somebody would have to clean up.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtllm_edge.errors import UsageError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

SECONDS = 60.0
"""Longest wait for other writers, whose changes take much less."""
_PAUSE = 0.02
_NAME = ".lock"


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Wait until nobody else writes to a folder, and keep others waiting while the block runs.

    Raises:
        UsageError: Others did not come to an end in `SECONDS`.
    """
    path = folder / _NAME
    deadline = time.monotonic() + SECONDS
    while (handle := _locked(path)) is None:
        if time.monotonic() > deadline:
            raise UsageError(f"{folder} has been locked by another process for {SECONDS:g} s; try again later")
        time.sleep(_PAUSE)
    try:
        yield
    finally:
        if sys.platform != "win32":  # which deletes no open file: there it stays, and harms nothing
            path.unlink(missing_ok=True)
        os.close(handle)


def _locked(path: Path) -> int | None:
    """The open lock file, locked by this call, or None where somebody else has it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    locked = False
    try:
        locked = _lock(handle) and _is_still(handle, path)
        return handle if locked else None
    finally:
        if not locked:
            os.close(handle)


def _lock(handle: int) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is_still(handle: int, path: Path) -> bool:
    """Whether the open file is the one of this name: whoever had the lock before may have deleted it meanwhile."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
