"""PyInstaller hooks for the runtime and its engines, found by the entry point `hook-dirs`.

PyInstaller runs ``hook-NAME.py`` for an import of NAME; the runtime imports none of them.
"""

from __future__ import annotations

from pathlib import Path


def hook_dirs() -> list[str]:
    """Return the folder of the hooks."""
    return [str(Path(__file__).parent)]
