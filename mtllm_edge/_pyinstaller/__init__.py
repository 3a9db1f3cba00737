"""What PyInstaller must know of the runtime and its engines: it finds this package by the entry point `hook-dirs`.

Each ``hook-NAME.py`` beside this file is run by PyInstaller when it meets an import of NAME; the runtime imports none
of them.
"""

from __future__ import annotations

from pathlib import Path


def hook_dirs() -> list[str]:
    """The folder of the hooks."""
    return [str(Path(__file__).parent)]
