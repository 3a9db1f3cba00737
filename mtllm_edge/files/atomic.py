"""Atomic writes: a file or folder is complete under its name, or absent."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mtllm_edge.errors import UsageError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DEVICE_ERRORS = (*DISK_FULL, errno.EIO, errno.EROFS)


@contextmanager
def atomic_folder(out: Path, *, force: bool, marker: str) -> Iterator[Path]:
    """Create a folder that is complete under its name, or absent.

    Yields a temporary folder beside `out`, which is renamed to `out` when the block ends without an exception. After
    any exception, KeyboardInterrupt included, the temporary folder and the parents created for it are removed. `force`
    replaces an existing folder at the end, if it is empty or contains a file with the name `marker`.

    Raises:
        UsageError: `out` exists without `force`, or has no marker.
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100 (resolve() would follow a link that has the name `out`)
    check_output_folder(out, force=force, marker=marker)
    new_parents = [parent for parent in out.parents if not parent.exists()]
    temporary = _temporary_sibling(out)
    try:
        try:
            temporary.mkdir(parents=True)
        except OSError as error:
            raise UsageError(f"cannot write to {out.parent} ({error.strerror}); choose another folder") from None
        yield temporary
        check_output_folder(out, force=force, marker=marker)
        _open_permissions(temporary)
        _rename_over(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in new_parents:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        raise


def check_output_folder(out: Path, *, force: bool, marker: str) -> None:
    """Refuse a folder that `atomic_folder` would refuse, without writing anything."""
    if not out.exists() and not out.is_symlink():
        return
    if not force:
        raise UsageError(f"{out} exists already; choose another name, or replace it with --force")
    replaceable = out.is_dir() and not out.is_symlink() and ((out / marker).is_file() or not any(out.iterdir()))
    if not replaceable:
        raise UsageError(f"{out} exists and holds no {marker}, so --force does not replace it; choose another name")


def _temporary_sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _open_permissions(folder: Path) -> None:
    """Make files readable by every user who can list the folder; safetensors restricts its files to their owner."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _rename_over(temporary: Path, out: Path) -> None:
    """Rename `temporary` to `out`; an old `out` is restored if that fails."""
    if not out.exists():
        temporary.rename(out)
        return
    backup = temporary.with_suffix(".old")
    out.rename(backup)
    try:
        temporary.rename(out)
    except BaseException:
        backup.rename(out)
        raise
    shutil.rmtree(backup, ignore_errors=True)


@contextmanager
def atomic_file(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    """Open a temporary sibling of an output file, which is renamed to `path` when the block succeeds.

    It is created at once, so that a missing write permission is reported before hours of work. `force` replaces an
    existing file; of a symbolic link, the target is replaced.

    Raises:
        UsageError: The file exists and `force` is off, is not a plain file, or its folder does not exist.
    """
    with report_errors_as(path), replace_file(check_output_file(path, force=force)) as file:
        yield file


@contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary sibling of a file, which is flushed to the disk and renamed to `path` when the block succeeds.

    A symbolic link at `path` is replaced, and its target left as it is.
    """
    temporary = _temporary_sibling(path)
    try:
        with report_errors_as(path, temporary):
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            rename_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def rename_file(old: Path, new: Path) -> None:
    """Rename a file, replacing `new`; the change survives a power cut where the system supports it."""
    old.replace(new)
    if os.name == "posix":
        descriptor = os.open(new.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_output_file(path: Path, *, force: bool) -> Path:
    """Return the file that an output path resolves to; raises UsageError as `atomic_file` does."""
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not a plain file; name another --output")
    if path.exists() and not force:
        raise UsageError(f"{path} exists; add --force to replace it, or name another --output")
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} does not exist; create it, or name another --output")
    return path.resolve()


@contextmanager
def report_errors_as(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Replace the name of a file or folder in an OSError by `path`, which the user knows.

    Replaced are the name of `temporary` (None is the resolved `path`), names of files in it, and missing names of
    device errors.
    """
    temporary = path.resolve() if temporary is None else temporary
    try:
        yield
    except OSError as error:
        source = Path(error.filename) if isinstance(error.filename, str) else Path()
        unnamed = error.filename is None and error.errno in _DEVICE_ERRORS
        if unnamed or source == temporary or temporary in source.parents:
            error.filename = str(path)
        raise
