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


@contextmanager
def atomic_folder(out: Path, *, force: bool, marker: str) -> Iterator[Path]:
    """Write a bundle all or nothing.

    Yields a temporary folder beside `out`, which takes the name `out` when the block ends without an exception. After
    any exception, KeyboardInterrupt included, neither the temporary folder nor a parent made for it is left.

    Args:
        out: The bundle's folder.
        force: Replace `out` where it exists, and only after the new one is complete. Only a bundle or an empty
            folder is ever replaced, so that a slip of the pen cannot remove anything else.
        marker: File by which a folder is known to be a bundle; checkpoints have another.

    Raises:
        UsageError: `out` exists without `force`, or is not a bundle.
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100 (resolve() would follow a link that has the name `out`)
    refuse_existing(out, force=force, marker=marker)
    new_parents = [parent for parent in out.parents if not parent.exists()]
    temporary = out.parent / f".{out.name}.{secrets.token_hex(4)}.tmp"
    try:
        try:
            temporary.mkdir(parents=True)
        except OSError as error:
            raise UsageError(f"cannot write to {out.parent} ({error.strerror}); choose another folder") from None
        yield temporary
        refuse_existing(out, force=force, marker=marker)
        _open_permissions(temporary)
        _rename_over(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in new_parents:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        raise


def _open_permissions(folder: Path) -> None:
    """Let whoever may list the folder read its files: safetensors writes files that only their owner can read."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _rename_over(temporary: Path, out: Path) -> None:
    """Give `temporary` the name `out`; an old `out` steps aside first and comes back if that fails."""
    if not out.exists():
        temporary.rename(out)
        return
    aside = temporary.with_suffix(".old")
    out.rename(aside)
    try:
        temporary.rename(out)
    except BaseException:
        aside.rename(out)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def refuse_existing(out: Path, *, force: bool, marker: str) -> None:
    """Raise what `atomic_folder` would about a name that is taken, without writing anything."""
    if not out.exists() and not out.is_symlink():
        return
    if not force:
        raise UsageError(f"{out} exists already; choose another name, or replace it with --force")
    replaceable = out.is_dir() and not out.is_symlink() and ((out / marker).is_file() or not any(out.iterdir()))
    if not replaceable:
        raise UsageError(f"{out} exists and holds no {marker}, so --force does not replace it; choose another name")


_DEVICE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@contextmanager
def atomic_file(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    """Open a temporary sibling of `path` that takes its name when the block ends well.

    It is opened at once, so that a folder without write permission is found before hours of work and not after.

    Args:
        path: The file to make; `--output` on the command line.
        force: Replace an existing file.

    Raises:
        UsageError: The file exists and `force` is off, is not a plain file, or its folder does not exist.
    """
    target = check_output_path(path, force=force)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with errors_name(path, temporary):
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def check_output_path(path: Path, *, force: bool) -> Path:
    """The file that an output becomes: what a symbolic link points to, not the link, is replaced.

    Raises:
        UsageError: As for `atomic_file`.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not a plain file; name another --output")
    if path.exists() and not force:
        raise UsageError(f"{path} exists; add --force to replace it, or name another --output")
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} does not exist; make it, or name another --output")
    return path.resolve()


@contextmanager
def errors_name(path: Path, temporary: Path) -> Iterator[None]:
    """Let errors of the system name the file that the user knows, and not a temporary one (or one in it)."""
    try:
        yield
    except OSError as error:
        named = Path(error.filename) if isinstance(error.filename, str) else Path()
        nameless = error.filename is None and error.errno in _DEVICE_ERRORS
        if nameless or named == temporary or temporary in named.parents:
            error.filename = str(path)
        raise


def write_all(file: BinaryIO, data: bytes) -> None:
    """Write to an unbuffered file, which may take less at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlast a power cut, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
