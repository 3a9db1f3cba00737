"""Bundles that were installed with pip, found by name: `mtllm_edge.bundle.wheel` makes them."""

from __future__ import annotations

import importlib.util
import re
from importlib.metadata import entry_points
from pathlib import Path

ENTRY_POINTS = "mtllm_edge.bundles"
FOLDER = "bundle"
"""Of the bundle inside its Python package."""


def installed_bundles() -> dict[str, Path]:
    """Name -> folder of every installed bundle; nothing is imported."""
    found = {}
    for point in entry_points(group=ENTRY_POINTS):
        spec = importlib.util.find_spec(point.module.partition(".")[0])
        for parent in (spec.submodule_search_locations or []) if spec else []:
            if (Path(parent) / FOLDER).is_dir():
                found[point.name] = Path(parent) / FOLDER
    return dict(sorted(found.items()))


def find_bundle(name: str | Path) -> Path:
    """The folder of that path; where there is none, that of the installed bundle of that name, or the path again."""
    if Path(name).is_dir():
        return Path(name)
    wanted = normalize_name(str(name))
    return next((path for other, path in installed_bundles().items() if normalize_name(other) == wanted), Path(name))


def normalize_name(name: str) -> str:
    """A name as Python packages compare them: ``-``, ``_`` and ``.`` are one, and so are capitals and others."""
    return re.sub(r"[-_.]+", "-", name).lower()
