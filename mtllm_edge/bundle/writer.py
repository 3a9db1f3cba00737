"""List the files of a new bundle for its manifest."""

from __future__ import annotations

from pathlib import Path

from mtllm_edge.bundle.manifest import MANIFEST_NAME, FileEntry
from mtllm_edge.files.digest import sha256_file


def list_files(folder: Path) -> dict[str, FileEntry]:
    """Return size and SHA-256 of every file in a folder except the manifest, by relative POSIX path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {
        name: FileEntry(size=path.stat().st_size, sha256=sha256_file(path))
        for name, path in names.items()
        if name != MANIFEST_NAME
    }
