"""A bundle's tasks changed on disk: nothing is lost to another writer, and a crash leaves the bundle as it was.

There is one writer at a time. New files come first, under names that the bundle does not list; then `bundle.json` is
replaced in one step; files that only the old one listed go last. So a crash leaves at worst a file that is not listed,
which harms nothing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mtllm_edge.bundle.installed import installed_bundles
from mtllm_edge.bundle.manifest import MANIFEST_NAME, FileEntry, TaskSpec, WeightSource
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.bundle.validation import parse_manifest
from mtllm_edge.errors import ModelError, UsageError
from mtllm_edge.files.atomic import replace_file
from mtllm_edge.files.lock import folder_lock


@dataclass(frozen=True)
class TaskChange:
    """What becomes of one task of a bundle."""

    name: str
    task: TaskSpec | None
    """None takes it out."""
    files: Mapping[str, bytes]
    """What is new: path in the bundle -> content."""
    sources: tuple[WeightSource, ...] | None = ()
    """Where its weights came from; None leaves what the bundle says of that."""


def validate_writable(bundle: Bundle) -> None:
    """Refuse to change an installed bundle, whose files pip has recorded and would replace, or one without permission.

    Raises:
        UsageError: It is one.
    """
    if bundle.path.resolve() in {path.resolve() for path in installed_bundles().values()}:
        raise UsageError(f"{bundle.path} was installed by pip; copy that folder, and change the copy")
    if not os.access(bundle.path, os.W_OK):
        raise UsageError(f"{bundle.path} cannot be written to; copy that folder, and change the copy")


def update_bundle(bundle: Bundle, plan: Callable[[Bundle], TaskChange]) -> Bundle:
    """Change a task of the bundle on disk, while nobody else does.

    Args:
        bundle: The bundle, as it was opened some time ago.
        plan: Says what is to be changed in the bundle as it is now.

    Returns:
        The changed bundle.

    Raises:
        UsageError: The bundle is an installed one, cannot be written to, or others keep it locked.
        ModelError: It is damaged, or would be a contradiction in itself.
    """
    validate_writable(bundle)
    with folder_lock(bundle.path):
        now = Bundle.open(bundle.path)
        return _write_change(now, plan(now))


def _write_change(bundle: Bundle, change: TaskChange) -> Bundle:
    """Write the added files, then the manifest, then delete what it no longer lists."""
    old = bundle.manifest
    tasks = dict(old.tasks) if change.task is None else old.tasks | {change.name: change.task}
    if change.task is None:
        del tasks[change.name]
    gone = _files_of(old.tasks) - _files_of(tasks)
    files = {name: file for name, file in old.files.items() if name not in gone}
    files |= {
        name: FileEntry(size=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in change.files.items()
    }
    sources = old.sources
    if change.sources is not None:
        sources = (*(source for source in sources if source.part != f"task {change.name}"), *change.sources)
    manifest = msgspec.structs.replace(old, tasks=tasks, files=files, sources=sources)
    parse_manifest(manifest.to_json(), origin=str(bundle.path / MANIFEST_NAME))  # raises where it contradicts itself
    new = Bundle(bundle.path, manifest)
    written = [name for name in change.files if name not in old.files]
    try:
        for name in written:
            _write(bundle.path, name, change.files[name])
        new.check()
        _write(bundle.path, MANIFEST_NAME, manifest.to_json())
    except BaseException:
        _delete(bundle.path, written)
        raise
    _delete(bundle.path, [name for name in gone if name in old.files])
    return new


def _files_of(tasks: Mapping[str, TaskSpec]) -> set[str]:
    return {path for task in tasks.values() for path in (task.head, task.adapter) if path is not None}


def _write(root: Path, name: str, content: bytes) -> None:
    """Write one file of a bundle whole or not at all, and wait until the disk has it."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.parent.resolve().is_relative_to(root.resolve()):
        raise ModelError(f"{path.parent} is a link that leaves the bundle; copy the folder itself into the bundle")
    with replace_file(path) as file:
        file.write(content)


def _delete(root: Path, names: list[str]) -> None:
    """Delete files that no manifest lists, and the folders that held nothing else."""
    for name in names:
        try:
            (root / name).unlink(missing_ok=True)
            (root / name).parent.rmdir()
        except OSError:  # still in use, or the folder holds more: unlisted files harm nothing
            continue
