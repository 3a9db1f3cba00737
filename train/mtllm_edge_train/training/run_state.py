"""State of a training run on disk: what it is, and how far it is."""

from __future__ import annotations

import glob
import hashlib
import os
from pathlib import Path

import msgspec

from mtllm_edge.errors import ModelError, UsageError
from mtllm_edge.files.atomic import check_output_folder

STATE_NAME = "training.json"


class TrainingState(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`training.json`: where a run stands."""

    stage: str
    fingerprint: str
    """Digest of settings and data; another one cannot be resumed."""
    step: int
    finished: bool


def fingerprint(*parts: object) -> str:
    """Digest of everything that a run depends on."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def start_or_resume(folder: Path, stage: str, key: str, *, force: bool) -> TrainingState | None:
    """Decide what an existing output folder means.

    Returns:
        The state to resume from, or None to start anew.

    Raises:
        UsageError: The folder holds a finished run, other settings, or something else.
    """
    if force or not (folder.exists() or folder.is_symlink()):
        check_output_folder(folder, force=force, marker=STATE_NAME)
        _check_parent(folder)
        return None
    try:
        state = msgspec.json.decode((folder / STATE_NAME).read_bytes(), type=TrainingState)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{folder} exists and is no unfinished run; choose another folder or pass --force") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{folder / STATE_NAME}: {error}; pass --force to start anew") from None
    if state.finished:
        raise UsageError(f"{folder} holds a finished run; choose another folder or pass --force")
    if (state.stage, state.fingerprint) != (stage, key):
        raise UsageError(
            f"{folder} holds a run of {state.stage!r} with other settings or data; "
            "repeat those to resume it, choose another folder, or pass --force"
        )
    return state


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a finished run."""
    path = folder / STATE_NAME
    return path.is_file() and msgspec.json.decode(path.read_bytes(), type=TrainingState).finished


def _check_parent(folder: Path) -> None:
    """Find out before the training, not at its first save."""
    interrupted = [*folder.parent.glob(f".{glob.escape(folder.name)}.*.old")]
    if interrupted and not folder.exists():
        raise UsageError(
            f"{interrupted[0]} is the last save of a run that was stopped while it saved; "
            f"rename it to {folder} to go on, or remove it"
        )
    parent = next(parent for parent in folder.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UsageError(f"cannot write to {parent}; choose another folder")
