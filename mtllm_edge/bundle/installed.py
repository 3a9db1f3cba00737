"""Find bundles that pip installed from wheels of `mtllm_edge.bundle.wheel`."""

from __future__ import annotations

import importlib.util
import re
from importlib.metadata import entry_points
from pathlib import Path

ENTRY_POINTS = "mtllm_edge.bundles"
FOLDER = "bundle"
"""Folder of the bundle inside its Python package."""


def installed_bundles() -> dict[str, Path]:
    """Return the folder of every installed bundle by name, without importing packages."""
    folders = {}
    for point in entry_points(group=ENTRY_POINTS):
        spec = importlib.util.find_spec(point.module.partition(".")[0])
        for parent in (spec.submodule_search_locations or []) if spec else []:
            if (Path(parent) / FOLDER).is_dir():
                folders[point.name] = Path(parent) / FOLDER
    return dict(sorted(folders.items()))


def find_bundle(name: str | Path) -> Path:
    """Return an existing folder, else the folder of the installed bundle with this name, else the path itself."""
    if Path(name).is_dir():
        return Path(name)
    normalized = normalize_name(str(name))
    return next(
        (path for other, path in installed_bundles().items() if normalize_name(other) == normalized), Path(name)
    )


def normalize_name(name: str) -> str:
    """Normalize a package name: ``-``, ``_`` and ``.`` are equal, and case is ignored."""
    return re.sub(r"[-_.]+", "-", name).lower()
