"""Change the tasks of a bundle on disk, safe against other writers and crashes.

One process writes at a time. New files are written first, under paths that the manifest does not list; then
`bundle.json` is replaced in one step; then files that only the old manifest listed are deleted. A crash leaves at worst
a file that is not listed, which is harmless.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mtllm_edge.bundle.installed import installed_bundles
from mtllm_edge.bundle.manifest import MANIFEST_NAME, FileEntry, Manifest, TaskSpec, WeightSource
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.bundle.validation import parse_manifest
from mtllm_edge.errors import ModelError, UsageError
from mtllm_edge.files.atomic import replace_file
from mtllm_edge.files.lock import folder_lock


@dataclass(frozen=True)
class TaskChange:
    """Change of one task of a bundle."""

    name: str
    task: TaskSpec | None
    """The new task; None removes it."""
    files: Mapping[str, bytes]
    """New files: path in the bundle -> content."""
    sources: tuple[WeightSource, ...] | None = ()
    """Replace the task's sources; None keeps them."""


def validate_writable(bundle: Bundle) -> None:
    """Raise UsageError for a read-only folder, or for a bundle that pip installed: pip would replace its files."""
    if bundle.path.resolve() in {path.resolve() for path in installed_bundles().values()}:
        raise UsageError(f"{bundle.path} was installed by pip; copy that folder, and change the copy")
    if not os.access(bundle.path, os.W_OK):
        raise UsageError(f"{bundle.path} cannot be written to; copy that folder, and change the copy")


def update_bundle(bundle: Bundle, plan: Callable[[Bundle], TaskChange]) -> Bundle:
    """Change a task of a bundle on disk, under a lock, and return the new bundle.

    `plan` returns the change, given the bundle as it is on disk now.

    Raises:
        UsageError: The bundle must not change (see `validate_writable`), or another process keeps it locked.
        ModelError: The bundle is damaged, or the change makes it contradictory.
    """
    validate_writable(bundle)
    with folder_lock(bundle.path):
        current = Bundle.open(bundle.path)
        return _write_change(current, plan(current))


def _write_change(bundle: Bundle, change: TaskChange) -> Bundle:
    """Write the new files, then the manifest, then delete files that it no longer lists."""
    old, manifest = bundle.manifest, _changed_manifest(bundle.manifest, change)
    parse_manifest(manifest.to_json(), origin=str(bundle.path / MANIFEST_NAME))  # raises for contradictions
    changed = Bundle(bundle.path, manifest)
    new_paths = [path for path in change.files if path not in old.files]
    try:
        for path in new_paths:
            _write(bundle.path, path, change.files[path])
        changed.check()
        _write(bundle.path, MANIFEST_NAME, manifest.to_json())
    except BaseException:
        _delete(bundle.path, new_paths)
        raise
    _delete(bundle.path, [path for path in old.files if path not in manifest.files])
    return changed


def _changed_manifest(old: Manifest, change: TaskChange) -> Manifest:
    tasks = {name: task for name, task in old.tasks.items() if name != change.name or change.task is not None}
    if change.task is not None:
        tasks[change.name] = change.task
    old_paths, paths = ({path for task in part.values() for path in task.weights} for part in (old.tasks, tasks))
    files = {path: entry for path, entry in old.files.items() if path not in old_paths - paths}
    for path, content in change.files.items():
        files[path] = FileEntry(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    sources = old.sources
    if change.sources is not None:
        sources = (*(source for source in sources if source.part != f"task {change.name}"), *change.sources)
    return msgspec.structs.replace(old, tasks=tasks, files=files, sources=sources)


def _write(root: Path, name: str, content: bytes) -> None:
    """Replace one file of a bundle atomically."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.parent.resolve().is_relative_to(root.resolve()):
        raise ModelError(f"{path.parent} is a link that leaves the bundle; copy the folder itself into the bundle")
    with replace_file(path) as file:
        file.write(content)


def _delete(root: Path, names: list[str]) -> None:
    """Delete files, and their folders if empty."""
    for name in names:
        try:
            (root / name).unlink(missing_ok=True)
            (root / name).parent.rmdir()
        except OSError:  # still in use, or the folder holds other files: unlisted files are harmless
            continue
