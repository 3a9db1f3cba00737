"""State of a training run on disk: stage, fingerprint and step."""

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
    """`training.json`."""

    stage: str
    fingerprint: str
    """Digest of settings and data; a run is resumed only with the same ones."""
    step: int
    finished: bool


def fingerprint(*parts: object) -> str:
    """Digest of the settings and data that a result depends on."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def start_or_resume(folder: Path, stage: str, key: str, *, force: bool) -> TrainingState | None:
    """Check the output folder of a run.

    Returns:
        The state to resume from, or None for a new run.

    Raises:
        UsageError: The folder cannot be written, or holds a finished run, a run with other settings or data, or other
            files.
        ModelError: The state of the run is damaged.
    """
    if force or not (folder.exists() or folder.is_symlink()):
        check_output_folder(folder, force=force, marker=STATE_NAME)
        _check_parent(folder)
        return None
    try:
        state = msgspec.json.decode((folder / STATE_NAME).read_bytes(), type=TrainingState)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{folder} exists and is not an unfinished run; choose another folder or pass --force"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{folder / STATE_NAME}: {error}; pass --force to start again") from None
    if state.finished:
        raise UsageError(f"{folder} holds a finished run; choose another folder or pass --force")
    if (state.stage, state.fingerprint) != (stage, key):
        raise UsageError(
            f"{folder} holds a run of {state.stage!r} with other settings or data; "
            "use the same ones to resume it, choose another folder, or pass --force"
        )
    return state


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a finished run."""
    path = folder / STATE_NAME
    return path.is_file() and msgspec.json.decode(path.read_bytes(), type=TrainingState).finished


def _check_parent(folder: Path) -> None:
    """Check before the training that a save will be possible."""
    interrupted = [*folder.parent.glob(f".{glob.escape(folder.name)}.*.old")]
    if interrupted and not folder.exists():
        raise UsageError(
            f"{interrupted[0]} is the last save of a run that was stopped while it saved; "
            f"rename it to {folder} to resume it, or remove it"
        )
    parent = next(parent for parent in folder.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UsageError(f"cannot write to {parent}; choose another folder")
