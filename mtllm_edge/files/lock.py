"""Exclusive access to a folder, for one thread of one process at a time.

The operating system releases the lock of a process that dies, so a crash leaves nothing to clean up.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtllm_edge.errors import UsageError

SECONDS = 60.0
"""Longest wait for other writers of a bundle, which take far less."""
LOCK_NAME = ".lock"


@contextmanager
def folder_lock(folder: Path, *, timeout: float | None = None, message: str | None = None) -> Iterator[None]:
    """Hold the lock of a folder while the block runs.

    Raises UsageError, with `message` if given, when another holder keeps it for `timeout` seconds (None: `SECONDS`).
    """
    from filelock import FileLock, Timeout  # slow to import

    path = folder / LOCK_NAME
    seconds = SECONDS if timeout is None else timeout
    lock = FileLock(path)
    try:
        lock.acquire(seconds, poll_interval=0.02)
    except Timeout:
        text = message or f"{folder} has been locked by another process for {seconds:g} s; try again later"
        raise UsageError(text) from None
    try:
        yield
    finally:
        if sys.platform != "win32":  # where filelock deletes it; waiting processes notice a deleted file
            path.unlink(missing_ok=True)
        lock.release()
