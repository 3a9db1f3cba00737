"""Anonymous temporary files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import BinaryIO

from mtllm_edge.files.atomic import report_errors_as, write_all


def scratch_file() -> BinaryIO:
    """A nameless temporary file, which ends with the process in whatever way."""
    return tempfile.TemporaryFile(buffering=0)


def write_scratch(file: BinaryIO, data: bytes) -> None:
    """Add to the end of a temporary file; errors name the folder of such files."""
    folder = Path(tempfile.gettempdir())
    with report_errors_as(folder, folder):
        file.seek(0, os.SEEK_END)
        write_all(file, data)


def reopened(file: BinaryIO) -> BinaryIO:
    """A file from its start, which may be closed without closing `file`; they share their place."""
    again = os.fdopen(os.dup(file.fileno()), "rb")
    again.seek(0)
    return again
